"""Sessions, rounds, shares and assignments, for the operator."""

from __future__ import annotations

from django.contrib import admin

from federation.sessions.models import Assignment, CombinerShare, Command, Order, Round, Session
from foundation.admin import Watched


@admin.register(Session)
class SessionAdmin(Watched):
    list_display = ["name", "project", "status", "rounds_done", "rounds_wanted", "waiting_for", "created_at"]
    list_filter = ["status", "created_at"]
    list_select_related = ["project"]
    search_fields = ["name", "project__name", "project__slug"]


@admin.register(Round)
class RoundAdmin(Watched):
    list_display = ["session", "number", "attempt", "status", "project", "deadline", "reason", "ended_at"]
    list_filter = ["status", "created_at"]
    list_select_related = ["session", "project"]
    search_fields = ["session__name", "project__slug"]


@admin.register(CombinerShare)
class CombinerShareAdmin(Watched):
    list_display = ["round", "combiner", "status", "updates", "weight", "created_at", "ended_at"]
    list_filter = ["status", "created_at"]
    list_select_related = ["round__session", "combiner"]
    search_fields = ["combiner__name", "project__slug"]


@admin.register(Assignment)
class AssignmentAdmin(Watched):
    list_display = ["round", "client", "kind", "status", "num_examples", "deadline", "ended_at", "error"]
    list_filter = ["status", "kind", "created_at"]
    list_select_related = ["round__session", "client"]
    search_fields = ["client__name", "project__slug"]


@admin.register(Command)
class CommandAdmin(Watched):
    list_display = ["kind", "name", "project", "model", "created_by", "created_at", "deadline"]
    list_filter = ["kind", "created_at"]
    list_select_related = ["project", "model", "created_by"]
    search_fields = ["name", "project__slug"]


@admin.register(Order)
class OrderAdmin(Watched):
    list_display = ["command", "client", "status", "created_at", "started_at", "ended_at", "reason"]
    list_filter = ["status", "created_at"]
    list_select_related = ["command", "client"]
    search_fields = ["client__name", "project__slug"]
