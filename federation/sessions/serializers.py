"""How sessions, rounds and assignments look in JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from federation.aggregation.aggregators import AGGREGATORS
from federation.sessions.models import Assignment, Session
from federation.sessions.selectors import RoundLine


class SessionOut(serializers.ModelSerializer[Session]):
    package = serializers.UUIDField(source="package_id", allow_null=True)
    seed_model = serializers.UUIDField(source="seed_model_id")
    current_model = serializers.UUIDField(source="current_model_id")
    stop_asked = serializers.BooleanField()
    config = serializers.SerializerMethodField()

    class Meta:
        model = Session
        fields = [
            "id",
            "name",
            "status",
            "stop_asked",
            "waiting_for",
            "waiting_until",
            "reason",
            "rounds_done",
            "rounds_wanted",
            "failed_in_row",
            "seed_model",
            "current_model",
            "package",
            "config",
            "created_at",
            "started_at",
            "ended_at",
        ]

    def get_config(self, session: Session) -> dict[str, Any]:
        """Without what only the client of another dialect asks back."""
        return {name: value for name, value in session.config.items() if name != "as_sent"}


class TargetIn(serializers.Serializer[Any]):
    metric = serializers.CharField(max_length=120)
    value = serializers.FloatField()
    direction = serializers.ChoiceField(choices=["max", "min"], default="max")


class SessionIn(serializers.Serializer[Any]):
    """The fields that `federation.sessions.config.parse_spec` reads and checks."""

    name = serializers.CharField(max_length=120, required=False, allow_blank=True, default="")
    seed_model = serializers.UUIDField()
    package = serializers.UUIDField(required=False, allow_null=True, default=None)
    rounds = serializers.IntegerField(required=False, default=5)
    round_timeout_s = serializers.FloatField(required=False)
    min_clients = serializers.IntegerField(required=False)
    requested_clients = serializers.IntegerField(required=False, allow_null=True)
    min_updates = serializers.IntegerField(required=False, allow_null=True)
    goal = serializers.IntegerField(
        required=False, allow_null=True, help_text="a round may end after so many updates"
    )
    client_ids = serializers.ListField(
        child=serializers.UUIDField(),
        required=False,
        help_text="only these take part; empty: whoever is online",
    )
    reserves = serializers.IntegerField(required=False)
    validate = serializers.BooleanField(required=False)  # type: ignore[assignment]  # DRF takes fields off the class
    client_settings = serializers.DictField(required=False)
    aggregator = serializers.ChoiceField(
        choices=[(name, one.title) for name, one in AGGREGATORS.items()],
        required=False,
        error_messages={
            "invalid_choice": "There is no aggregator called “{input}”; there are "
            f"{' and '.join(AGGREGATORS)}."
        },
    )
    aggregator_kwargs = serializers.DictField(
        required=False,
        allow_null=True,
        help_text="The aggregator's arguments, those left out by default. "
        + " ".join(
            f"{one.name}: {', '.join(argument.name for argument in one.arguments) or 'none'}."
            for one in AGGREGATORS.values()
        ),
    )
    target = TargetIn(required=False, allow_null=True)
    max_failed_rounds = serializers.IntegerField(required=False)
    start_timeout_s = serializers.FloatField(required=False)
    closing_timeout_s = serializers.FloatField(required=False)
    lost_after_s = serializers.FloatField(required=False)
    start = serializers.BooleanField(required=False, default=True)


class ContinueIn(serializers.Serializer[Any]):
    rounds = serializers.IntegerField()


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
    assignments = serializers.DictField(source="counts", child=serializers.IntegerField())
    metrics = serializers.DictField(child=serializers.FloatField())


class AssignmentOut(serializers.ModelSerializer[Assignment]):
    client = serializers.UUIDField(source="client_id")
    client_name = serializers.CharField(source="client.name")
    round = serializers.UUIDField(source="round_id")
    round_number = serializers.IntegerField(source="round.number")
    model = serializers.UUIDField(source="model_id")

    class Meta:
        model = Assignment
        fields = [
            "id",
            "round",
            "round_number",
            "client",
            "client_name",
            "model",
            "kind",
            "status",
            "deadline",
            "created_at",
            "delivered_at",
            "ended_at",
            "progress",
            "num_examples",
            "update_norm",
            "size_bytes",
            "sha256",
            "metadata",
            "error",
        ]
