"""The page of events: what happened, newest first, live and filterable."""

from __future__ import annotations

import uuid

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from federation.events.pages import live_frame
from federation.events.selectors import LEVELS, events_of, from_level, kinds_of, of_kind, senders_of
from projects.pages import actor_of, page_of, shown

FILTERS = ("q", "level", "kind", "session", "client")


@login_required
@require_GET
def event_list(request: HttpRequest, slug: str) -> HttpResponse:
    context = live_frame(request, slug, "events")
    project, actor = context["project"], actor_of(request)
    asked = {name: request.GET.get(name, "").strip() for name in FILTERS}
    rows = events_of(actor, project)
    if asked["q"]:
        rows = rows.filter(message__icontains=asked["q"])
    if asked["level"] in LEVELS:
        rows = from_level(rows, asked["level"])
    if asked["kind"]:
        rows = of_kind(rows, asked["kind"])
    for name in ("session", "client"):
        if asked[name]:
            rows = rows.filter(**{name: _uuid(asked[name])})
    sessions, clients = senders_of(project)
    context |= {
        "page": page_of(request, rows),
        "asked": asked,
        "filtered": any(asked.values()),
        "levels": LEVELS,
        "kinds": kinds_of(project),
        "sessions": sessions,
        "clients": clients,
    }
    return shown(request, "events/list.html", "events/_list.html", context)


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        return uuid.UUID(int=0)  # nobody's
