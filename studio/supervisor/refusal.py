"""The one way `up` says no."""


class Refused(Exception):
    """`up` cannot start or go on; the message is one sentence for the operator."""
