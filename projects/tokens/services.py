"""Making, revoking and rotating tokens. The secret is returned once and kept nowhere."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import secrets
import uuid
from collections.abc import Iterable, Sequence
from typing import Protocol

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from foundation.errors import StudioError, forbidden, invalid, not_found
from foundation.hints import wake_combiners
from projects import audit
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project, User
from projects.scoping import reach
from projects.tokens.choices import ACTIONS_OF_SCOPE, Scope, TokenKind
from projects.tokens.models import Token

PREFIX = "stu"


class ClientRow(Protocol):
    """A client, of which this room knows only whose it is."""

    pk: uuid.UUID
    project_id: uuid.UUID


def digest_of(secret: str, pepper: int) -> str:
    """HMAC-SHA256 of a token's secret part under the pepper of that number, as 64 hex digits."""
    return hmac.new(settings.TOKEN_PEPPERS[pepper].encode(), secret.encode(), hashlib.sha256).hexdigest()


def _mint(row: Token) -> tuple[Token, str]:
    secret = secrets.token_urlsafe(32)
    row.key_id = secrets.token_hex(8)
    row.pepper = max(settings.TOKEN_PEPPERS)
    row.digest = digest_of(secret, row.pepper)
    row.save()
    return row, f"{PREFIX}_{row.key_id}_{secret}"


def _checked_scopes(actor: Actor, scopes: Sequence[str]) -> list[str]:
    unknown = sorted(set(scopes) - set(Scope.values))
    if unknown or not scopes:
        raise invalid("scopes", f"Scopes are one or more of {', '.join(Scope.values)}.")
    for scope in scopes:
        if not ACTIONS_OF_SCOPE[scope] - {Action.OWN} <= actor.actions:
            raise forbidden(f"Your own token does not reach as far as “{scope}”: ask for less.")
    return [scope for scope in Scope.values if scope in scopes]


def create_token(
    *,
    actor: Actor,
    kind: str,
    name: str,
    project: Project | None = None,
    client: ClientRow | None = None,
    scopes: Sequence[str] = (Scope.READ, Scope.WRITE),
    expires_at: dt.datetime | None = None,
) -> tuple[Token, str]:
    """A new token and its secret (`stu_<key id>_<secret>`), which is shown this once.

    A user token is the actor's own. Project and enrolment tokens need ADMIN in `project`, a client token RUN.
    Nobody makes a token that may do more than they may themselves. Raises StudioError 400, 403, 404.
    """
    name = name.strip()
    if not 1 <= len(name) <= 120:
        raise invalid("name", "A token needs a name of 1 to 120 characters, so that you know it again.")
    if expires_at is not None and expires_at <= timezone.now():
        raise invalid("expires_at", "The expiry lies in the past: name a later moment, or none.")
    row = Token(kind=kind, name=name, created_by=actor.user, expires_at=expires_at)
    if kind == TokenKind.USER:
        if actor.user is None or actor.client_id is not None:
            raise forbidden("Only a person can make a token for a person.")
        if Action.RUN not in actor.actions:
            raise forbidden("Your token may only read; making tokens needs one that may write.")
        row.user = actor.user
        row.scopes = _checked_scopes(actor, scopes)
    elif kind in (TokenKind.PROJECT, TokenKind.ENROLMENT):
        if project is None:
            raise invalid("project", f"A {kind} token needs the project that it is for.")
        row.project = reach(Project.objects.all(), actor, Action.ADMIN, "project", pk=project.pk)
        row.scopes = _checked_scopes(actor, scopes) if kind == TokenKind.PROJECT else []
    elif kind == TokenKind.CLIENT:
        if project is None or client is None or client.project_id != project.pk:
            raise invalid("client", "A client token needs a client of the project.")
        row.project = reach(Project.objects.all(), actor, Action.RUN, "project", pk=project.pk)
        row.client_id = client.pk
        row.scopes = []
    else:
        raise invalid("kind", f"A token's kind is one of {', '.join(TokenKind.values)}.")
    with transaction.atomic():
        made = _mint(row)
        audit.record(
            actor, "token.create", project_id=row.project_id, target=str(row.pk), kind=kind, name=name
        )
    return made


def revoke_token(*, actor: Actor, token: Token) -> Token:
    """The token stops working at once, and its streams close within seconds. Twice is as good as once."""
    _may_manage(actor, token)
    with transaction.atomic():
        if Token.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=timezone.now()):
            audit.record(actor, "token.revoke", project_id=token.project_id, target=str(token.pk))
            _tell_combiners(token)
    token.refresh_from_db(fields=["revoked_at"])
    return token


def revoke_as_operator(*, operator: User, tokens: Iterable[Token]) -> int:
    """For the site's operator, who is in no project: revoke any tokens; answers how many were alive."""
    count = 0
    with transaction.atomic():
        for token in tokens:
            if Token.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=timezone.now()):
                count += 1
                audit.record(
                    Actor.of_user(operator), "token.revoke", project_id=token.project_id, target=str(token.pk)
                )
                _tell_combiners(token)
    return count


def rotate_token(*, actor: Actor, token: Token) -> tuple[Token, str]:
    """A new token with the same name, rights and length of life; the old one is revoked."""
    _may_manage(actor, token)
    if not actor.actions >= frozenset[Action]().union(
        *(ACTIONS_OF_SCOPE[s] - {Action.OWN} for s in token.scopes)
    ):
        raise forbidden(
            "This token may do more than the one you use: rotate it with one that may do as much."
        )
    life = token.expires_at - token.created_at if token.expires_at else None
    with transaction.atomic():
        if not Token.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=timezone.now()):
            raise StudioError(
                "token_revoked", "This token is revoked already: make a new one instead of rotating it.", 409
            )
        made = _mint(
            Token(
                kind=token.kind,
                name=token.name,
                scopes=token.scopes,
                user_id=token.user_id,
                project_id=token.project_id,
                client_id=token.client_id,
                created_by=actor.user,
                expires_at=timezone.now() + life if life else None,
            )
        )
        audit.record(
            actor, "token.rotate", project_id=token.project_id, target=str(token.pk), by=str(made[0].pk)
        )
        _tell_combiners(token)
    return made


def _may_manage(actor: Actor, token: Token) -> None:
    """A person manages their own tokens; of a project's, an admin all, and whoever may RUN those of its clients."""
    if token.kind == TokenKind.USER:
        if actor.user is None or actor.user.pk != token.user_id or actor.project_id or actor.client_id:
            raise not_found("token")
        if Action.RUN not in actor.actions:
            raise forbidden("Your token may only read; revoking and rotating needs one that may write.")
        return
    action = Action.RUN if token.kind == TokenKind.CLIENT else Action.ADMIN
    reach(Project.objects.all(), actor, action, "token", pk=token.project_id)


def _tell_combiners(token: Token) -> None:
    """A hint only: every combiner also asks for dead tokens on its own."""
    if token.client_id:
        wake_combiners([str(token.client_id)], revoked=True)
