"""Devices and combiners, for the operator."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from clients_app import services
from clients_app.models import Client, Combiner, Registration
from foundation.admin import Watched
from foundation.errors import StudioError
from projects.actors import Actor, actor_of


@admin.register(Combiner)
class CombinerAdmin(Watched):
    list_display = [
        "name",
        "address",
        "tls_address",
        "labels",
        "draining",
        "version",
        "epoch",
        "started_at",
        "lease_until",
        "left_at",
    ]
    list_filter = ["draining"]
    search_fields = ["name", "address", "tls_address"]
    actions = ["drain", "take_clients"]

    @admin.action(description="Drain: give their clients to others", permissions=["view"])
    def drain(self, request: HttpRequest, queryset: QuerySet[Combiner]) -> None:
        if (actor := self._operator(request)) is not None:
            for name in queryset.values_list("name", flat=True):
                services.drain_combiner(name, actor=actor)
            self.message_user(request, "They take no new clients and give theirs away, a few a second.")

    @admin.action(description="Take clients again", permissions=["view"])
    def take_clients(self, request: HttpRequest, queryset: QuerySet[Combiner]) -> None:
        if (actor := self._operator(request)) is not None:
            for name in queryset.values_list("name", flat=True):
                services.undrain_combiner(name, actor=actor)
            self.message_user(request, "They take clients again.")

    def _operator(self, request: HttpRequest) -> Actor | None:
        actor = actor_of(request)
        try:
            services.check_operator(actor)
        except StudioError:
            self.message_user(request, "You may not drain combiners.", level="error")
            return None
        return actor


@admin.register(Client)
class ClientAdmin(Watched):
    list_display = ["name", "project", "combiner", "dialect", "version", "connected_at", "last_seen_at"]
    list_filter = ["dialect", ("connection_id", admin.EmptyFieldListFilter)]
    list_select_related = ["project", "combiner"]
    search_fields = ["name", "project__name", "project__slug"]


@admin.register(Registration)
class RegistrationAdmin(Watched):
    list_display = ["client", "token", "dialect", "version", "registered_at"]
    list_filter = ["dialect", "registered_at"]
    list_select_related = ["client", "token"]
    search_fields = ["client__name", "token__name", "client__project__slug"]
