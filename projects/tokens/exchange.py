"""A lasting ticket for an access ticket; and, once it has grown old, for its successor."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from projects import audit
from projects.actors import Actor
from projects.choices import Action
from projects.tokens import tickets
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.services import PREFIX, ClientRow, create_token, digest_of
from projects.tokens.verify import verify

REFRESH_LIFE = dt.timedelta(days=90)
ROTATE_AFTER = dt.timedelta(days=1)
GRACE = dt.timedelta(minutes=10)  # a device whose answer was lost asks again with the old ticket
ENROLLED = "enrolled device"  # the name of tokens made here


@dataclass(frozen=True)
class Exchanged:
    """`refresh` is empty while the old one stays good."""

    token: Token
    access: str
    refresh: str
    expires_in_s: float


def exchange(ticket: str) -> Exchanged:
    """An access ticket for a lasting one, or for a plain `stu_…` secret. Raises StudioError 401.

    A device's ticket older than a day is replaced: the answer carries its successor, and it ends after a grace. The
    successor is computed from the old secret, so that asking twice gives the same one and makes one row.
    """
    given = tickets.read(ticket) if tickets.is_ticket(ticket) else None
    if given is not None and not given.secret:
        raise tickets.refusal()  # an access ticket is not prolonged by itself
    token = verify(ticket)
    refresh = ""
    now = timezone.now()
    if (
        given is not None
        and token.kind == TokenKind.CLIENT
        and token.expires_at is not None
        and token.created_at <= now - ROTATE_AFTER
    ):
        token, secret = _successor(token, given.secret, now)
        refresh = tickets.lasting_ticket(token, secret)
    access, expires_in_s = tickets.access_ticket(token, project_id=given.project_id if given else None)
    return Exchanged(token, access, refresh, expires_in_s)


def ticket_for_device(*, token: Token, client: ClientRow) -> Exchanged:
    """A device has registered itself by `token`: its own ticket, with an access ticket. What it had from an earlier
    enrolment ends."""
    assert token.project is not None
    device = Actor(
        token_id=token.pk, project_id=token.project.pk, actions=frozenset({Action.VIEW, Action.RUN})
    )
    now = timezone.now()
    with transaction.atomic():
        Token.objects.filter(
            client_id=client.pk, kind=TokenKind.CLIENT, name=ENROLLED, revoked_at=None
        ).update(revoked_at=now)
        row, secret = create_token(
            actor=device,
            kind=TokenKind.CLIENT,
            name=ENROLLED,
            project=token.project,
            client=client,
            expires_at=now + REFRESH_LIFE,
        )
    access, expires_in_s = tickets.access_ticket(row)
    return Exchanged(row, access, tickets.lasting_ticket(row, secret), expires_in_s)


def _successor(token: Token, secret: str, now: dt.datetime) -> tuple[Token, str]:
    pepper = max(settings.TOKEN_PEPPERS)
    key_id = _derived("key", secret, pepper).hex()[:16]
    own = base64.urlsafe_b64encode(_derived("secret", secret, pepper)).rstrip(b"=").decode()
    with transaction.atomic():
        made = Token.objects.bulk_create(
            [
                Token(
                    kind=token.kind,
                    name=token.name,
                    key_id=key_id,
                    digest=digest_of(own, pepper),
                    pepper=pepper,
                    scopes=token.scopes,
                    project_id=token.project_id,
                    client_id=token.client_id,
                    created_by_id=token.created_by_id,
                    expires_at=now + REFRESH_LIFE,
                )
            ],
            ignore_conflicts=True,
        )
        ended = Token.objects.filter(Q(expires_at__gt=now + GRACE), pk=token.pk).update(
            expires_at=now + GRACE
        )
        if ended:
            audit.record(
                Actor(token_id=token.pk, project_id=token.project_id, client_id=token.client_id),
                "token.rotate",
                project_id=token.project_id,
                target=str(token.pk),
                by=str(made[0].pk),
            )
    shown = f"{PREFIX}_{key_id}_{own}"
    return verify(shown), shown


def _derived(what: str, secret: str, pepper: int) -> bytes:
    key = settings.TOKEN_PEPPERS[pepper].encode()
    return hmac.new(key, f"successor {what} {secret}".encode(), hashlib.sha256).digest()
