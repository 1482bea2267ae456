"""Rows that belong to no room: answers kept for repeated requests."""

from __future__ import annotations

from django.db import models


class IdempotentAnswer(models.Model):
    """The answer to a creating request that named an `Idempotency-Key`. Kept for 24 hours."""

    actor = models.CharField(max_length=80)
    route = models.CharField(max_length=200)
    key = models.CharField(max_length=200)
    body_sha256 = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField(null=True, help_text="empty while the first request is running")
    body = models.JSONField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["actor", "route", "key"], name="idempotent_once")]
