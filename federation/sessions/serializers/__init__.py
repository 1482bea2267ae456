"""How sessions, rounds and assignments look in JSON."""

from federation.sessions.serializers.rounds import AssignmentOut, RoundOut
from federation.sessions.serializers.sessions import ContinueIn, SessionIn, SessionOut

__all__ = ["AssignmentOut", "ContinueIn", "RoundOut", "SessionIn", "SessionOut"]
