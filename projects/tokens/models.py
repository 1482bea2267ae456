"""Tokens: a public key id and a secret of which only an HMAC is kept."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from foundation.ids import uuid7
from projects.scoping import ScopedQuerySet
from projects.tokens.choices import TokenKind


class Token(models.Model):
    """`stu_<key_id>_<secret>`; `digest` is HMAC-SHA256 of the secret under the pepper numbered `pepper`."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    kind = models.CharField(max_length=10, choices=TokenKind.choices)
    name = models.CharField(max_length=120)
    key_id = models.CharField(max_length=16, unique=True)
    digest = models.CharField(max_length=64)
    pepper = models.PositiveSmallIntegerField()
    scopes = models.JSONField(default=list)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, null=True, related_name="tokens")
    project = models.ForeignKey("projects.Project", models.CASCADE, null=True, related_name="tokens")
    client = models.ForeignKey("clients_app.Client", models.CASCADE, null=True, related_name="tokens")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = ScopedQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                name="token_belongs",
                condition=models.Q(kind="user", user__isnull=False, project=None, client=None)
                | models.Q(kind__in=["project", "enrolment"], project__isnull=False, client=None)
                | models.Q(kind="client", project__isnull=False, client__isnull=False),
            )
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.kind} {self.key_id})"
