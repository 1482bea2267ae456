"""What a session is asked to do, checked before it becomes a row; split by noun."""

from federation.sessions.config.asynchronous import AsyncSettings
from federation.sessions.config.privacy import PrivacySettings
from federation.sessions.config.selection import STRATEGIES, SelectionSettings
from federation.sessions.config.session import COMPRESSIONS, SessionConfig, Target
from federation.sessions.config.spec import (
    MAX_ROUNDS,
    MAX_TIMEOUT_S,
    SessionSpec,
    parse_client_ids,
    parse_spec,
)

__all__ = [
    "COMPRESSIONS",
    "MAX_ROUNDS",
    "MAX_TIMEOUT_S",
    "STRATEGIES",
    "AsyncSettings",
    "PrivacySettings",
    "SelectionSettings",
    "SessionConfig",
    "SessionSpec",
    "Target",
    "parse_client_ids",
    "parse_spec",
]
