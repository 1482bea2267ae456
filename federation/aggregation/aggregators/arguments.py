"""The arguments an aggregator takes, each refused with a sentence that says what would be right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from foundation.errors import StudioError

from ..layout import shown


def refused(sentence: str) -> StudioError:
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
        raise refused(f"{self.name} must be one of {', '.join(self.words)}, not {_shown(value)}.")


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
    kind: ClassVar[str] = "a number"

    def check(self, value: object) -> float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number) and number > self.above and self.at_least <= number < self.below:
                return number
        raise refused(f"{self.name} must be {self.kind} {self.range}, not {_shown(value)}.")

    @property
    def range(self) -> str:
        """Such as "above 0" or "from 0 to below 1"."""
        low = f"above {self.above:g}" if math.isfinite(self.above) else f"from {self.at_least:g}"
        return f"{low} to below {self.below:g}" if math.isfinite(self.below) else low


@dataclass(frozen=True)
class WholeNumber(Number):
    """A `Number` without a fraction, kept as an int."""

    kind: ClassVar[str] = "a whole number"

    def check(self, value: object) -> int:
        number = super().check(value)
        if number != int(number):
            raise refused(f"{self.name} must be {self.kind} {self.range}, not {_shown(value)}.")
        return int(number)


Argument = Choice | Number


def _shown(value: object) -> str:
    return shown(value) if isinstance(value, str) else str(value)[:80]
