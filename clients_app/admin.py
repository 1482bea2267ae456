"""Devices and combiners, for the operator."""

from __future__ import annotations

from django.contrib import admin

from clients_app.models import Client, Combiner, Registration
from foundation.admin import Watched


@admin.register(Combiner)
class CombinerAdmin(Watched):
    list_display = ["name", "address", "tls_address", "version", "epoch", "started_at", "lease_until"]
    search_fields = ["name", "address", "tls_address"]


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
