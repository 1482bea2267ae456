"""What the pages of every room share: the open project, keyset pages, a refusal shown on its form, where to go next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from django.contrib import messages
from django.db.models import QuerySet
from django.forms import BaseForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django_htmx.http import HttpResponseClientRedirect

from foundation.errors import StudioError
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project
from projects.selectors import actions_in, project_by_slug

PAGE_SIZE = 50
T = TypeVar("T")


def actor_of(request: HttpRequest) -> Actor:
    """Who asks, as the middleware found out."""
    actor: Actor = request.actor  # type: ignore[attr-defined]
    return actor


def of_htmx(request: HttpRequest) -> bool:
    """Whether a part of the page is asked for."""
    htmx: Any = getattr(request, "htmx", None)
    return bool(htmx and not htmx.history_restore_request)


def open_project(request: HttpRequest, slug: str, action: Action = Action.VIEW) -> Project:
    """The project of this address, with my `role` in it. Raises StudioError 404 or 403."""
    return project_by_slug(actor_of(request), slug, action)


def frame_of(request: HttpRequest, project: Project, section: str) -> dict[str, Any]:
    """What the frame around a project's page needs: the project, and what I may do in it."""
    allowed = actions_in(actor_of(request), project)
    return {
        "project": project,
        "section": section,
        "may": {action.value: action in allowed for action in Action},
    }


def attempt(form: BaseForm, work: Callable[[], T]) -> T | None:
    """The result of `work`; a refusal becomes an error of the form, at the field that it names."""
    try:
        return work()
    except StudioError as error:
        if error.status in (401, 403, 404):
            raise
        field = error.data.get("field")
        form.add_error(field if field in form.fields else None, error.message)
        return None


def go(request: HttpRequest, url: str, message: str = "", level: int = messages.SUCCESS) -> HttpResponse:
    """To another page, with a toast there."""
    if message:
        messages.add_message(request, level, message)
    return HttpResponseClientRedirect(url) if of_htmx(request) else HttpResponseRedirect(url)


def shown(
    request: HttpRequest, whole: str, part: str, context: dict[str, Any], *, invalid: bool = False
) -> HttpResponse:
    """The whole page, or for htmx only the part of it. An invalid form answers 422."""
    response = render(request, part if of_htmx(request) else whole, context, status=422 if invalid else 200)
    response["Vary"] = "HX-Request, Cookie"
    response["Cache-Control"] = "no-store"
    return response


@dataclass(frozen=True)
class Page:
    """Rows, newest first, and the keys of the pages beside them."""

    rows: list[Any]
    next: Any = None
    previous: Any = None
    live: bool = True  # the first page: new rows belong here


def page_of(request: HttpRequest, rows: QuerySet[Any], size: int = PAGE_SIZE) -> Page:
    """One page of `rows` by their id, as `?before=` or `?after=` ask; a key that is none is ignored."""
    key = rows.model._meta.pk

    def asked(name: str) -> Any:
        try:
            return key.to_python(request.GET[name]) if request.GET.get(name) else None
        except Exception:
            return None

    before, after = asked("before"), asked("after")
    if after is not None:
        found = list(rows.filter(pk__gt=after).order_by("pk")[: size + 1])
        more = len(found) > size
        found = found[:size][::-1]
        if found:
            return Page(found, next=found[-1].pk, previous=found[0].pk if more else None, live=not more)
    if before is not None:
        rows = rows.filter(pk__lt=before)
    found = list(rows.order_by("-pk")[: size + 1])
    more = len(found) > size
    found = found[:size]
    return Page(
        found,
        next=found[-1].pk if more and found else None,
        previous=found[0].pk if before is not None and found else None,
        live=before is None,
    )
