"""Tokens, for the operator: looked at and revoked, never shown."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from foundation.admin import Watched
from projects.models import User
from projects.tokens import services
from projects.tokens.models import Token


@admin.register(Token)
class TokenAdmin(Watched):
    list_display = [
        "name",
        "kind",
        "key_id",
        "user",
        "project",
        "client",
        "created_at",
        "expires_at",
        "last_used_at",
        "revoked_at",
    ]
    list_filter = ["kind", ("revoked_at", admin.EmptyFieldListFilter), "expires_at"]
    list_select_related = ["user", "project", "client"]
    search_fields = ["name", "key_id", "user__username", "user__email", "project__slug", "client__name"]
    exclude = ["digest", "pepper"]
    actions = ["revoke"]

    @admin.action(description="Revoke these tokens", permissions=["view"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Token]) -> None:
        if not isinstance(request.user, User) or not request.user.has_perm("tokens.change_token"):
            self.message_user(request, "You may not revoke tokens.", level="error")
            return
        count = services.revoke_as_operator(operator=request.user, tokens=queryset)
        self.message_user(request, f"{count} revoked.")
