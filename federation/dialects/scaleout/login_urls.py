"""Addresses of Scaleout's log-in, outside /api/v1/."""

from __future__ import annotations

from django.urls import path, re_path

from federation.dialects.scaleout import enrolment, login

urlpatterns = [
    re_path(r"^api/auth/refresh/?$", enrolment.Refresh.as_view(), name="scaleout-refresh"),
    re_path(r"^api/cli-auth/init/?$", login.Init.as_view(), name="scaleout-login-init"),
    re_path(r"^api/cli-auth/status/?$", login.Status.as_view(), name="scaleout-login-status"),
    path("login/command-line/<str:request_id>/", login.approve, name="command-line-login"),
]
