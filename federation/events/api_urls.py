"""Addresses below /api/v1/."""

from __future__ import annotations

from django.urls import path

from federation.events import api

urlpatterns = [
    path("projects/<slug:slug>/events/", api.Events.as_view(), name="api-events"),
    path("projects/<slug:slug>/telemetry/", api.TelemetrySeries.as_view(), name="api-telemetry"),
]
