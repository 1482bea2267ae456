"""Compute packages, the model trail, and what was measured on each model."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from federation.models.choices import ModelKind, PackageForm
from foundation.ids import uuid7
from projects.scoping import ScopedQuerySet


class ComputePackage(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey("projects.Project", models.CASCADE, related_name="packages")
    name = models.CharField(max_length=120)
    description = models.TextField(blank=True, max_length=2000)
    file_name = models.CharField(max_length=200)
    key = models.CharField(max_length=200, help_text="where the archive is in storage")
    sha256 = models.CharField(max_length=64)
    size_bytes = models.BigIntegerField()
    project_file = models.CharField(max_length=40)
    form = models.CharField(
        max_length=10, choices=PackageForm.choices, default=PackageForm.COMMAND, help_text="how it is started"
    )
    helper = models.CharField(
        max_length=40, blank=True, help_text="how FEDn's and Scaleout's clients are to read model files"
    )
    entry_points = models.JSONField(default=dict)
    python_env = models.JSONField(null=True, blank=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["project", "name"], name="package_name_once")]

    def __str__(self) -> str:
        return self.name


class ProjectDefaults(models.Model):
    """What a project's sessions start from when their request names nothing: FEDn's active package and model."""

    project = models.OneToOneField(
        "projects.Project", models.CASCADE, primary_key=True, related_name="model_defaults"
    )
    helper = models.CharField(max_length=40, blank=True)
    package = models.ForeignKey(ComputePackage, models.SET_NULL, null=True, blank=True, related_name="+")
    model = models.ForeignKey("Model", models.SET_NULL, null=True, blank=True, related_name="+")

    objects = ScopedQuerySet.as_manager()


class Model(models.Model):
    """One model of the trail: a seed, or what a round made of its parent. Stored as canonical safetensors."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey("projects.Project", models.CASCADE, related_name="trail")
    kind = models.CharField(max_length=10, choices=ModelKind.choices)
    name = models.CharField(max_length=120)
    parent = models.ForeignKey("self", models.SET_NULL, null=True, blank=True, related_name="children")
    session = models.ForeignKey(
        "federation_sessions.Session", models.SET_NULL, null=True, blank=True, related_name="trail"
    )
    round_number = models.PositiveIntegerField(null=True, blank=True)
    key = models.CharField(max_length=200)
    sha256 = models.CharField(max_length=64)
    size_bytes = models.BigIntegerField()
    layout = models.JSONField(help_text="[{name, dtype, shape}, …] in file order")
    metadata = models.JSONField(default=dict, blank=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.name


class Validation(models.Model):
    """The whole JSON that one client sent for one model."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey("projects.Project", models.CASCADE, related_name="validations")
    model = models.ForeignKey(Model, models.CASCADE, related_name="validations")
    client = models.ForeignKey("clients_app.Client", models.SET_NULL, null=True, related_name="validations")
    client_name = models.CharField(max_length=120, blank=True)
    session = models.ForeignKey(
        "federation_sessions.Session", models.SET_NULL, null=True, related_name="validations"
    )
    round_number = models.PositiveIntegerField(null=True)
    assignment_id = models.UUIDField(
        unique=True, help_text="a second report of the same work changes nothing"
    )
    data = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]


class Metric(models.Model):
    """One scalar: of a validation (per client, or the weighted mean where client is empty) or logged in training."""

    class Source(models.TextChoices):
        VALIDATION = "validation"
        VALIDATION_MEAN = "validation_mean"
        TRAINING = "training"
        LOGGED = "logged"

    project = models.ForeignKey("projects.Project", models.CASCADE, related_name="metrics")
    model = models.ForeignKey(Model, models.CASCADE, null=True, related_name="metrics")
    session = models.ForeignKey(
        "federation_sessions.Session", models.SET_NULL, null=True, related_name="metrics"
    )
    client = models.ForeignKey("clients_app.Client", models.SET_NULL, null=True, related_name="metrics")
    round_number = models.PositiveIntegerField(null=True)
    source = models.CharField(max_length=16, choices=Source.choices)
    name = models.CharField(max_length=120)
    value = models.FloatField()
    weight = models.FloatField(default=1.0, help_text="examples behind the value")
    step = models.BigIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["session", "source", "name", "round_number"], name="metric_curve"),
            models.Index(fields=["model", "source"], name="metric_of_model"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["model", "name"],
                condition=models.Q(source="validation_mean"),
                name="metric_one_mean",
            )
        ]
