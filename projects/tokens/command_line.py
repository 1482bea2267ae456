"""Log-in of a command line by a person in a browser: begun there, approved on a page, fetched once.

What is pending lives in the shared cache for some minutes and holds no secret; the token is made when it is fetched.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import secrets
import uuid
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.cache import cache
from django.utils import timezone

from foundation.errors import StudioError, not_found
from foundation.throttles import LOGINS
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project, User
from projects.scoping import reach
from projects.tokens import tickets
from projects.tokens.choices import Scope, TokenKind
from projects.tokens.services import create_token

PENDING_S = 300  # as long as the command line asks


@dataclass(frozen=True)
class Begun:
    """`request_id` goes into the page's address; `poll_token` stays with the command line."""

    request_id: str
    poll_token: str


@dataclass(frozen=True)
class Asking:
    """A log-in that waits for a person, and the address that it was begun from."""

    request_id: str
    address: str
    approved: bool


def begin(*, address: str) -> Begun:
    """Raises StudioError 429, and 503 while the cache is away."""
    LOGINS.count(address)
    begun = Begun(secrets.token_urlsafe(16), secrets.token_urlsafe(32))
    cache.set(
        _key(begun.request_id), {"poll": _digest(begun.poll_token), "address": address}, timeout=PENDING_S
    )
    if cache.get(_key(begun.request_id)) is None:
        raise StudioError("try_again_later", "Logging in is not possible just now; try again soon.", 503)
    return begun


def asking(request_id: str) -> Asking:
    """For the page. Raises StudioError 404 when nothing of that id waits."""
    entry = _entry(request_id)
    return Asking(request_id, entry["address"], "user" in entry)


def approve(*, actor: Actor, request_id: str, slug: str) -> Project:
    """The command line may act for this person in this project. Raises StudioError 404."""
    if actor.user is None or actor.token_id is not None:
        raise not_found("log-in")
    project: Project = reach(Project.objects.all(), actor, Action.VIEW, "project", slug=slug)
    entry = _entry(request_id)
    if "user" in entry:
        raise not_found("log-in")
    cache.set(
        _key(request_id), entry | {"user": actor.user.pk, "project": str(project.pk)}, timeout=PENDING_S
    )
    return project


def fetch(*, request_id: str, poll_token: str) -> str | None:
    """None: nobody has approved it yet. Else the ticket, this once. Raises StudioError 404 for a wrong or spent one."""
    entry = _entry(request_id)
    if not hmac.compare_digest(_digest(poll_token), entry["poll"]):
        raise not_found("log-in")
    if "user" not in entry:
        return None
    user = User.objects.filter(pk=entry["user"], is_active=True).first()
    if user is None or not cache.delete(_key(request_id)):  # one of two who ask at once
        raise not_found("log-in")
    row, secret = create_token(
        actor=Actor.of_user(user),
        kind=TokenKind.USER,
        name="Scaleout command line",
        scopes=(Scope.READ, Scope.WRITE, Scope.ADMIN),
        expires_at=timezone.now() + dt.timedelta(days=settings.LOGIN_TOKEN_DAYS),
    )
    return tickets.lasting_ticket(row, secret, project_id=uuid.UUID(entry["project"]))


def _entry(request_id: str) -> dict[str, Any]:
    entry = cache.get(_key(request_id))
    if not isinstance(entry, dict):
        raise not_found("log-in; it may have taken too long: begin again")
    return entry


def _key(request_id: str) -> str:
    return f"command-line-login:{_digest(request_id)[:32]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
