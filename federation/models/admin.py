"""Packages, the model trail and what was measured, for the operator."""

from __future__ import annotations

from django.contrib import admin

from federation.models.models import ComputePackage, Metric, Model, ProjectDefaults, Validation
from foundation.admin import Watched


@admin.register(ComputePackage)
class ComputePackageAdmin(Watched):
    list_display = ["name", "project", "file_name", "size_bytes", "project_file", "created_by", "created_at"]
    list_filter = ["project_file", "created_at"]
    list_select_related = ["project", "created_by"]
    search_fields = ["name", "sha256", "project__slug"]


@admin.register(Model)
class ModelAdmin(Watched):
    list_display = ["name", "kind", "project", "session", "round_number", "size_bytes", "created_at"]
    list_filter = ["kind", "created_at"]
    list_select_related = ["project", "session"]
    search_fields = ["name", "sha256", "project__slug"]


@admin.register(Validation)
class ValidationAdmin(Watched):
    list_display = ["created_at", "project", "model", "client_name", "session", "round_number"]
    list_filter = ["created_at"]
    list_select_related = ["project", "model", "session"]
    search_fields = ["client_name", "project__slug"]


@admin.register(Metric)
class MetricAdmin(Watched):
    list_display = ["name", "value", "weight", "source", "project", "model", "client", "round_number"]
    list_filter = ["source", "created_at"]
    list_select_related = ["project", "model", "client"]
    search_fields = ["name", "project__slug"]


@admin.register(ProjectDefaults)
class ProjectDefaultsAdmin(Watched):
    list_display = ["project", "package", "model", "helper"]
    list_select_related = ["project", "package", "model"]
    search_fields = ["project__name", "project__slug"]
