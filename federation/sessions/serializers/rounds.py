"""Rounds and assignments in JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from federation.sessions.models import Assignment
from federation.sessions.selectors import RoundLine


class RoundOut(serializers.Serializer[RoundLine]):
    id = serializers.UUIDField(source="round.id")
    number = serializers.IntegerField(source="round.number")
    attempt = serializers.IntegerField(source="round.attempt")
    status = serializers.CharField(source="round.status")
    goal = serializers.IntegerField(source="round.goal")
    min_updates = serializers.IntegerField(source="round.min_updates")
    deadline = serializers.DateTimeField(source="round.deadline")
    created_at = serializers.DateTimeField(source="round.created_at")
    ended_at = serializers.DateTimeField(source="round.ended_at", allow_null=True)
    reason = serializers.CharField(source="round.reason")
    input_model = serializers.UUIDField(source="round.input_model_id")
    output_model = serializers.UUIDField(source="round.output_model_id", allow_null=True)
    timings = serializers.DictField(source="round.timings")
    plan = serializers.DictField(
        source="round.plan",
        help_text="what was settled as it opened: how clients were chosen (selection), the clip norm (privacy)",
    )
    epsilon = serializers.FloatField(
        source="round.epsilon",
        allow_null=True,
        help_text="privacy spent by the session up to this round; null: without differential privacy",
    )
    assignments = serializers.DictField(source="counts", child=serializers.IntegerField())
    updates = serializers.IntegerField(
        source="taken.updates", help_text="accepted for this round, whichever round asked for them"
    )
    stalest = serializers.IntegerField(
        source="taken.stalest", help_text="rounds between the oldest model that was answered and this round"
    )
    size_bytes = serializers.IntegerField(source="taken.size_bytes", help_text="of these updates")
    sent_bytes = serializers.IntegerField(source="taken.sent_bytes", help_text="of these so many travelled")
    metrics = serializers.DictField(child=serializers.FloatField())


class AssignmentOut(serializers.ModelSerializer[Assignment]):
    client = serializers.UUIDField(source="client_id")
    client_name = serializers.CharField(source="client.name")
    round = serializers.UUIDField(source="round_id")
    round_number = serializers.IntegerField(source="round.number")
    model = serializers.UUIDField(source="model_id")
    combiner = serializers.SerializerMethodField(help_text="which one accepted the update")

    class Meta:
        model = Assignment
        fields = [
            "id",
            "round",
            "round_number",
            "client",
            "client_name",
            "why",
            "model",
            "kind",
            "status",
            "deadline",
            "created_at",
            "delivered_at",
            "ended_at",
            "progress",
            "combiner",
            "num_examples",
            "weight",
            "staleness",
            "update_norm",
            "delta_norm",
            "size_bytes",
            "sent_bytes",
            "encoding",
            "sha256",
            "metadata",
            "error",
        ]

    def get_combiner(self, assignment: Assignment) -> str | None:
        """The name of the combiner that accepted the update; null before."""
        share: Any = assignment.share
        return share.combiner.name if share else None
