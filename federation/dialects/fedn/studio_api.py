"""What FEDn's command line asks of a Studio: logging in, projects, and tokens for them."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone

from clients_app.placement import taking_combiners
from federation.dialects.controller.asked import fields_of
from federation.dialects.controller.callers import token_of
from federation.dialects.controller.view import MessageView, answer
from foundation.errors import StudioError, invalid
from foundation.throttles import address_of
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project
from projects.selectors import actions_in, project_by_slug, projects_of
from projects.services import create_project, delete_project, log_in
from projects.tokens.choices import Scope, TokenKind
from projects.tokens.services import create_token
from projects.tokens.verify import actor_for

FULL = (Scope.READ, Scope.WRITE, Scope.ADMIN)


def _pair(secret: str) -> HttpResponseBase:
    """FEDn's clients never renew a token, so that ours last; the second is there because they keep two."""
    return answer({"access": secret, "refresh": secret})


def _expiry() -> dt.datetime:
    return timezone.now() + dt.timedelta(days=settings.LOGIN_TOKEN_DAYS)


class LogIn(MessageView):
    """POST /api/token/: a person's token for user name and password."""

    def admitted(self, request: HttpRequest, address: dict[str, Any]) -> None:
        return None

    def post(self, request: HttpRequest, nobody: None) -> HttpResponseBase:
        given = fields_of(request)
        login, password = given.get("username"), given.get("password")
        if (
            not isinstance(login, str)
            or not isinstance(password, str)
            or len(login) > 254
            or len(password) > 4096
        ):
            raise invalid("username", "Send a username and a password.")
        user = log_in(login=login, password=password, address=address_of(request))
        _row, secret = create_token(
            actor=Actor.of_user(user), kind=TokenKind.USER, name="fedn", scopes=FULL, expires_at=_expiry()
        )
        return _pair(secret)


class PersonView(MessageView):
    """Asked by a person's token, or by a project's for what concerns that one."""

    def admitted(self, request: HttpRequest, address: dict[str, Any]) -> Actor:
        actor = actor_for(token_of(request)[0])
        if actor.client_id is not None or not actor.actions:
            raise StudioError("wrong_token", "A client's token does not open this address.", 401)
        request.actor = actor  # type: ignore[attr-defined]
        return actor


def _project_shape(row: Project) -> dict[str, Any]:
    owner = next((one.user.username for one in row.memberships.all() if one.role == "owner"), "")
    return {
        "slug": row.slug,
        "name": row.name,
        "owner_username": owner,
        "status": "active",
        "created_at": row.created_at.isoformat(),
        "app_version": settings.STUDIO_VERSION,
        "description": row.description,
    }


class Projects(PersonView):
    def get(self, request: HttpRequest, actor: Actor) -> HttpResponseBase:
        """A bare list; the first becomes the command line's project at log-in."""
        rows = projects_of(actor).prefetch_related("memberships__user")
        return answer([_project_shape(row) for row in rows])


class OneProject(PersonView):
    def get(self, request: HttpRequest, actor: Actor, slug: str) -> HttpResponseBase:
        """An error is told with status 200: the command line understands no other."""
        row = projects_of(actor).filter(slug=slug).prefetch_related("memberships__user").first()
        return answer(
            _project_shape(row) if row else {"error": f"There is no project {slug} that you may see."}
        )


def _named(request: HttpRequest, actor: Actor, action: Action) -> Project:
    slug = request.headers.get("X-Project-Slug")
    if not slug:
        raise invalid("X-Project-Slug", "Name the project in the header X-Project-Slug.")
    return project_by_slug(actor, slug, action)


class AdminToken(PersonView):
    def get(self, request: HttpRequest, actor: Actor) -> HttpResponseBase:
        """A token that may do in the project what its admins may. Who is none gets their own token back: together
        with the project's address it opens what their role allows."""
        project = _named(request, actor, Action.VIEW)
        if Action.ADMIN not in actions_in(actor, project):
            return _pair(token_of(request)[1])
        _row, secret = create_token(
            actor=actor,
            kind=TokenKind.PROJECT,
            name="fedn",
            project=project,
            scopes=FULL,
            expires_at=_expiry(),
        )
        return _pair(secret)


class ClientToken(PersonView):
    def get(self, request: HttpRequest, actor: Actor) -> HttpResponseBase:
        """A token by which devices register themselves. It lasts until it is revoked: FEDn's client never asks for
        another."""
        project = _named(request, actor, Action.ADMIN)
        _row, secret = create_token(
            actor=actor, kind=TokenKind.ENROLMENT, name="fedn client", project=project
        )
        return _pair(secret)


class CreateProject(PersonView):
    def post(self, request: HttpRequest, actor: Actor) -> HttpResponseBase:
        """Combiners, images and branches that may be named are this server's own business."""
        row = create_project(actor=actor, name=str(fields_of(request).get("name") or ""))
        return answer({"message": f"Project {row.name} was created.", "slug": row.slug}, 201)


class DeleteProject(PersonView):
    def delete(self, request: HttpRequest, actor: Actor, slug: str) -> HttpResponseBase:
        """The command line has asked its user whether they mean it."""
        row = project_by_slug(actor, slug, Action.OWN)
        delete_project(actor=actor, project=row, confirm=row.name)
        return answer({"message": f"Project {row.name} was deleted."})


class UpdateProject(PersonView):
    def post(self, request: HttpRequest, actor: Actor) -> HttpResponseBase:
        """Every project runs on the version that this server has."""
        row = project_by_slug(actor, str(fields_of(request).get("slug") or ""), Action.ADMIN)
        return answer({"message": f"{row.name} runs on version {settings.STUDIO_VERSION}."})


class AddCombiner(PersonView):
    def post(self, request: HttpRequest, actor: Actor) -> HttpResponseBase:
        """Combiners serve all projects: there is nothing to deploy for one."""
        row = project_by_slug(actor, str(fields_of(request).get("project_slug") or ""), Action.ADMIN)
        count = len(taking_combiners())
        return answer({"message": f"{row.name} is served by all {count} combiners of this server already."})
