"""Addresses of Scaleout's log-in, outside /api/v1/."""

from __future__ import annotations

from django.urls import path, re_path

from federation.dialects.scaleout import enrolment

urlpatterns = [
    re_path(r"^api/auth/refresh/?$", enrolment.Refresh.as_view(), name="scaleout-refresh"),
    re_path(r"^api/cli-auth/init/?$", enrolment.LoginInit.as_view(), name="scaleout-login-init"),
    re_path(r"^api/cli-auth/status/?$", enrolment.LoginStatus.as_view(), name="scaleout-login-status"),
    path("login/command-line/<str:request_id>/", enrolment.approve_login, name="command-line-login"),
]
