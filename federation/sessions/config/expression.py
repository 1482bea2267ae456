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

import unicodedata
from dataclasses import dataclass

from federation.sessions.config.conditions import (
    RESERVED,
    WORD,
    Both,
    Comparison,
    Either,
    Expression,
    Has,
    Not,
    OneOf,
    Tag,
    Value,
)
from foundation.errors import StudioError, invalid

MAX_CHARS = 1000
MAX_DEPTH = 20

_SIGNS = ("<=", ">=", "!=", "==", "=", "<", ">", "(", ")", ",", ":")
_ORDER = ("=", "!=", "<", "<=", ">", ">=")
_SPACE = " \t\r\n"


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
        return self._next.text.lower() in RESERVED

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
        if word := WORD.match(text, at):
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
