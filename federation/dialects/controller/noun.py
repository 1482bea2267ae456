"""One kind of thing that the controller lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from federation.dialects.controller.asked import Filter, Page, narrowed
from federation.dialects.controller.callers import Caller
from foundation.errors import StudioError

Shape = dict[str, Any]


@dataclass(frozen=True)
class Noun:
    """`rows` is a queryset of what the caller may see; `shaped` makes objects of a page of it in a fixed number of
    queries; `find` the lookup of one row by what the address calls it (None: there can be no such)."""

    name: str
    rows: Callable[[Caller], Any]
    shaped: Callable[[Caller, Sequence[Any]], list[Shape]]
    find: Callable[[Caller, str], dict[str, Any] | None]
    filters: Mapping[str, Filter]
    order: Mapping[str, str] = field(default_factory=dict)
    newest: str = "created_at"

    def matching(self, caller: Caller, given: Mapping[str, Any]) -> Any:
        return narrowed(self.rows(caller), given, self.filters, self.name)

    def listed(self, caller: Caller, given: Mapping[str, Any], page: Page) -> dict[str, Any]:
        """`count` first, `result` second: the command lines unpack the values by place."""
        rows = self.matching(caller, given)
        column = self.order.get(page.key, self.newest)
        sign = "-" if page.descending else ""
        picked = rows.order_by(f"{sign}{column}", f"{sign}pk")[page.skip : page.skip + page.limit]
        return {"count": rows.count(), "result": self.shaped(caller, list(picked))}

    def row(self, caller: Caller, name: str) -> Any:
        """Raises StudioError 404 in the words that the clients know."""
        where = self.find(caller, name)
        found = None if where is None else self.rows(caller).filter(**where).first()
        if found is None:
            raise StudioError("not_found", f"Entity with id: {name[:200]} not found", 404)
        return found

    def one(self, caller: Caller, name: str) -> Shape:
        return self.shaped(caller, [self.row(caller, name)])[0]
