"""The settings of a session as they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from federation.sessions.config.asynchronous import AsyncSettings
from federation.sessions.config.privacy import PrivacySettings
from federation.sessions.config.selection import SelectionSettings

COMPRESSIONS = {
    "none": "As they are",
    "float16": "float16 (half the bytes)",
    "bfloat16": "bfloat16 (half the bytes, float32's range)",
    "int8": "int8 with a scale per tensor (a quarter of the bytes)",
}


@dataclass(frozen=True)
class Target:
    """Stop when the mean of `metric` over clients reaches `value`."""

    metric: str
    value: float
    direction: str = "max"

    def met_by(self, value: float) -> bool:
        return value >= self.value if self.direction == "max" else value <= self.value


@dataclass(frozen=True)
class SessionConfig:
    """Settings of a session, as kept in `Session.config`. Times in seconds."""

    round_timeout_s: float = 180.0
    min_clients: int = 1  # a round does not begin with fewer
    requested_clients: int | None = None  # all that are online
    min_updates: int | None = None  # as many as min_clients
    goal: int | None = None  # a round may end after so many updates; None: when everybody has answered
    grace_s: float | None = None  # how long the others are waited for once min_updates are in
    client_ids: list[str] = field(default_factory=list)  # only these take part; empty: whoever is online
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    reserves: int = 0  # clients that may be asked in place of ones that went away
    validate: bool = True
    client_settings: dict[str, Any] = field(default_factory=dict)
    target: Target | None = None
    target_from_round: int = 1
    max_failed_rounds: int = 3
    start_timeout_s: float = 600.0
    closing_timeout_s: float = 30.0
    lost_after_s: float = 60.0
    aggregator: str = "fedavg"
    aggregator_kwargs: dict[str, Any] = field(default_factory=dict)  # all of the aggregator's arguments
    asynchronous: AsyncSettings | None = None  # None: synchronous rounds
    privacy: PrivacySettings | None = None
    deterministic: bool = False  # updates are folded in the order of their clients: the same bytes every time
    compression: str = "none"  # of updates on their way here, for clients that know how
    as_sent: dict[str, Any] = field(default_factory=dict)  # what a foreign client asked for and reads back
    cannot_run: str = ""  # why a session that is kept as it was sent is never started, as a sentence

    @property
    def needed_updates(self) -> int:
        return self.min_updates or self.min_clients

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SessionConfig:
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in stored.items() if key in known}
        for name, group in _GROUPS.items():
            if values.get(name):
                values[name] = group(**{k: v for k, v in values[name].items() if k in _names(group)})
        return cls(**values)


_GROUPS: dict[str, type[Any]] = {
    "target": Target,
    "selection": SelectionSettings,
    "asynchronous": AsyncSettings,
    "privacy": PrivacySettings,
}


def _names(group: type[Any]) -> set[str]:
    return {f.name for f in fields(group)}
