"""The devices and the combiners they meet."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from clients_app.choices import Draining
from foundation.ids import uuid7
from projects.scoping import ScopedQuerySet


class CombinerQuerySet(models.QuerySet["Combiner"]):
    def alive(self) -> CombinerQuerySet:
        return self.filter(lease_until__gt=Now())

    def taking(self) -> CombinerQuerySet:
        """Those that take new clients: alive, and not being drained."""
        return self.alive().filter(draining=Draining.NO)


class Combiner(models.Model):
    """A server that clients stream to. It serves every project; `epoch` rises each time it starts."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=80, unique=True)
    epoch = models.PositiveIntegerField(default=0)
    spool_id = models.CharField(max_length=32, blank=True)
    address = models.CharField(max_length=255, blank=True, help_text="host:port of the plain-text listener")
    tls_address = models.CharField(max_length=255, blank=True, help_text="host:port of the TLS listener")
    labels = models.JSONField(default=dict, blank=True)
    version = models.CharField(max_length=40, blank=True)
    load = models.JSONField(default=dict, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    draining = models.CharField(max_length=10, choices=Draining.choices, blank=True, default=Draining.NO)
    left_at = models.DateTimeField(
        null=True, blank=True, help_text="when it was told that it had stopped, or gone silent"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = CombinerQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class ClientQuerySet(ScopedQuerySet["Client"]):
    def online(self) -> ClientQuerySet:
        """Connected to a combiner whose lease is live."""
        return self.filter(
            connection_id__gt="",
            combiner__lease_until__gt=Now(),
            connection_epoch=models.F("combiner__epoch"),
        )


class Client(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey("projects.Project", models.CASCADE, related_name="clients")
    name = models.CharField(max_length=120)
    # A connection is (combiner, epoch, connection id); empty id: none.
    combiner = models.ForeignKey(Combiner, models.SET_NULL, null=True, blank=True, related_name="clients")
    connection_epoch = models.PositiveIntegerField(default=0)
    connection_id = models.CharField(max_length=36, blank=True, default="")
    connected_at = models.DateTimeField(null=True, blank=True)
    last_seen_at = models.DateTimeField(null=True, blank=True)
    dialect = models.CharField(max_length=20, blank=True)
    version = models.CharField(max_length=40, blank=True)
    attributes = models.JSONField(default=dict, blank=True)
    pin = models.JSONField(
        default=dict, blank=True, help_text="labels that a combiner must have to be given to this client"
    )
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ClientQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["project", "name"], name="client_name_once")]
        indexes = [
            models.Index(fields=["combiner"], name="client_connected", condition=Q(connection_id__gt="")),
            models.Index(fields=["connected_at"], name="client_came", condition=Q(connection_id__gt="")),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def dialect_name(self) -> str:
        """What it speaks, as a person says it; a dash before it first came."""
        return {"": "–", "native": "Studio", "fedn": "FEDn", "scaleout": "Scaleout"}.get(
            self.dialect, self.dialect
        )


class Registration(models.Model):
    """A device that registered itself over authenticated HTTP, and the token it did so with. A call that can carry no
    token (a published client on a plain channel) is believed by this row, as long as that token is alive."""

    client = models.OneToOneField(Client, models.CASCADE, primary_key=True, related_name="registration")
    token = models.ForeignKey("tokens.Token", models.CASCADE, related_name="registrations")
    dialect = models.CharField(max_length=20)
    version = models.CharField(max_length=40, blank=True)
    registered_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.client} by {self.token}"
