"""Events and telemetry, for the operator."""

from __future__ import annotations

from django.contrib import admin

from federation.events.models import Event, Telemetry
from foundation.admin import Watched


@admin.register(Event)
class EventAdmin(Watched):
    list_display = ["at", "level", "kind", "message", "project", "session", "client"]
    list_filter = ["level", "at"]
    list_select_related = ["project", "session", "client"]
    search_fields = ["kind", "message", "project__slug"]


@admin.register(Telemetry)
class TelemetryAdmin(Watched):
    list_display = ["at", "project", "client", "name", "value"]
    list_filter = ["at"]
    list_select_related = ["project", "client"]
    search_fields = ["name", "client__name", "project__slug"]
