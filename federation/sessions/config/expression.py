"""What a client's attributes must say to take part: a small language, read by hand and never evaluated as code.

    region=eu and gpu>=1
    not (os=windows) or tag:mobile
    site in (lund, "Umeå north") and has gpu and version!="1.10"

Words with other signs than letters, digits and `_ . - + / @ % *` are quoted. A missing attribute fits no comparison,
`!=` neither; a list fits when one of its entries (the first hundred) does, and `!=` when none is equal. `tag:x` is any
list that holds x, or x among the commas of the text `tags`. A number is compared as one, also with an attribute that is
text but reads as a number; quoted, it is text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any

from foundation.errors import StudioError, invalid

MAX_CHARS = 1000
MAX_DEPTH = 20
MAX_ENTRIES = 100  # of a list, that are looked at
MAX_TAGS = 1000  # of all lists together

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORD = re.compile(r"[\w.\-+/@%*]+")
_BEGIN_OF_NUMBER = frozenset("+-0123456789")
_SIGNS = ("<=", ">=", "!=", "==", "=", "<", ">", "(", ")", ",", ":")
_RESERVED = ("and", "or", "not", "in", "has")
_SPACE = " \t\r\n"

_ORDER = ("=", "!=", "<", "<=", ">", ">=")


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
    bare = _WORD.fullmatch(name) and name.lower() not in _RESERVED
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


def parse_where(text: str) -> Expression | None:
    """The condition that `text` says; None when it says nothing. Raises StudioError 400 with the place in the text."""
    if len(text) > MAX_CHARS:
        raise invalid("where", f"where must be at most {MAX_CHARS} characters, not {len(text)}.")
    if not text.strip(_SPACE):
        return None
    return _Reader(text).whole()


@dataclass(frozen=True)
class _Token:
    """A sign as it is, or a word; `begin` and `end` are where it stands."""

    kind: str  # the sign, "word", "quoted" or "end"
    text: str
    begin: int
    end: int


class _Reader:
    """Recursive descent: or, and, not, then single conditions. Only parentheses and `not` go deeper."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0
        self._next = self._token(0)
        self._last_end = 0

    def whole(self) -> Expression:
        found = self._either()
        if self._next.kind != "end":
            raise self._expected("`and`, `or` or the end")
        return found

    def _either(self) -> Expression:
        parts = [self._both()]
        while self._take_word("or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _both(self) -> Expression:
        parts = [self._single()]
        while self._take_word("and"):
            parts.append(self._single())
        return parts[0] if len(parts) == 1 else Both(tuple(parts))

    def _single(self) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._wrong(f"parentheses and `not` go more than {MAX_DEPTH} deep")
        try:
            if self._take_word("not"):
                return Not(self._single())
            if self._take("("):
                found = self._either()
                self._must(")")
                return found
            return self._condition()
        finally:
            self._depth -= 1

    def _condition(self) -> Expression:
        if self._take_word("has"):
            return Has(self._attribute().text)
        name = self._attribute()
        if name.kind == "word" and name.text.lower() == "tag" and self._take(":"):
            return Tag(self._value())
        if self._take_word("in"):
            return OneOf(name.text, self._values())
        if self._next.kind in _ORDER or self._next.kind == "==":
            sign = self._advance().kind
            return Comparison(name.text, "=" if sign == "==" else sign, self._value())
        raise self._expected("one of = != < <= > >= or `in`")

    def _attribute(self) -> _Token:
        if self._next.kind == "quoted" or (self._next.kind == "word" and not self._reserved()):
            return self._advance()
        raise self._expected("the name of an attribute")

    def _value(self) -> Value:
        if self._next.kind == "quoted" or (self._next.kind == "word" and not self._reserved()):
            token = self._advance()
            return Value(token.text, token.kind == "quoted")
        raise self._expected("a value")

    def _values(self) -> tuple[Value, ...]:
        if not self._take("("):
            raise self._expected("a list in parentheses")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        self._must(")", "`,` or `)`")
        return tuple(values)

    # --- tokens -----------------------------------------------------------------------------------------------
    def _reserved(self) -> bool:
        return self._next.text.lower() in _RESERVED

    def _advance(self) -> _Token:
        token, self._last_end = self._next, self._next.end
        self._next = self._token(token.end)
        return token

    def _take(self, kind: str) -> bool:
        if self._next.kind != kind:
            return False
        self._advance()
        return True

    def _take_word(self, word: str) -> bool:
        if self._next.kind != "word" or self._next.text.lower() != word:
            return False
        self._advance()
        return True

    def _must(self, kind: str, said: str = "") -> None:
        if not self._take(kind):
            raise self._expected(said or f"`{kind}`")

    def _token(self, at: int) -> _Token:
        text = self._text
        while at < len(text) and text[at] in _SPACE:
            at += 1
        if at == len(text):
            return _Token("end", "", at, at)
        for sign in _SIGNS:
            if text.startswith(sign, at):
                return _Token(sign, sign, at, at + len(sign))
        if text[at] in "\"'":
            return self._quotation(at)
        if word := _WORD.match(text, at):
            return _Token("word", word.group(), at, word.end())
        sign = f"`{text[at]}`" if text[at].isprintable() else "a control character"
        raise invalid("where", f"where: {sign} means nothing, at character {at + 1}.")

    def _quotation(self, begin: int) -> _Token:
        text, mark = self._text, self._text[begin]
        said: list[str] = []
        at = begin + 1
        while at < len(text) and text[at] != mark:
            if text[at] == "\\" and at + 1 < len(text):
                at += 1
            if unicodedata.category(text[at]) in ("Cc", "Cs"):
                raise invalid("where", f"where: a control character is not text, at character {at + 1}.")
            said.append(text[at])
            at += 1
        if at == len(text):
            raise invalid("where", f"where: the quotation that begins at character {begin + 1} has no end.")
        return _Token("quoted", "".join(said), begin, at + 1)

    # --- what is wrong ----------------------------------------------------------------------------------------
    def _expected(self, what: str) -> StudioError:
        found = "" if self._next.kind == "end" else f", not `{self._shown(self._next.begin, self._next.end)}`"
        return self._wrong(f"{what} is expected", found)

    def _wrong(self, what: str, found: str = "") -> StudioError:
        before = self._shown(max(0, self._last_end - 24), self._last_end)
        after = f"after `{before}` " if before else ""
        return invalid("where", f"where: {after}{what} at character {self._next.begin + 1}{found}.")

    def _shown(self, begin: int, end: int) -> str:
        return self._text[begin:end].strip()[:40]
