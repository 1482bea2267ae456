"""Forms of sessions."""

from federation.sessions.forms.continuing import ContinueForm
from federation.sessions.forms.start import StartForm

__all__ = ["ContinueForm", "StartForm"]
