"""What a live page starts from: the last event that it includes, asked before anything else is read."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from federation.events.selectors import last_event_id
from projects.choices import Action
from projects.pages import frame_of, open_project


def live_frame(request: HttpRequest, slug: str, section: str, action: Action = Action.VIEW) -> dict[str, Any]:
    """The frame of a live page of this project. `action` is what the page needs me to be allowed to do."""
    project = open_project(request, slug, action)
    return {
        "live_after": last_event_id(project),
        "poll": "off" if request.GET.get("poll") == "off" else "on",
        **frame_of(request, project, section),
    }
