"""Names of environment variables that the runtime sets and the helper functions read."""

METRICS_FD = "STUDIO_METRICS_FD"
