"""From the secret that somebody shows to who they are. One query; used by REST, gRPC and WebSockets alike."""

from __future__ import annotations

import datetime as dt
import hmac

from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils import timezone

from foundation.errors import StudioError
from projects.actors import Actor
from projects.choices import Action
from projects.tokens import tickets
from projects.tokens.choices import ACTIONS_OF_SCOPE, TokenKind
from projects.tokens.models import Token
from projects.tokens.services import PREFIX, digest_of

TOUCH_EVERY_S = 60.0
_LONGEST = 120


def verify(secret: str) -> Token:
    """The living token with this secret, or that this ticket (a JWT) stands for, its user, project and client loaded.
    A person's ticket that was made for one project answers with that `project`.

    Raises StudioError 401 `invalid_token`, `token_revoked` or `token_expired`; the last two only to who has the secret.
    """
    if not tickets.is_ticket(secret):
        return _living(_by_secret(secret))
    ticket = tickets.read(secret)
    row = _living(_by_secret(ticket.secret) if ticket.secret else _by_key(ticket.key_id))
    if ticket.project_id is not None and row.kind == TokenKind.USER:
        row.project_id = ticket.project_id  # of this answer only; rows of people name no project
    return row


def _by_secret(secret: str) -> Token:
    parts = secret.split("_", 2) if len(secret) <= _LONGEST and secret.isascii() else []
    if len(parts) != 3 or parts[0] != PREFIX:
        raise tickets.refusal()
    row = _rows().filter(key_id=parts[1]).first()
    known = row is not None and row.pepper in settings.TOKEN_PEPPERS
    # an unknown key id costs the same work as a wrong secret
    shown = digest_of(parts[2], row.pepper if row is not None and known else max(settings.TOKEN_PEPPERS))
    if not hmac.compare_digest(shown, row.digest if row is not None and known else "0" * 64) or row is None:
        raise tickets.refusal()
    return row


def _by_key(key_id: str) -> Token:
    """For an access ticket, whose signature was checked."""
    row = _rows().filter(key_id=key_id).first()
    if row is None or row.pepper not in settings.TOKEN_PEPPERS:
        raise tickets.refusal()
    return row


def _rows() -> QuerySet[Token]:
    # a combiner's role in the database reads neither; whoever needs one later has it looked up then
    return Token.objects.select_related("user", "project", "client").defer("user__password", "user__email")


def _living(row: Token) -> Token:
    if row.revoked_at is not None:
        raise StudioError("token_revoked", "This token was revoked: ask for a new one.", 401)
    now = timezone.now()
    if row.expires_at is not None and row.expires_at <= now:
        raise tickets.expired()
    if row.user is not None and not row.user.is_active:
        raise StudioError("account_closed", "The account of this token is closed.", 401)
    _touch(row, now)
    return row


def _touch(row: Token, now: dt.datetime) -> None:
    stale = now - dt.timedelta(seconds=TOUCH_EVERY_S)
    if row.last_used_at is not None and row.last_used_at > stale:
        return
    # several processes may see it stale at once; one of them writes
    Token.objects.filter(Q(last_used_at=None) | Q(last_used_at__lte=stale), pk=row.pk).update(
        last_used_at=now
    )
    row.last_used_at = now


def actor_for(token: Token) -> Actor:
    """What a verified token may do. A client and an enrolment token see no rows through the general door."""
    if token.kind == TokenKind.CLIENT:
        return Actor(
            token_id=token.pk, project_id=token.project_id, client_id=token.client_id, actions=frozenset()
        )
    if token.kind == TokenKind.ENROLMENT:
        return Actor(token_id=token.pk, project_id=token.project_id, actions=frozenset())
    actions = frozenset[Action]().union(*(ACTIONS_OF_SCOPE.get(scope, frozenset()) for scope in token.scopes))
    if token.kind == TokenKind.PROJECT:
        # a project is deleted or handed over by a person
        return Actor(token_id=token.pk, project_id=token.project_id, actions=actions - {Action.OWN})
    return Actor(user=token.user, token_id=token.pk, project_id=token.project_id, actions=actions)
