"""`scaleout login`: begun by the command line, approved by a person on a page, fetched once."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from federation.dialects.controller.view import MessageView, answer
from foundation.errors import StudioError
from foundation.throttles import TOKEN_FAILURES, address_of
from projects.actors import actor_of
from projects.selectors import projects_of
from projects.tokens import command_line


class Init(MessageView):
    """`/api/cli-auth/init`."""

    def admitted(self, request: HttpRequest, address: dict[str, Any]) -> None:
        """Anybody may begin."""

    def post(self, request: HttpRequest, nobody: None) -> HttpResponseBase:
        begun = command_line.begin(address=address_of(request))
        page = reverse("command-line-login", args=[begun.request_id])
        return answer(
            {
                "requestId": begun.request_id,
                "pollToken": begun.poll_token,
                "loginUrl": f"{_base(request)}{page}",
            }
        )


class Status(MessageView):
    """`/api/cli-auth/status`: the command line asks every two seconds."""

    def admitted(self, request: HttpRequest, address: dict[str, Any]) -> None:
        """Whoever has the poll token."""

    def get(self, request: HttpRequest, nobody: None) -> HttpResponseBase:
        asked = request.GET
        try:
            ticket = command_line.fetch(
                request_id=asked.get("requestId", "")[:100], poll_token=asked.get("pollToken", "")[:100]
            )
        except StudioError as error:
            if error.status != 404:
                raise
            TOKEN_FAILURES.count(address_of(request))
            return answer({"status": "error", "message": error.message})
        if ticket is None:
            return answer({"status": "pending"})
        return answer({"status": "done", "refresh_token": ticket, "api_url": _base(request)})


def _base(request: HttpRequest) -> str:
    return (settings.PUBLIC_URL or request.build_absolute_uri("/")).rstrip("/")


@never_cache
@login_required
@require_http_methods(["GET", "POST"])
def approve(request: HttpRequest, request_id: str) -> HttpResponse:
    """The page on which a person lets the command line act for them in one project."""
    actor = actor_of(request)
    waiting = command_line.asking(request_id)
    projects = projects_of(actor).order_by("name")
    context: dict[str, Any] = {"waiting": waiting, "projects": projects, "section": "account"}
    if request.method == "POST":
        context["chosen"] = command_line.approve(
            actor=actor, request_id=request_id, slug=request.POST.get("project", "")[:80]
        )
    return render(request, "clients/command_line_login.html", context)
