"""What a session was asked to do, in a few words: what is not as it comes."""

from __future__ import annotations

from typing import Any

from federation.aggregation.aggregators import AGGREGATORS
from federation.sessions.config.session import SessionConfig
from federation.sessions.config.words import Setting, settings, settings_in

# The page of a session has a line of its own for these.
SAID_ELSEWHERE = frozenset(
    {"round_timeout_s", "min_clients", "requested_clients", "min_updates", "validate", "client_settings", "target",
     "aggregator", "aggregator_kwargs"}
)  # fmt: skip
GROUP_TITLES = {
    "selection": "Choice of clients", "asynchronous": "Buffered asynchronous", "privacy": "Differential privacy",
}  # fmt: skip


def title_of(aggregator: str) -> str:
    """Its title on pages; its name when this server does not know it."""
    found = AGGREGATORS.get(aggregator)
    return found.title if found else aggregator


def in_words(config: SessionConfig) -> list[str]:
    """How a session trains: the aggregator, then what is special about it."""
    words = [title_of(config.aggregator).partition(" (")[0]]
    if config.asynchronous is not None:
        words.append("asynchronous")
    if config.privacy is not None:
        words.append("private")
    if config.selection.strategy != settings()["selection.strategy"].default:
        words.append(config.selection.strategy)
    if config.deterministic:
        words.append("deterministic")
    if config.compression != settings()["compression"].default:
        words.append(config.compression)
    return words


def asked_for(config: SessionConfig) -> list[tuple[str, list[str]]]:
    """Title and values of each setting that is not as it comes; a group that is on is one line with all it has."""
    kept = config.to_json()
    lines = [
        (one.title, [_said(one, kept[one.name])])
        for one in settings_in("")
        if one.place not in SAID_ELSEWHERE and kept[one.name] != one.default
    ]
    for group, title in GROUP_TITLES.items():
        values = kept[group]
        if values is None:
            continue
        everything = group != "selection"  # it is always on: only what differs says something
        shown = [
            _said(one, values[one.name])
            if one.choices  # they are whole phrases, and the group says of what
            else f"{one.title}: {_said(one, values[one.name])}"
            for one in settings_in(group)
            if (everything and values[one.name] is not None) or values[one.name] != one.default
        ]
        if shown:
            lines.append((title, shown))
    return lines


def _said(setting: Setting, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return f"{len(value)} named"
    if isinstance(value, float):
        return f"{value:g}"
    return str(setting.choices.get(value, value))
