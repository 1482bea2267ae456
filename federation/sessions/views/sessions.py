"""Pages of sessions."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from federation.events.pages import live_frame
from federation.models.charts import metric_columns, session_charts
from federation.models.selectors import trail
from federation.sessions import services
from federation.sessions.choices import SessionStatus
from federation.sessions.forms import ContinueForm
from federation.sessions.models import Session
from federation.sessions.selectors import (
    live_assignments,
    open_round_of,
    round_lines,
    rounds_of,
    session_of,
    sessions_of,
)
from foundation.errors import StudioError
from projects.pages import actor_of, go, open_project, page_of, shown


def list_context(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """What the list of sessions shows, narrowed by `?q=` and `?status=`."""
    rows = sessions_of(actor_of(request), context["project"])
    asked = {name: request.GET.get(name, "").strip() for name in ("q", "status")}
    if asked["q"]:
        rows = rows.filter(name__icontains=asked["q"])
    if asked["status"] in SessionStatus.values:
        rows = rows.filter(status=asked["status"])
    return context | {"page": page_of(request, rows), "asked": asked, "states": SessionStatus.values}


@login_required
@require_GET
def session_list(request: HttpRequest, slug: str) -> HttpResponse:
    context = list_context(request, live_frame(request, slug, "sessions"))
    return shown(request, "sessions/list.html", "sessions/_list.html", context)


@login_required
@require_GET
def session_detail(request: HttpRequest, slug: str, pk: uuid.UUID) -> HttpResponse:
    context = live_frame(request, slug, "sessions")
    actor = actor_of(request)
    session = session_of(actor, context["project"], pk)
    page = page_of(request, rounds_of(session))
    lines = round_lines(page.rows)
    context |= {
        "session": session,
        "page": page,
        "lines": lines,
        "columns": metric_columns({line.round.pk: line.metrics for line in lines}),
        "open_round": open_round_of(session),
        "assignments": live_assignments(session) if session.status == SessionStatus.RUNNING else [],
        "models": trail(actor, context["project"]).filter(session=session).defer("layout")[:10],
        "charts": session_charts(session.pk, session.name),
        "continue_form": ContinueForm(),
    }
    return shown(request, "sessions/detail.html", "sessions/_detail.html", context)


def _change(
    request: HttpRequest, slug: str, pk: uuid.UUID, change: Callable[[Session], Session], said: str
) -> HttpResponse:
    session = session_of(actor_of(request), open_project(request, slug), pk)
    url = reverse("session", args=[slug, pk])
    try:
        change(session)
    except StudioError as error:
        if error.status in (403, 404):
            raise
        return go(request, url, error.message, messages.ERROR)
    return go(request, url, said)


@login_required
@require_POST
def session_start(request: HttpRequest, slug: str, pk: uuid.UUID) -> HttpResponse:
    actor = actor_of(request)
    return _change(
        request,
        slug,
        pk,
        lambda row: services.start_session(actor=actor, session=row),
        "The session was started.",
    )


@login_required
@require_POST
def session_stop(request: HttpRequest, slug: str, pk: uuid.UUID) -> HttpResponse:
    actor = actor_of(request)
    return _change(
        request,
        slug,
        pk,
        lambda row: services.stop_session(actor=actor, session=row),
        "The session is stopping.",
    )


@login_required
@require_POST
def session_continue(request: HttpRequest, slug: str, pk: uuid.UUID) -> HttpResponse:
    actor, form = actor_of(request), ContinueForm(request.POST)
    rounds = form.cleaned_data["rounds"] if form.is_valid() else 0  # the service says what would be right
    return _change(
        request,
        slug,
        pk,
        lambda row: services.continue_session(actor=actor, session=row, rounds=rounds),
        f"The session goes on for {rounds} more rounds.",
    )
