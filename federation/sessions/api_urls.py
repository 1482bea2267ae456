"""Addresses below /api/v1/."""

from __future__ import annotations

from django.urls import path

from federation.sessions import api

ONE = "projects/<slug:slug>/sessions/<uuid:pk>/"

urlpatterns = [
    path("projects/<slug:slug>/sessions/", api.Sessions.as_view(), name="api-sessions"),
    path(ONE, api.OneSession.as_view(), name="api-session"),
    path(f"{ONE}start/", api.StartSession.as_view(), name="api-session-start"),
    path(f"{ONE}stop/", api.StopSession.as_view(), name="api-session-stop"),
    path(f"{ONE}continue/", api.ContinueSession.as_view(), name="api-session-continue"),
    path(f"{ONE}rounds/", api.Rounds.as_view(), name="api-rounds"),
    path(f"{ONE}assignments/", api.Assignments.as_view(), name="api-assignments"),
]
