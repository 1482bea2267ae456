"""Every setting of a session in words: what pages, the schema of REST and the summary of a session call it.

A setting's place is its name, with its group's before it: `selection.where`. What values it takes is known only to
`parse_spec`; here is what a person reads. A setting without words fails a test.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from federation.sessions.config.asynchronous import AsyncSettings
from federation.sessions.config.privacy import PrivacySettings
from federation.sessions.config.selection import STRATEGIES, SelectionSettings
from federation.sessions.config.session import COMPRESSIONS, SessionConfig

# What the server keeps with a session and nobody sets: where a continued session's target begins, and what a client
# of another dialect sent.
KEPT_BY_THE_SERVER = frozenset({"target_from_round", "as_sent", "cannot_run"})
GROUPS: dict[str, type[Any]] = {
    "selection": SelectionSettings,
    "asynchronous": AsyncSettings,
    "privacy": PrivacySettings,
}
CHOICES: dict[str, Mapping[str, str]] = {"selection.strategy": STRATEGIES, "compression": COMPRESSIONS}

# place: (title, what it does in one plain sentence)
_WORDS: dict[str, tuple[str, str]] = {
    "round_timeout_s": ("Round timeout (s)", "A round ends then, with the updates it has."),
    "min_clients": ("Minimum clients", "No round begins with fewer online."),
    "requested_clients": ("Requested clients", "How many a round asks. Empty: all that are online."),
    "min_updates": ("Minimum updates", "A round counts with so many. Empty: as many as minimum clients."),
    "goal": (
        "Enough updates",
        "A round ends with so many, whoever else was asked. Empty: when all have answered.",
    ),
    "grace_s": (
        "Grace (s)",
        "How long the others are waited for once the minimum is in. Empty: until the timeout.",
    ),
    "client_ids": (
        "Only these clients",
        "Their names or ids, with commas or one a line. Empty: whoever is online.",
    ),
    "reserves": ("Reserves", "So many others may be asked in place of clients that went away."),
    "validate": (
        "Validate each model on the clients",
        "Each client measures every new model on its own data.",
    ),
    "client_settings": ("Client settings", "Hyper-parameters for the clients' code, as a JSON object."),
    "target": (
        "Stop at a metric",
        "The session ends once the mean of a metric over the clients reaches a value.",
    ),
    "max_failed_rounds": ("Failed rounds in a row", "After these the session fails."),
    "start_timeout_s": ("Wait for clients (s)", "How long a round waits for enough clients."),
    "closing_timeout_s": (
        "Wait for a combiner (s)",
        "How long a round waits for a combiner that fell silent.",
    ),
    "lost_after_s": (
        "Combiner lost after (s)",
        "What a combiner accepted counts as lost when it is away so long.",
    ),
    "aggregator": ("Aggregator", "How updates become a model."),
    "aggregator_kwargs": ("Arguments of the aggregator", "Those left out have their defaults."),
    "deterministic": (
        "Same bytes every time",
        "Updates are added in the order of their clients, however they arrive: slower, but repeatable to the bit.",
    ),
    "compression": (
        "Updates travel",
        "For slow links; clients that cannot do it send them as they are. Some accuracy may be lost.",
    ),
    "selection.strategy": ("Clients of a round are chosen", "From those that are online and fit."),
    "selection.where": ("Only clients where", "What their attributes must say: region=eu and gpu>=1."),
    "selection.fraction": (
        "Share of the clients",
        "Above 0, at most 1: 0.1 asks a tenth. In place of a number.",
    ),
    "selection.over_commitment": (
        "Over-commitment",
        "1.3 asks 30 % more than are needed, and the round ends with the first that answer.",
    ),
    "selection.seed": ("Seed", "With one the same clients are drawn again when the session is repeated."),
    "selection.max_times": ("Rounds per client, at most", "Empty: as often as it is chosen."),
    "selection.exploration": ("Exploration", "Share of a round's places for clients never tried."),
    "selection.exploration_decay": (
        "Exploration, each round times",
        "So it shrinks as clients become known.",
    ),
    "selection.exploration_floor": ("Exploration, at least", "It shrinks no further."),
    "selection.cut_off": (
        "Cut-off",
        "Clients with this share of the score of the last that would be taken may be drawn too.",
    ),
    "selection.speed_penalty": ("Speed penalty", "How hard slow clients are marked down; 0: not at all."),
    "selection.duration_percentile": (
        "Round time aimed at (percentile)",
        "Of the durations seen so far; who takes longer is marked down.",
    ),
    "selection.pacer_step": (
        "Pacer step (rounds)",
        "So often it is asked whether slower clients are worth it.",
    ),
    "selection.pacer_delta": ("Pacer delta (points)", "By so much the percentile moves then."),
    "asynchronous.buffer_size": ("Buffer size", "A new model is made of so many updates, whoever sent them."),
    "asynchronous.concurrency": ("Clients at work at a time", "Empty: all that are online."),
    "asynchronous.max_staleness": ("Staleness, at most", "An update to a model more rounds old is not used."),
    "asynchronous.staleness_exponent": (
        "Staleness exponent",
        "An update that is s rounds late counts (1 + s) to the power of minus this; 0: in full.",
    ),
    "privacy.clip_norm": (
        "Clip norm",
        "A client's change is scaled down to this length; adaptive: where it begins.",
    ),
    "privacy.noise_multiplier": (
        "Noise multiplier",
        "Standard deviation of the noise, in clip norms. More is safer.",
    ),
    "privacy.expected_clients": (
        "Expected clients",
        "The sum is divided by this, whoever answers. Empty: as many as are asked, named, or drawn on average.",
    ),
    "privacy.adaptive": (
        "Adaptive clip norm",
        "It follows a quantile of the lengths of the clients' changes.",
    ),
    "privacy.target_quantile": ("Quantile followed", "0.5: half the clients' changes are clipped."),
    "privacy.clip_learning_rate": ("Speed of adaption", "How fast an adaptive clip norm moves."),
    "privacy.delta": (
        "Delta",
        "The chance with which the bound may fail; well below one over the number of clients.",
    ),
    "privacy.max_epsilon": (
        "Budget (epsilon)",
        "The session ends before it would spend more. Empty: no limit.",
    ),
}


@dataclass(frozen=True)
class Setting:
    """One setting. `kind`: whole, number, flag, choice, text; None for what has a shape of its own."""

    place: str
    title: str
    hint: str
    kind: str | None
    default: Any
    optional: bool = False  # None is a value of it

    @property
    def group(self) -> str:
        """Empty for a setting of the session itself."""
        return self.place.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.place.rpartition(".")[2]

    @property
    def choices(self) -> Mapping[str, str]:
        return CHOICES.get(self.place, {})


_KINDS: dict[Any, str] = {int: "whole", float: "number", bool: "flag", str: "text"}


def _settings_of(group: type[Any], prefix: str) -> list[Setting]:
    hints = get_type_hints(group)
    found = []
    for one in fields(group):
        place, hint = f"{prefix}{one.name}", hints[one.name]
        optional = get_origin(hint) in (Union, types.UnionType)
        if optional:
            hint = next(part for part in get_args(hint) if part is not type(None))
        default = _default_of(one)
        kind = "choice" if place in CHOICES else _KINDS.get(hint)
        found.append(Setting(place, *_WORDS.get(place, (one.name, "")), kind, default, optional))
    return found


def _default_of(one: Field[Any]) -> Any:
    return one.default_factory() if callable(one.default_factory) else one.default


@cache
def settings() -> dict[str, Setting]:
    """All settings that can be asked for, by place, in the order of `SessionConfig` and of its groups."""
    found: dict[str, Setting] = {}
    for one in _settings_of(SessionConfig, ""):
        if one.place in KEPT_BY_THE_SERVER:
            continue
        inner = _settings_of(GROUPS[one.place], f"{one.place}.") if one.place in GROUPS else [one]
        found |= {each.place: each for each in inner}
    return found


def settings_in(group: str) -> list[Setting]:
    """Those of a group; of "" those of the session itself."""
    return [one for one in settings().values() if one.group == group]


def unworded() -> list[str]:
    """Settings that nobody has put into words yet."""
    return [place for place in settings() if place not in _WORDS]
