"""What an aggregator is: how the partials of a round become its model, and the arguments it takes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from foundation.errors import StudioError

from ..layout import Layout, shown


def _refused(sentence: str) -> StudioError:
    return StudioError("invalid", sentence, field="aggregator_kwargs")


@dataclass(frozen=True)
class Choice:
    """An argument that is one of a few words: `{word: title}`."""

    name: str
    title: str
    default: str
    words: Mapping[str, str]
    hint: str = ""

    def check(self, value: object) -> str:
        if isinstance(value, str) and value in self.words:
            return value
        raise _refused(f"{self.name} must be one of {', '.join(self.words)}, not {_shown(value)}.")


@dataclass(frozen=True)
class Number:
    """An argument that is a number, `above` one or `at_least` it, and perhaps `below` another."""

    name: str
    title: str
    default: float
    hint: str = ""
    above: float = -math.inf
    at_least: float = -math.inf
    below: float = math.inf

    def check(self, value: object) -> float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number) and number > self.above and self.at_least <= number < self.below:
                return number
        raise _refused(f"{self.name} must be a number {self.range}, not {_shown(value)}.")

    @property
    def range(self) -> str:
        """Such as "above 0" or "from 0 to below 1"."""
        low = f"above {self.above:g}" if math.isfinite(self.above) else f"from {self.at_least:g}"
        return f"{low} to below {self.below:g}" if math.isfinite(self.below) else low


Argument = Choice | Number


def _shown(value: object) -> str:
    return shown(value) if isinstance(value, str) else str(value)[:80]


@dataclass(frozen=True)
class Reduction:
    """Files of one round: what goes in, and where the results belong."""

    partials: Sequence[tuple[Path, float]]  # float64 means and their weights
    layout: Layout
    model: Callable[[], Path]  # that the updates answer; fetched when asked for
    state: Path | None  # what this aggregator kept after the session's last round
    out: Path
    out_state: Path  # for what the next round needs to know; written or not


class Aggregator(ABC):
    """An aggregator: its name in requests, its title on pages, its arguments."""

    name: ClassVar[str]
    title: ClassVar[str]
    hint: ClassVar[str]
    arguments: ClassVar[tuple[Argument, ...]] = ()
    # The model is the weighted mean and nothing else: the partial of a combiner that was alone is it already.
    plain_mean: ClassVar[bool] = False

    @classmethod
    def check(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments: the given ones checked, the others by default. Raises StudioError with a sentence."""
        known = {argument.name: argument for argument in cls.arguments}
        for name in given:
            if name not in known:
                takes = f"it takes {', '.join(known)}" if known else "it takes none"
                raise _refused(f"{cls.name} has no argument called {shown(str(name))}; {takes}.")
        return {
            name: argument.check(given[name]) if given.get(name) is not None else argument.default
            for name, argument in known.items()
        }

    @abstractmethod
    def reduce(self, files: Reduction, arguments: Mapping[str, Any]) -> str:
        """Write the round's model to `files.out` and return its sha256. `arguments` are as `check` gave them.

        Raises StudioError `sum_not_finite` and those of a file that is damaged.
        """
