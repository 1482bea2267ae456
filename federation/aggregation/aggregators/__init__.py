"""The aggregators a session may name. A new one is a file here and its line below."""

from __future__ import annotations

from foundation.errors import StudioError

from ..layout import shown
from .aggregator import Aggregator, Argument, Choice, Number, Reduction
from .fedavg import FedAvg
from .fedopt import FedOpt

__all__ = ["AGGREGATORS", "Aggregator", "Argument", "Choice", "Number", "Reduction", "aggregator_named"]

AGGREGATORS: dict[str, Aggregator] = {one.name: one for one in (FedAvg(), FedOpt())}


def aggregator_named(name: object) -> Aggregator:
    """Raises StudioError naming those there are."""
    found = AGGREGATORS.get(name) if isinstance(name, str) else None
    if found is None:
        raise StudioError(
            "invalid",
            f"There is no aggregator called {shown(str(name))}; there are {' and '.join(AGGREGATORS)}.",
            field="aggregator",
        )
    return found
