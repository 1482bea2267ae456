"""How events and telemetry look over REST; an event as in `federation.events.wire`."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from federation.events.models import Event, Telemetry
from federation.events.wire import as_wire


class EventOut(serializers.Serializer[Event]):
    """One event; the same object comes over the live socket."""

    id = serializers.IntegerField()
    at = serializers.DateTimeField()
    level = serializers.ChoiceField(choices=Event.Level.choices)
    kind = serializers.CharField()
    message = serializers.CharField()
    session = serializers.UUIDField(allow_null=True)
    round = serializers.IntegerField(allow_null=True)
    client = serializers.UUIDField(allow_null=True)
    combiner = serializers.UUIDField(allow_null=True)
    data = serializers.JSONField()  # type: ignore[assignment]  # the field is named as the row's

    def to_representation(self, instance: Event) -> dict[str, Any]:
        return as_wire(instance)


class TelemetryOut(serializers.ModelSerializer[Telemetry]):
    class Meta:
        model = Telemetry
        fields = ["id", "client", "at", "name", "value"]
