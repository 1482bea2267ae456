"""REST: the event log and telemetry series."""

from __future__ import annotations

from typing import Any

import django_filters
from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.generics import ListAPIView

from federation.events import selectors
from federation.events.models import Event, Telemetry
from federation.events.serializers import EventOut, TelemetryOut
from foundation.errors import invalid
from projects.actors import actor_of
from projects.selectors import project_by_slug

_MAX_ID = 2**63 - 1


class EventFilter(django_filters.FilterSet):  # type: ignore[misc]
    after = django_filters.NumberFilter(
        field_name="id",
        lookup_expr="gt",
        min_value=0,
        max_value=_MAX_ID,
        help_text="only events with a higher id",
    )
    level = django_filters.ChoiceFilter(
        choices=Event.Level.choices, method="from_level", help_text="at least this grave"
    )
    kind = django_filters.CharFilter(
        method="of_kind", max_length=60, help_text="round.finished, or round for all below it"
    )
    session = django_filters.UUIDFilter(field_name="session_id")
    client = django_filters.UUIDFilter(field_name="client_id")
    combiner = django_filters.UUIDFilter(field_name="combiner_id")
    round = django_filters.NumberFilter(field_name="round_number", min_value=0, max_value=2**31 - 1)

    class Meta:
        model = Event
        fields: list[str] = []

    def from_level(self, rows: QuerySet[Event], name: str, value: str) -> QuerySet[Event]:
        return selectors.from_level(rows, value)

    def of_kind(self, rows: QuerySet[Event], name: str, value: str) -> QuerySet[Event]:
        return selectors.of_kind(rows, value)


_ORDER = OpenApiParameter(
    "order", OpenApiTypes.STR, enum=["newest", "oldest"], description="newest first unless told"
)


@extend_schema(tags=["events"], parameters=[_ORDER])
class Events(ListAPIView[Event]):
    """What happened in the project: session, round, client and combiner events."""

    serializer_class = EventOut
    queryset = Event.objects.none()
    filterset_class = EventFilter

    @property
    def keyset_ordering(self) -> str:
        order = self.request.query_params.get("order", "newest") if self.request else "newest"
        if order not in ("newest", "oldest"):
            raise invalid("order", "order is newest or oldest.")
        return "id" if order == "oldest" else "-id"

    def get_queryset(self) -> QuerySet[Event]:
        actor = actor_of(self.request)
        return selectors.events_of(actor, project_by_slug(actor, self.kwargs["slug"]))


class TelemetryFilter(django_filters.FilterSet):  # type: ignore[misc]
    client = django_filters.UUIDFilter(field_name="client_id")
    name = django_filters.CharFilter(max_length=60)
    since = django_filters.IsoDateTimeFilter(field_name="at", lookup_expr="gte")
    until = django_filters.IsoDateTimeFilter(field_name="at", lookup_expr="lt")

    class Meta:
        model = Telemetry
        fields: list[str] = []


@extend_schema(tags=["events"])
class TelemetrySeries(ListAPIView[Telemetry]):
    """Samples that clients sent, such as memory_bytes, newest first."""

    serializer_class = TelemetryOut
    queryset = Telemetry.objects.none()
    filterset_class = TelemetryFilter

    def get_queryset(self) -> QuerySet[Any]:
        actor = actor_of(self.request)
        return selectors.telemetry_of(actor, project_by_slug(actor, self.kwargs["slug"]))
