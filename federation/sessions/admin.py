"""Sessions, rounds, shares and assignments, for the operator."""

from __future__ import annotations

from django.contrib import admin

from federation.sessions.models import (
    Assignment,
    CombinerShare,
    Command,
    Order,
    ReductionPart,
    Round,
    SelectionScore,
    Session,
)
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


@admin.register(SelectionScore)
class SelectionScoreAdmin(Watched):
    list_display = ["session", "client", "utility", "duration_s", "last_round", "times"]
    list_select_related = ["session", "client"]
    search_fields = ["session__name", "client__name"]


@admin.register(ReductionPart)
class ReductionPartAdmin(Watched):
    list_display = ["round", "phase", "begin", "end", "worker", "until", "key"]
    list_filter = ["phase"]
    list_select_related = ["round__session"]
    search_fields = ["round__session__name"]
