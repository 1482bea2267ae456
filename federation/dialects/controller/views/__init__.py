"""What each address does; split by noun."""
