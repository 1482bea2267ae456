"""The `studio` command; one file per noun."""
