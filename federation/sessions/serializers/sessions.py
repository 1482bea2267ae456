"""Sessions in JSON."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from federation.aggregation.aggregators import AGGREGATORS
from federation.sessions.config import SessionConfig
from federation.sessions.models import Session
from federation.sessions.serializers.settings import (
    HIDDEN,
    AsynchronousSettings,
    PrivacySettings,
    SelectionSettings,
    SettingsOut,
    Target,
    Word,
    plain_fields,
)


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

    @extend_schema_field(SettingsOut)
    def get_config(self, session: Session) -> dict[str, Any]:
        """All settings, also of a session from before there were some of them; without what only the client of
        another dialect asks back."""
        config = SessionConfig.from_json(session.config).to_json()
        return {name: value for name, value in config.items() if name not in HIDDEN}


class SessionIn(serializers.Serializer[Any]):
    """The fields that `federation.sessions.config.parse_spec` reads and checks."""

    name = serializers.CharField(max_length=120, required=False, allow_blank=True, default="")
    seed_model = serializers.UUIDField()
    package = serializers.UUIDField(required=False, allow_null=True, default=None)
    rounds = serializers.IntegerField(required=False, default=5)
    client_ids = serializers.ListField(
        child=serializers.UUIDField(),
        required=False,
        help_text="only these take part; empty: whoever is online",
    )
    client_settings = serializers.DictField(required=False)
    aggregator = Word(
        choices=[(name, one.title) for name, one in AGGREGATORS.items()],
        required=False,
        help_text="How updates become a model. Default: fedavg.",
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
    target = Target(required=False, allow_null=True)
    selection = SelectionSettings(required=False)
    asynchronous = AsynchronousSettings(
        required=False, allow_null=True, help_text="null: rounds are synchronous"
    )
    privacy = PrivacySettings(required=False, allow_null=True, help_text="null: without differential privacy")
    start = serializers.BooleanField(required=False, default=True)

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        declared = super().get_fields()
        start = declared.pop("start")
        return declared | plain_fields() | {"start": start}


class ContinueIn(serializers.Serializer[Any]):
    rounds = serializers.IntegerField()
