"""What an aggregator is: how the partials of a round become its model, and the arguments it takes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from foundation.errors import StudioError

from ..layout import Layout, shown
from .arguments import Argument, refused


@dataclass(frozen=True)
class UpdateFacts:
    """What is known of one update beside its numbers.

    `key` orders updates the same way every time (the client's id); `delta_norm` is the L2 norm, over float tensors, of
    update minus the model that it answers (None unless the aggregator `needs_delta_norm`, or privacy or clipping do);
    `staleness` counts rounds between that model, named `base`, and the round it is added to; `weight` is what
    `Aggregator.fold_weight` said.
    """

    key: str
    num_examples: float
    metadata: Mapping[str, Any]
    base: str
    delta_norm: float | None = None
    staleness: int = 0
    weight: float = 0.0


@dataclass(frozen=True)
class Privacy:
    """Gaussian noise of one round: the sum of clipped changes gets noise of `noise_multiplier * clip_norm` in every
    coordinate and is divided by `divisor`, which does not depend on who took part. `adaptive`: see the settings."""

    clip_norm: float
    noise_multiplier: float
    divisor: float
    adaptive: bool = False
    target_quantile: float = 0.5
    clip_learning_rate: float = 0.2


@dataclass(frozen=True)
class Reduction:
    """One round as files: what goes in, and where the results belong.

    Folding aggregators get `partials` (float64 weighted means with their summed fold weights); collecting ones get
    `collected`, the updates themselves, in the order of `updates`. `updates` are those inside the partials, with their
    weights. `bases` are the models that they answer, by the id in `UpdateFacts.base`; `model_id` is the id of `model`
    itself, which in a synchronous round all of them answer (then `bases` may be left out).
    """

    layout: Layout
    model: Callable[[], Path]  # the round's input; fetched when asked for
    out: Path
    out_state: Path  # for what the next round needs to know; written or not
    partials: Sequence[tuple[Path, float]] = ()
    updates: Sequence[UpdateFacts] = ()
    collected: Sequence[Path] = ()
    model_id: str = ""
    bases: Mapping[str, Callable[[], Path]] = field(default_factory=dict)
    state: Path | None = None  # what this aggregator kept after the session's last round
    privacy: Privacy | None = None
    staleness_exponent: float | None = None  # of an asynchronous round; it is in the weights


class Aggregator(ABC):
    """An aggregator: its name in requests, its title on pages, its arguments."""

    name: ClassVar[str]
    title: ClassVar[str]
    hint: ClassVar[str]
    arguments: ClassVar[tuple[Argument, ...]] = ()
    family: ClassVar[str] = "averaging"  # or "server optimiser", "robust": where pages list it
    paper: ClassVar[str] = ""  # such as "McMahan et al., AISTATS 2017, Algorithm 1"
    clients_send: ClassVar[str] = ""  # metadata beside num_examples without which an update is refused
    # The model is the weighted mean and nothing else: the partial of a combiner that was alone is it already (not in
    # an asynchronous round, nor under privacy).
    plain_mean: ClassVar[bool] = False
    # It is as private as its mean change: noise in that is enough, and no update counts by what its client says.
    private: ClassVar[bool] = False
    # It reads the updates themselves, in a worker; the combiner copies them to storage and makes no partial.
    collects: ClassVar[bool] = False
    # `fold_weight` or `reduce` look at how far each update lies from its model.
    needs_delta_norm: ClassVar[bool] = False

    @classmethod
    def check(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments: the given ones checked, the others by default. Raises StudioError with a sentence."""
        known = {argument.name: argument for argument in cls.arguments}
        for name in given:
            if name not in known:
                takes = f"it takes {', '.join(known)}" if known else "it takes none"
                raise refused(f"{cls.name} has no argument called {shown(str(name))}; {takes}.")
        return {
            name: argument.check(given[name]) if given.get(name) is not None else argument.default
            for name, argument in known.items()
        }

    def client_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What clients must know to train for it, such as FedProx's mu; sent with the session's client settings."""
        return {}

    def check_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Raises StudioError with a sentence when an update lacks what it counts by (FedNova: `num_steps`)."""
        return

    def fold_weight(self, update: UpdateFacts, arguments: Mapping[str, Any]) -> float:
        """Weight of one update in the sum, at least 0 and finite; 0: it is counted, but not folded."""
        return update.num_examples

    def least_updates(self, arguments: Mapping[str, Any]) -> int:
        """With fewer updates than this it promises nothing, and refuses the round."""
        return 1

    def check_updates(self, count: int, arguments: Mapping[str, Any]) -> None:
        """Raises StudioError `too_few_updates` with a sentence naming how many are needed."""
        least = self.least_updates(arguments)
        if count < least:
            raise StudioError(
                "too_few_updates",
                f"{self.title} needs at least {least} updates in a round with these arguments; there are {count}.",
                field="aggregator_kwargs",
            )

    @abstractmethod
    def reduce(self, files: Reduction, arguments: Mapping[str, Any]) -> str:
        """Write the round's model to `files.out` and return its sha256. `arguments` are as `check` gave them.

        Raises StudioError `sum_not_finite`, `too_few_updates` and those of a file that is damaged.
        """


def metadata_number(
    metadata: Mapping[str, Any], name: str, what: str, *, at_least: float, at_most: float = 1e12
) -> float:
    """A number of an update's metadata. Raises StudioError `bad_metadata` with a sentence saying what to send."""
    value = metadata.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if at_least <= number <= at_most:
            return number
    found = "missing" if value is None else str(value)[:60]
    raise StudioError(
        "bad_metadata",
        f"The update's metadata must say {name}: {what}, a number from {at_least:g} to {at_most:g}; it is {found}.",
        field=name,
    )
