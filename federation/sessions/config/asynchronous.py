"""Buffered asynchronous rounds, as a session asks for them (FedBuff: Nguyen et al., AISTATS 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from federation.aggregation.aggregators import AGGREGATORS
from federation.sessions.config.fields import known_only, number
from foundation.errors import invalid

if TYPE_CHECKING:
    from federation.sessions.config.session import SessionConfig


@dataclass(frozen=True)
class AsyncSettings:
    """A round ends with `buffer_size` updates, whoever sent them; `concurrency` clients train at any time (None: all
    that are online). A change is multiplied by (1 + staleness) ** -staleness_exponent before all are averaged; beyond
    `max_staleness` an update is dropped. Staleness: rounds between the model that the client was given and the round
    that takes its update."""

    buffer_size: int = 10
    concurrency: int | None = None
    max_staleness: int = 5
    staleness_exponent: float = 0.5

    @classmethod
    def parse(cls, value: Any) -> AsyncSettings | None:
        """None: the session is synchronous. Raises StudioError 400 with a sentence."""
        if value in (None, "", False):
            return None
        values: Mapping[str, Any] = {} if value is True else value
        known_only(values, "asynchronous", {f.name for f in fields(cls)})
        d = cls()
        return cls(
            buffer_size=number(values, "buffer_size", d.buffer_size, 1, 100_000, whole=True),
            concurrency=number(values, "concurrency", None, 1, 100_000, whole=True),
            max_staleness=number(values, "max_staleness", d.max_staleness, 0, 1000, whole=True),
            staleness_exponent=number(values, "staleness_exponent", d.staleness_exponent, 0, 10),
        )

    def check_together(self, config: SessionConfig) -> None:
        """Raises StudioError 400 where it does not go with the session's other settings."""
        if config.needed_updates > self.buffer_size:
            name = "min_updates" if config.min_updates is not None else "min_clients"
            raise invalid(
                name,
                f"{name} must not be more than buffer_size ({self.buffer_size}): an asynchronous round ends with so "
                "many updates.",
            )
        if self.concurrency is not None and config.min_clients > self.concurrency:
            raise invalid(
                "min_clients", f"min_clients must not be more than concurrency ({self.concurrency})."
            )
        instead = {
            "requested_clients": "concurrency says how many clients train at once",
            "goal": "buffer_size says after how many updates a round ends",
            "grace_s": "a round ends with buffer_size updates, and slow clients send theirs to a later one",
            "reserves": "the place of a client that went away is given to another as soon as its time is up",
        }
        for name, why in instead.items():
            if getattr(config, name):
                raise invalid(name, f"An asynchronous session has no {name}: {why}.")
        self._check_selection(config)
        aggregator = AGGREGATORS.get(config.aggregator)
        if aggregator is not None and aggregator.collects:
            raise invalid(
                "aggregator",
                f"{aggregator.name} compares updates of one model, and in an asynchronous round they answer several. "
                "Choose an aggregator that averages.",
            )
        if config.deterministic:
            raise invalid(
                "deterministic",
                "An asynchronous session cannot be deterministic: which round takes an update depends on when it "
                "comes.",
            )
        if config.privacy is not None:
            raise invalid(
                "privacy",
                "An asynchronous session cannot promise privacy: a client may send several updates to one round, and "
                "the noise hides only one.",
            )

    @staticmethod
    def _check_selection(config: SessionConfig) -> None:
        chosen = config.selection
        if chosen.fraction is not None:
            raise invalid(
                "selection.fraction",
                "An asynchronous session has no fraction: concurrency says how many clients train at once.",
            )
        if chosen.over_commitment > 1:
            raise invalid(
                "selection.over_commitment",
                "An asynchronous session has no over_commitment: it waits for nobody.",
            )
        if chosen.strategy == "poisson":
            raise invalid(
                "selection.strategy",
                "Poisson sampling draws the clients of a whole round; an asynchronous session asks one after the "
                "other. Choose another strategy.",
            )
