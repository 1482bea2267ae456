"""How the clients of a round are chosen, as a session asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from federation.sessions.config.expression import parse_where
from federation.sessions.config.fields import choice, known_only, number
from foundation.errors import invalid

if TYPE_CHECKING:
    from federation.sessions.config.session import SessionConfig

STRATEGIES = {
    "random": "At random (or all, when no number is asked for)",
    "poisson": "Each client by its own coin (Poisson sampling)",
    "guided": "Guided: useful and fast clients first (Oort)",
}


@dataclass(frozen=True)
class SelectionSettings:
    """`where`: what a client's attributes must say, as in `expression`. `fraction`: of those eligible, in place of a
    number. `over_commitment`: as many times more are asked than are needed. With a `seed` a session can be
    replayed. The rest is for `guided`; names and defaults after Oort (OSDI 2021)."""

    strategy: str = "random"
    where: str = ""
    fraction: float | None = None
    over_commitment: float = 1.0
    seed: int | None = None
    max_times: int | None = None  # a client takes part in at most so many rounds
    exploration: float = 0.9  # share of a round's places for clients never tried
    exploration_decay: float = 0.98  # a round
    exploration_floor: float = 0.2
    cut_off: float = 0.95  # of the score of the last one that would be taken: who is above may be drawn
    speed_penalty: float = 2.0  # alpha: how hard slow clients are marked down
    duration_percentile: float = 30.0  # of known durations: the round time that is aimed at
    pacer_step: int = 20  # rounds between looks at whether slower clients are worth it
    pacer_delta: float = 5.0  # percentage points by which the aim moves

    @classmethod
    def parse(cls, value: Any) -> SelectionSettings:
        """Raises StudioError 400 with a sentence."""
        values: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        known_only(values, "selection", {f.name for f in fields(cls)})
        d = cls()
        return cls(
            strategy=choice(values, "strategy", STRATEGIES, d.strategy),
            where=_where(values.get("where")),
            fraction=number(values, "fraction", None, 0, 1, above=True),
            over_commitment=number(values, "over_commitment", d.over_commitment, 1, 10),
            seed=number(values, "seed", None, 0, 2**53, whole=True),
            exploration=number(values, "exploration", d.exploration, 0, 1),
            exploration_decay=number(values, "exploration_decay", d.exploration_decay, 0, 1, above=True),
            exploration_floor=number(values, "exploration_floor", d.exploration_floor, 0, 1),
            cut_off=number(values, "cut_off", d.cut_off, 0, 1, above=True),
            speed_penalty=number(values, "speed_penalty", d.speed_penalty, 0, 10),
            duration_percentile=number(
                values, "duration_percentile", d.duration_percentile, 0, 100, above=True
            ),
            pacer_step=number(values, "pacer_step", d.pacer_step, 1, 10_000, whole=True),
            pacer_delta=number(values, "pacer_delta", d.pacer_delta, 0, 100),
            max_times=number(values, "max_times", None, 1, 1_000_000, whole=True),
        )

    def check_together(self, config: SessionConfig) -> None:
        """Raises StudioError 400 where it does not go with the session's other settings."""
        number_asked = config.requested_clients is not None or self.fraction is not None
        if config.requested_clients is not None and self.fraction is not None:
            raise invalid(
                "selection.fraction", "A round asks requested_clients or a fraction of the clients, not both."
            )
        if self.over_commitment > 1:
            self._check_over_commitment(config, number_asked)
        if self.strategy == "poisson":
            self._check_poisson(config, number_asked)
        if self.strategy == "guided" and not number_asked and config.asynchronous is None:
            raise invalid(
                "selection.strategy",
                "Guided selection needs requested_clients or a fraction: when all are asked, nobody is chosen.",
            )

    def _check_over_commitment(self, config: SessionConfig, number_asked: bool) -> None:
        field = "selection.over_commitment"
        if not number_asked and config.asynchronous is None:
            raise invalid(
                field, "over_commitment needs requested_clients or a fraction: more than all cannot be asked."
            )
        if config.goal is not None:
            raise invalid(
                field,
                "over_commitment and goal exclude each other: with over_commitment a round may end with as many "
                "updates as clients were wanted.",
            )
        if config.reserves:
            raise invalid(
                field, "over_commitment and reserves exclude each other: both ask for more than is needed."
            )

    def _check_poisson(self, config: SessionConfig, number_asked: bool) -> None:
        if not number_asked:
            raise invalid(
                "selection.strategy",
                "Poisson sampling needs a fraction or requested_clients: the probability of each client's coin.",
            )
        if self.over_commitment > 1 or config.reserves or config.goal is not None:
            raise invalid(
                "selection.strategy",
                "Poisson sampling goes with no over_commitment, reserves or goal: who takes part is up to the coins.",
            )
        if config.privacy is not None and self.seed is not None:
            raise invalid(
                "selection.seed",
                "With privacy a Poisson draw must be secret: leave the seed out, it would tell who takes part.",
            )


def _where(value: Any) -> str:
    if value in (None, ""):
        return ""
    if not isinstance(value, str):
        raise invalid("where", "where must be text such as region=eu and gpu>=1.")
    parse_where(value)
    return value.strip()
