"""Addresses below /api/v1/."""

from __future__ import annotations

from django.urls import path

from projects.tokens import api

urlpatterns = [
    path("me/", api.Me.as_view(), name="api-me"),
    path("auth/token/", api.LogIn.as_view(), name="api-auth-token"),
    path("tokens/", api.Tokens.as_view(), name="api-tokens"),
    path("tokens/<uuid:pk>/", api.OneToken.as_view(), name="api-token"),
    path("tokens/<uuid:pk>/rotate/", api.RotateToken.as_view(), name="api-token-rotate"),
]
