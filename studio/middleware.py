"""Who asks, and what a StudioError looks like."""

from __future__ import annotations

from collections.abc import Callable

from django.db import IntegrityError
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.utils.functional import SimpleLazyObject

from foundation.errors import StudioError
from foundation.problems import as_studio_error, problem_json
from projects.actors import Actor

Next = Callable[[HttpRequest], HttpResponseBase]


class ActorMiddleware:
    """`request.actor`: whom the session cookie names. A token in a REST request replaces it."""

    def __init__(self, get_response: Next) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        # lazily, so that a page that asks nobody reads no session
        request.actor = SimpleLazyObject(lambda: Actor.of_user(request.user))  # type: ignore[attr-defined]
        return self.get_response(request)


class StudioErrorMiddleware:
    """A StudioError that reaches a page becomes a page that says it."""

    def __init__(self, get_response: Next) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if isinstance(error, IntegrityError):  # somebody was faster, perhaps with the same name
            error = as_studio_error(error, request.path)
        if not isinstance(error, StudioError):
            return None
        if request.path.startswith("/api/"):
            return problem_json(error)
        template = "partials/toast_error.html" if getattr(request, "htmx", False) else "error.html"
        return render(request, template, {"error": error}, status=error.status)
