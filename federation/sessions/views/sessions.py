"""Pages of sessions."""

from __future__ import annotations

import datetime as dt
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
from federation.sessions.choices import AssignmentStatus, SessionStatus
from federation.sessions.config import SessionConfig
from federation.sessions.config.summary import asked_for, in_words, title_of
from federation.sessions.forms import ContinueForm
from federation.sessions.models import Round, Session
from federation.sessions.selectors import (
    clients_in,
    live_assignments,
    open_round_of,
    round_lines,
    round_of,
    rounds_of,
    session_of,
    sessions_of,
    shares_of,
    taken_together,
)
from federation.sessions.views.privacy import privacy_of
from foundation.errors import StudioError
from projects.pages import actor_of, go, open_project, page_of, shown

SAID = ("strategy", "chosen", "eligible")  # of a round's plan, in a sentence of their own


def list_context(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """What the list of sessions shows, narrowed by `?q=` and `?status=`."""
    rows = sessions_of(actor_of(request), context["project"])
    asked = {name: request.GET.get(name, "").strip() for name in ("q", "status")}
    if asked["q"]:
        rows = rows.filter(name__icontains=asked["q"])
    if asked["status"] in SessionStatus.values:
        rows = rows.filter(status=asked["status"])
    page = page_of(request, rows)
    for session in page.rows:
        session.how = in_words(SessionConfig.from_json(session.config))
    return context | {"page": page, "asked": asked, "states": SessionStatus.values}


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
    config = SessionConfig.from_json(session.config)
    page = page_of(request, rounds_of(session))
    lines = round_lines(page.rows)
    open_round = open_round_of(session)
    privacy = privacy_of(session, config)
    squeezed = config.compression != SessionConfig.compression
    context |= {
        "session": session,
        "config": config,
        "aggregator": title_of(config.aggregator),
        "how": in_words(config),
        "asked_for": asked_for(config),
        "privacy": privacy,
        "travelled": taken_together(lines) if squeezed else None,
        "page": page,
        "lines": lines,
        "columns": metric_columns({line.round.pk: line.metrics for line in lines}),
        "open_round": open_round,
        "round_ends": _ends(open_round),
        "assignments": live_assignments(session) if session.status == SessionStatus.RUNNING else [],
        "models": trail(actor, context["project"]).filter(session=session).defer("layout")[:10],
        "charts": (privacy.chart if privacy else {}) | session_charts(session.pk, session.name),
        "continue_form": ContinueForm(),
    }
    return shown(request, "sessions/detail.html", "sessions/_detail.html", context)


def _ends(round_: Round | None) -> dt.datetime | None:
    """When an open round ends at the latest: with its grace, once enough updates are there, else with its time."""
    if round_ is None:
        return None
    grace = round_.plan.get("grace_until")
    return dt.datetime.fromisoformat(grace) if grace else round_.deadline


@login_required
@require_GET
def session_round(request: HttpRequest, slug: str, pk: uuid.UUID, round_pk: uuid.UUID) -> HttpResponse:
    """Who was chosen for a round and why, and what came of it; narrowed by `?q=` and `?status=`."""
    context = live_frame(request, slug, "sessions")
    session = session_of(actor_of(request), context["project"], pk)
    round_ = round_of(session, round_pk)
    rows = clients_in(round_)
    asked = {name: request.GET.get(name, "").strip() for name in ("q", "status")}
    if asked["q"]:
        rows = rows.filter(client__name__icontains=asked["q"])
    if asked["status"] in AssignmentStatus.values:
        rows = rows.filter(status=asked["status"])
    selection = dict(round_.plan.get("selection") or {})
    page = page_of(request, rows)
    context |= {
        "session": session,
        "config": SessionConfig.from_json(session.config),
        "line": round_lines([round_])[0],
        "shares": shares_of([round_.pk]).get(round_.pk, []),
        "selection": selection,
        "numbers": [pair for pair in selection.items() if pair[0] not in SAID and pair[1] not in (None, "")],
        "privacy": round_.plan.get("privacy"),
        "page": page,
        "measured": any(row.delta_norm is not None for row in page.rows),
        "asked": asked,
        "states": AssignmentStatus.values,
    }
    return shown(request, "sessions/round.html", "sessions/_round.html", context)


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
