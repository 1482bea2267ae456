"""Pages of sessions, and the dashboard: the one page that knows every room below."""
