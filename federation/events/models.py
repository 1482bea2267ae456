"""What happened, to whom, how grave; and telemetry series."""

from __future__ import annotations

from django.db import models

from projects.scoping import ScopedQuerySet


class Event(models.Model):
    class Level(models.TextChoices):
        DEBUG = "debug"
        INFO = "info"
        WARNING = "warning"
        ERROR = "error"

    project = models.ForeignKey("projects.Project", models.CASCADE, related_name="events")
    at = models.DateTimeField(auto_now_add=True)
    level = models.CharField(max_length=8, choices=Level.choices, default=Level.INFO)
    kind = models.CharField(max_length=60, help_text="dotted, such as round.finished")
    message = models.CharField(max_length=1000)
    session = models.ForeignKey(
        "federation_sessions.Session", models.SET_NULL, null=True, blank=True, related_name="events"
    )
    round_number = models.PositiveIntegerField(null=True, blank=True)
    client = models.ForeignKey(
        "clients_app.Client", models.SET_NULL, null=True, blank=True, related_name="events"
    )
    combiner = models.ForeignKey(
        "clients_app.Combiner", models.SET_NULL, null=True, blank=True, related_name="events"
    )
    data = models.JSONField(default=dict, blank=True)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["project", "id"], name="event_of_project")]

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class Telemetry(models.Model):
    """One sample of a client's series, such as memory_bytes. Written in batches."""

    project = models.ForeignKey("projects.Project", models.CASCADE, related_name="telemetry")
    client = models.ForeignKey("clients_app.Client", models.CASCADE, related_name="telemetry")
    at = models.DateTimeField()
    name = models.CharField(max_length=60)
    value = models.FloatField()

    objects = ScopedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["client", "name", "at"], name="telemetry_series")]
