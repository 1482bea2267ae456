"""The parts of the New session form that are folded away until somebody wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from django.forms import BoundField

from federation.sessions.config.words import settings_in
from federation.sessions.forms.fields import field_name

GUIDED = tuple(
    field_name(f"selection.{name}")
    for name in (
        "exploration", "exploration_decay", "exploration_floor", "cut_off", "speed_penalty", "duration_percentile",
        "pacer_step", "pacer_delta",
    )
)  # fmt: skip
IN_ROUNDS = ("grace_s", "goal", "reserves")
ADAPTIVE = tuple(field_name(f"privacy.{name}") for name in ("target_quantile", "clip_learning_rate"))
FULL = frozenset({"client_ids", "selection_strategy", "selection_where", "mode", "private", "deterministic"})
TARGET = ("target_metric", "target_direction", "target_value")
# Shown at once, or by a field with a name of its own.
AT_ONCE = (
    "round_timeout_s", "min_clients", "requested_clients", "min_updates", "validate", "aggregator", "aggregator_kwargs",
    "client_settings", "target",
)  # fmt: skip


@dataclass(frozen=True)
class PlannedBlock:
    """Fields that one choice needs: `needs` is `name=value` of another field, or empty."""

    names: tuple[str, ...]
    needs: str = ""
    title: str = ""  # with one the block is folded away once more


@dataclass(frozen=True)
class PlannedSection:
    title: str
    lead: str
    blocks: tuple[PlannedBlock, ...]


def planned() -> Sequence[PlannedSection]:
    """All settings but those that are shown at once, each in one place; a new one lands with its group."""

    def group(name: str, *but: str) -> tuple[str, ...]:
        return tuple(
            made for one in settings_in(name) if (made := field_name(one.place)) not in (*but, *AT_ONCE)
        )

    clients = ("client_ids", *group("selection", *GUIDED))
    updates = ("compression", "deterministic")
    rest = group("", *IN_ROUNDS, *updates, "client_ids")
    return (
        PlannedSection(
            "Which clients take part",
            "All that are online, unless you ask for fewer.",
            (
                PlannedBlock(clients),
                PlannedBlock(
                    GUIDED, needs="selection_strategy=guided", title="The numbers of guided selection"
                ),
            ),
        ),
        PlannedSection(
            "Rounds, or without them",
            "In rounds, unless some clients are much slower than others.",
            (
                PlannedBlock(("mode",)),
                PlannedBlock(IN_ROUNDS, needs="mode=synchronous"),
                PlannedBlock(group("asynchronous"), needs="mode=asynchronous"),
            ),
        ),
        PlannedSection(
            "Privacy",
            "Off, unless the model itself must not tell who took part.",
            (
                PlannedBlock(("private",)),
                PlannedBlock(group("privacy", *ADAPTIVE), needs="private=on"),
                PlannedBlock(ADAPTIVE, needs="privacy_adaptive=on"),
            ),
        ),
        PlannedSection(
            "How updates travel and add up", "As they are, as they come.", (PlannedBlock(updates),)
        ),
        PlannedSection(
            "Stop early, and patience", "After the last round.", (PlannedBlock((*TARGET, *rest)),)
        ),
    )


@dataclass(frozen=True)
class Block:
    fields: list[tuple[BoundField, str]]  # each with how it is laid out
    needs: str = ""
    title: str = ""
    open: bool = False


@dataclass(frozen=True)
class Section:
    """`open`: something in it is wrong, or is not as it comes."""

    title: str
    lead: str
    blocks: list[Block] = field(default_factory=list)
    open: bool = False
