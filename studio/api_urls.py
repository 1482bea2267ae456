"""Everything below /api/v1/, each part listed by its own room."""

from __future__ import annotations

from django.urls import include, path

import projects.tokens.schema  # noqa: F401  (tells the OpenAPI document how tokens authenticate)

ROOMS = [
    "projects.tokens.api_urls",
    "projects.api_urls",
    "clients_app.api_urls",
    "federation.models.api_urls",
    "federation.sessions.api_urls",
    "federation.events.api_urls",
    "federation.dialects.scaleout.urls",
]

urlpatterns = [path("", include(room)) for room in ROOMS]
