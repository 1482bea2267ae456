"""How rows are looked at by the operator. What services write is read-only here: a form would pass by their rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from foundation.models import IdempotentAnswer

if TYPE_CHECKING:
    AnyModelAdmin = admin.ModelAdmin[Any]
else:
    AnyModelAdmin = admin.ModelAdmin


class Watched(AnyModelAdmin):
    """A row type to look at. Never a second count of a big table, no row added, changed or deleted."""

    show_full_result_count = False
    list_per_page = 50

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(IdempotentAnswer)
class IdempotentAnswerAdmin(Watched):
    list_display = ["route", "actor", "status", "created_at"]
    list_filter = ["status"]
    search_fields = ["actor", "route"]
    exclude = ["body", "body_sha256", "key"]
