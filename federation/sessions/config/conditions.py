"""Conditions on what a client says of itself: what `expression` reads, and what decides who may take part."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any

MAX_ENTRIES = 100  # of a list, that are looked at
MAX_TAGS = 1000  # of all lists together
WORD = re.compile(r"[\w.\-+/@%*]+")  # what needs no quotation marks
RESERVED = ("and", "or", "not", "in", "has")

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_BEGIN_OF_NUMBER = frozenset("+-0123456789")


def _number(text: str) -> float | None:
    if text[:1] not in _BEGIN_OF_NUMBER or not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class Value:
    """A word or number as it was written."""

    text: str
    quoted: bool = False

    @cached_property
    def number(self) -> float | None:
        return None if self.quoted else _number(self.text)

    @cached_property
    def truth(self) -> bool | None:
        return None if self.quoted else {"true": True, "false": False}.get(self.text)

    def __str__(self) -> str:
        return _quoted(self.text) if self.quoted else self.text


class Entries:
    """What is said of one attribute, sorted by kind once: sessions ask thousands of clients while they hold a lock, so
    a condition must cost the same however long a list is. Things of different kinds never compare."""

    def __init__(self, said: Iterable[object]) -> None:
        texts, numbers, self.truths = set[str](), set[float](), set[bool]()
        for entry in said:
            if isinstance(entry, bool):
                self.truths.add(entry)
            elif isinstance(entry, (int, float)):
                numbers.add(entry)
            elif isinstance(entry, str):
                texts.add(entry)
                if (number := _number(entry)) is not None:
                    numbers.add(number)
        self.texts, self.numbers = texts, numbers

    def hold(self, value: Value) -> bool:
        """Whether one of them equals `value`."""
        if value.number is not None:
            return value.number in self.numbers
        return value.text in self.texts or value.truth in self.truths

    def hold_one_of(self, texts: frozenset[str], numbers: frozenset[float], truths: frozenset[bool]) -> bool:
        return not (
            self.texts.isdisjoint(texts)
            and self.numbers.isdisjoint(numbers)
            and self.truths.isdisjoint(truths)
        )

    @cached_property
    def _texts_from_to(self) -> tuple[Any, Any] | None:
        return (min(self.texts), max(self.texts)) if self.texts else None

    @cached_property
    def _numbers_from_to(self) -> tuple[Any, Any] | None:
        return (min(self.numbers), max(self.numbers)) if self.numbers else None

    def compare(self, sign: str, value: Value) -> bool:
        """Whether one of them is on that side of `value`."""
        ends = self._texts_from_to if value.number is None else self._numbers_from_to
        if ends is None:
            return False
        least, most = ends
        wanted: Any = value.text if value.number is None else value.number
        match sign:
            case "<":
                return bool(least < wanted)
            case "<=":
                return bool(least <= wanted)
            case ">":
                return bool(most > wanted)
            case _:
                return bool(most >= wanted)


class Said:
    """What a client says of itself; each attribute is read once, when a condition asks for it."""

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self.attributes = attributes
        self._entries: dict[str, Entries] = {}

    def of(self, name: str) -> Entries | None:
        found = self.attributes.get(name)
        if found is None:
            return None
        if name not in self._entries:
            entries = found[:MAX_ENTRIES] if isinstance(found, list) else [found]
            self._entries[name] = Entries(entries)
        return self._entries[name]

    @cached_property
    def tags(self) -> Entries:
        """The entries of all its lists, and the words of the text `tags`: some clients can send nothing but text."""
        lists = [found[:MAX_ENTRIES] for found in self.attributes.values() if isinstance(found, list)]
        written = self.attributes.get("tags")
        if isinstance(written, str):
            lists.insert(0, [word.strip() for word in written.split(",", MAX_ENTRIES)[:MAX_ENTRIES]])
        return Entries(islice(chain.from_iterable(lists), MAX_TAGS))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _name(name: str) -> str:
    bare = WORD.fullmatch(name) and name.lower() not in RESERVED
    return name if bare else _quoted(name)


class Expression(ABC):
    """A condition on attributes. `str()` of it reads as the same condition."""

    def fits(self, attributes: Mapping[str, Any]) -> bool:
        """Whether a client with these attributes may take part. Raises nothing."""
        return self.holds(Said(attributes))

    @abstractmethod
    def holds(self, said: Said) -> bool: ...


@dataclass(frozen=True)
class Comparison(Expression):
    name: str
    sign: str
    value: Value

    def holds(self, said: Said) -> bool:
        entries = said.of(self.name)
        if entries is None:
            return False
        if self.sign in ("=", "!="):  # of a whole list: none is equal
            return entries.hold(self.value) == (self.sign == "=")
        return entries.compare(self.sign, self.value)

    def __str__(self) -> str:
        return f"{_name(self.name)}{self.sign}{self.value}"


@dataclass(frozen=True)
class OneOf(Expression):
    name: str
    values: tuple[Value, ...]

    @cached_property
    def _by_kind(self) -> tuple[frozenset[str], frozenset[float], frozenset[bool]]:
        numbers = frozenset(value.number for value in self.values if value.number is not None)
        texts = frozenset(value.text for value in self.values if value.number is None)
        truths = frozenset(value.truth for value in self.values if value.truth is not None)
        return texts, numbers, truths

    def holds(self, said: Said) -> bool:
        entries = said.of(self.name)
        return entries is not None and entries.hold_one_of(*self._by_kind)

    def __str__(self) -> str:
        return f"{_name(self.name)} in ({', '.join(map(str, self.values))})"


@dataclass(frozen=True)
class Has(Expression):
    name: str

    def holds(self, said: Said) -> bool:
        return said.attributes.get(self.name) is not None

    def __str__(self) -> str:
        return f"has {_name(self.name)}"


@dataclass(frozen=True)
class Tag(Expression):
    tag: Value

    def holds(self, said: Said) -> bool:
        return said.tags.hold(self.tag)

    def __str__(self) -> str:
        return f"tag:{self.tag}"


@dataclass(frozen=True)
class Not(Expression):
    part: Expression

    def holds(self, said: Said) -> bool:
        return not self.part.holds(said)

    def __str__(self) -> str:
        return f"not {_inside(self.part)}"


@dataclass(frozen=True)
class Both(Expression):
    parts: tuple[Expression, ...]

    def holds(self, said: Said) -> bool:
        return all(part.holds(said) for part in self.parts)

    def __str__(self) -> str:
        return " and ".join(map(_inside, self.parts))


@dataclass(frozen=True)
class Either(Expression):
    parts: tuple[Expression, ...]

    def holds(self, said: Said) -> bool:
        return any(part.holds(said) for part in self.parts)

    def __str__(self) -> str:
        return " or ".join(map(_inside, self.parts))


def _inside(part: Expression) -> str:
    return f"({part})" if isinstance(part, (Both, Either)) else str(part)
