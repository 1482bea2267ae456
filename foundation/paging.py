"""Keyset paging: a page is a key to continue from, so that it stays right while rows come and go."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from rest_framework.exceptions import NotFound
from rest_framework.pagination import Cursor, CursorPagination
from rest_framework.request import Request
from rest_framework.views import APIView

from foundation.errors import invalid


class KeysetPagination(CursorPagination):
    """`?limit=` rows (1 to 500, 50 unless told) from `?cursor=` on. Ids sort by time: newest first.

    A view may name another key in `keyset_ordering`; it must be unique within the list.
    """

    page_size = 50
    max_page_size = 500
    page_size_query_param = "limit"
    ordering = "-id"
    template = "rest_framework/pagination/previous_and_next.html"

    def get_ordering(self, request: Request, queryset: QuerySet[Any], view: APIView) -> tuple[str, ...]:
        return (getattr(view, "keyset_ordering", None) or self.ordering,)

    def get_page_size(self, request: Request) -> int:
        asked = request.query_params.get(self.page_size_query_param)
        if asked is None:
            return self.page_size
        if not asked.isascii() or not asked.isdigit() or not int(asked[:9]) >= 1:
            raise invalid("limit", f"limit is a number of rows from 1 to {self.max_page_size}.")
        return min(int(asked[:9]), self.max_page_size)

    def decode_cursor(self, request: Request) -> Cursor | None:
        try:
            return super().decode_cursor(request)
        except NotFound:
            raise _bad_cursor() from None

    def paginate_queryset(
        self, queryset: Any, request: Request, view: APIView | None = None
    ) -> list[Any] | None:
        cursor = self.decode_cursor(request)
        if cursor is not None and cursor.position is not None:
            assert view is not None
            key = self.get_ordering(request, queryset, view)[0].lstrip("-")
            try:
                queryset.model._meta.get_field(key).get_prep_value(
                    queryset.model._meta.get_field(key).to_python(cursor.position)
                )
            except (ValidationError, ValueError, TypeError):
                raise _bad_cursor() from None
        return super().paginate_queryset(queryset, request, view)


def _bad_cursor() -> Exception:
    return invalid("cursor", "This cursor is none of ours: take the address in next or previous as it is.")
