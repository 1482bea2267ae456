"""The aggregators a session may name.

To add one: a file here with one class, and its line in AGGREGATORS below. Pages, REST and the command line list it from
there; tests/test_aggregation_every.py asks it for a docstring with its paper and equation, for arguments to try and for
an oracle in tests/aggregation_oracles.py: the paper's rule, written plainly. Its row in docs/aggregators.md is checked.

- A mean of the updates, weighed and stepped somehow: a subclass of `Folding`. `fold_weight` says what an update counts
  when it is accepted, `scale` what the difference of the means is multiplied by, `optimiser` what the server makes of
  it (`server_step` tells how they go together with privacy and asynchronous rounds). What clients must send beside
  num_examples: `clients_send` and `check_metadata`; what they must know: `client_settings`; `needs_delta_norm` when
  the length of a change counts. `private = True` only when nothing but the mean change reaches the model.
- A comparison of the updates themselves: a subclass of `Collecting`. `combiner` turns a block of all updates into the
  model's; with `measures = True`, `decide` is first given the products of all changes (distances), and its plan,
  JSON-able, goes to `combiner`. A combination of whole updates is a subclass of `Weighing`: `decide` gives their
  coefficients.
- Both: `arguments` (Choice, Number, WholeNumber) with defaults, and `least_updates` where too few make no sense.
"""

from __future__ import annotations

from foundation.errors import StudioError

from ..layout import shown
from ..model_files import assemble, part_ranges
from .aggregator import Aggregator, Privacy, Reduction, UpdateFacts
from .arguments import Argument, Choice, Number, WholeNumber
from .bulyan import Bulyan
from .collecting import Collecting
from .fedadagrad import FedAdagrad
from .fedadam import FedAdam
from .fedavg import FedAvg
from .fedavgm import FedAvgM
from .fedmedian import FedMedian
from .fednova import FedNova
from .fedopt import FedOpt
from .fedprox import FedProx
from .fedyogi import FedYogi
from .folding import Folding, fold_weight
from .geometricmedian import GeometricMedian
from .krum import Krum
from .multikrum import MultiKrum
from .normclip import NormClip
from .qfedavg import QFedAvg
from .trimmedmean import TrimmedMean

__all__ = [
    "AGGREGATORS",
    "Aggregator",
    "Argument",
    "Choice",
    "Collecting",
    "Folding",
    "Number",
    "Privacy",
    "Reduction",
    "UpdateFacts",
    "WholeNumber",
    "aggregator_named",
    "assemble",
    "fold_weight",
    "part_ranges",
]

AGGREGATORS: dict[str, Aggregator] = {
    one.name: one
    for one in (
        FedAvg(),
        FedProx(),
        FedNova(),
        QFedAvg(),
        FedAvgM(),
        FedAdam(),
        FedYogi(),
        FedAdagrad(),
        FedOpt(),
        NormClip(),
        FedMedian(),
        TrimmedMean(),
        GeometricMedian(),
        Krum(),
        MultiKrum(),
        Bulyan(),
    )
}


def aggregator_named(name: object) -> Aggregator:
    """Raises StudioError naming those there are."""
    found = AGGREGATORS.get(name) if isinstance(name, str) else None
    if found is None:
        *others, last = AGGREGATORS
        raise StudioError(
            "invalid",
            f"There is no aggregator called {shown(str(name))}; there are {', '.join(others)} and {last}.",
            field="aggregator",
        )
    return found
