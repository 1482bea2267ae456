"""Tokens as Scaleout's clients know them: to enrol a device, to refresh, and what `scaleout login` fetches."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods
from rest_framework.request import Request
from rest_framework.response import Response

from clients_app.registration import register_device
from clients_app.selectors import client_itself
from federation.dialects.scaleout.http import MessageView, fields_of, optional_id, text, token_of, whole
from foundation.errors import StudioError
from foundation.throttles import TOKEN_FAILURES, address_of
from projects.actors import actor_of
from projects.models import Project
from projects.tokens import command_line, tickets
from projects.tokens.choices import TokenKind
from projects.tokens.exchange import Exchanged, exchange, ticket_for_device
from projects.tokens.models import Token
from projects.tokens.services import create_token

LONGEST_HOURS = 10 * 366 * 24


class Enrol(MessageView):
    """`clients/enroll`: a device becomes a client of the token's project, by an id of its own or a new one."""

    def post(self, request: Request) -> Response:
        token = token_of(request)
        if token.kind != TokenKind.ENROLMENT:
            raise StudioError("wrong_token_kind", "Enrolling a device needs an enrolment token.", 401)
        fields = fields_of(request)
        client_id = optional_id(fields, "client_id")
        known = client_itself(client_id) if client_id else None
        own_name = known.name if known is not None and known.project_id == token.project_id else ""
        client = register_device(
            token=token,
            client_id=client_id,
            name=text(fields, "name", most=120) or own_name or f"device-{timezone.now():%y%m%d-%H%M%S}",
            dialect="scaleout",
            version=text(fields, "client_version", most=40),
        )
        made = ticket_for_device(token=token, client=client)
        return Response({"client_id": str(client.pk), **_tokens(made)})


class Refresh(MessageView):
    """`clients/token` and `/api/auth/refresh`: an access ticket for a lasting one; sometimes a new lasting one too."""

    authentication_classes: list[
        Any
    ] = []  # the ticket is in the body; a stale header must not stand in its way

    def post(self, request: Request) -> Response:
        fields = fields_of(request)
        try:
            made = exchange(text(fields, "refresh_token", most=tickets.MAX_CHARS))
        except StudioError as error:
            if error.status == 401:
                TOKEN_FAILURES.count(address_of(request))
            raise
        return Response(_tokens(made))


def _tokens(made: Exchanged) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "access_token": made.access,
        "expires_in": int(made.expires_in_s),
        "token_type": "Bearer",
    }
    return answer | ({"refresh_token": made.refresh} if made.refresh else {})


class EnrolmentTokens(MessageView):
    """`auth/enrollment-tokens`: a project's admin makes one for devices."""

    def post(self, request: Request) -> Response:
        token = token_of(request)
        fields = fields_of(request)
        hours = whole(fields, "expires_in_hours", low=1, high=LONGEST_HOURS, default=24)
        row, secret = create_token(
            actor=actor_of(request),
            kind=TokenKind.ENROLMENT,
            name=text(fields, "name", most=120) or "devices",
            project=_project_of(request, token),
            expires_at=timezone.now() + dt.timedelta(hours=hours),
        )
        assert row.expires_at is not None
        answer = {"token": tickets.lasting_ticket(row, secret), "expires_at": row.expires_at.isoformat()}
        return Response(answer, status=201)


def _project_of(request: Request, token: Token) -> Project:
    if token.project is not None:
        return token.project
    slug = request.headers.get("X-Project-Slug", "")
    project = Project.objects.visible_to(actor_of(request)).filter(slug=slug).first()
    if project is None:
        raise StudioError(
            "no_project",
            "This token reaches several projects: log in for one of them, or send X-Project-Slug.",
            401,
        )
    return project


class LoginInit(MessageView):
    """`/api/cli-auth/init`."""

    authentication_classes: list[Any] = []

    def post(self, request: Request) -> Response:
        begun = command_line.begin(address=address_of(request))
        page = reverse("command-line-login", args=[begun.request_id])
        return Response(
            {
                "requestId": begun.request_id,
                "pollToken": begun.poll_token,
                "loginUrl": f"{_base(request)}{page}",
            }
        )


class LoginStatus(MessageView):
    """`/api/cli-auth/status`: the command line asks every two seconds."""

    authentication_classes: list[Any] = []

    def get(self, request: Request) -> Response:
        asked = request.query_params
        try:
            ticket = command_line.fetch(
                request_id=asked.get("requestId", "")[:100], poll_token=asked.get("pollToken", "")[:100]
            )
        except StudioError as error:
            if error.status != 404:
                raise
            TOKEN_FAILURES.count(address_of(request))
            return Response({"status": "error", "message": error.message})
        if ticket is None:
            return Response({"status": "pending"})
        return Response({"status": "done", "refresh_token": ticket, "api_url": _base(request)})


def _base(request: Request | HttpRequest) -> str:
    return (settings.PUBLIC_URL or request.build_absolute_uri("/")).rstrip("/")


@never_cache
@login_required
@require_http_methods(["GET", "POST"])
def approve_login(request: HttpRequest, request_id: str) -> HttpResponse:
    """The page on which a person lets the command line act for them in one project."""
    actor = actor_of(request)
    waiting = command_line.asking(request_id)
    projects = Project.objects.visible_to(actor).order_by("name")
    context: dict[str, Any] = {"waiting": waiting, "projects": projects, "section": "account"}
    if request.method == "POST":
        context["chosen"] = command_line.approve(
            actor=actor, request_id=request_id, slug=request.POST.get("project", "")[:80]
        )
    return render(request, "clients/command_line_login.html", context)
