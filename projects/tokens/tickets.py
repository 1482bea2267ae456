"""Tickets: tokens as JWTs, for the published clients that read claims.

A lasting ticket (to enrol, to refresh) is a token's secret in an envelope. An access ticket lives an hour at most and
names only the token's row, which is looked at again on every call: revoking the row ends both.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import uuid
from dataclasses import dataclass
from typing import Any

import jwt
from django.conf import settings
from django.utils import timezone

from foundation.errors import StudioError
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token

ALGORITHM = "HS256"
ACCESS_LIFE = dt.timedelta(hours=1)
MAX_CHARS = 2048
ROLE_OF_KIND = {  # words that Scaleout's client acts on; the others it only passes back
    TokenKind.ENROLMENT: "enrollment",
    TokenKind.CLIENT: "client_refresh",
    TokenKind.PROJECT: "admin",
    TokenKind.USER: "admin",
}


@dataclass(frozen=True)
class Ticket:
    """What a ticket says. `secret` is empty in an access ticket, which names the row by `key_id` alone; `project_id`
    narrows a person's ticket to one project."""

    key_id: str
    secret: str
    project_id: uuid.UUID | None


def refusal() -> StudioError:
    return StudioError("invalid_token", "This token is not known here: check that it was copied whole.", 401)


def expired() -> StudioError:
    return StudioError("token_expired", "This token has expired: rotate it, or ask for a new one.", 401)


def is_ticket(text: str) -> bool:
    """Whether `text` has the look of a JWT; it proves nothing."""
    return text.count(".") == 2


def lasting_ticket(row: Token, secret: str, *, project_id: uuid.UUID | None = None) -> str:
    """The ticket of a token just made: good as long as its row."""
    claims = _claims(row, ROLE_OF_KIND[TokenKind(row.kind)], "refresh", project_id) | {"secret": secret}
    if row.expires_at is not None:
        claims["exp"] = int(row.expires_at.timestamp())
    return _signed(claims)


def access_ticket(row: Token, *, project_id: uuid.UUID | None = None) -> tuple[str, float]:
    """A ticket for the calls of the next hour, or of what is left of the row's life; and that time in seconds."""
    now = timezone.now()
    until = min(now + ACCESS_LIFE, row.expires_at or now + ACCESS_LIFE)
    role = "client" if row.kind in (TokenKind.CLIENT, TokenKind.ENROLMENT) else "admin"
    claims = _claims(row, role, "access", project_id) | {"exp": int(until.timestamp())}
    return _signed(claims), max(0.0, (until - now).total_seconds())


def read(text: str) -> Ticket:
    """Check signature and expiry. Raises StudioError 401; `token_expired` only to who has a ticket of ours."""
    if len(text) > MAX_CHARS or not text.isascii():
        raise refusal()
    try:
        number = jwt.get_unverified_header(text).get("kid")
        pepper = int(number) if isinstance(number, str) and number.isdecimal() and len(number) < 6 else 0
        # an unknown pepper costs the same work as a wrong signature
        known = pepper in settings.TOKEN_PEPPERS
        key = _key(pepper if known else max(settings.TOKEN_PEPPERS))
        claims: dict[str, Any] = jwt.decode(
            text, key, algorithms=[ALGORITHM], options={"verify_aud": False, "verify_iat": False}
        )
    except jwt.ExpiredSignatureError:
        raise expired() from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise refusal() from None
    if not known:
        raise refusal()
    return _read(claims)


def _read(claims: dict[str, Any]) -> Ticket:
    key_id, secret, project = claims.get("key"), claims.get("secret", ""), claims.get("project")
    if not isinstance(key_id, str) or not isinstance(secret, str) or not (secret or "exp" in claims):
        raise refusal()
    try:
        return Ticket(key_id, secret, uuid.UUID(project) if project else None)
    except (ValueError, AttributeError, TypeError):
        raise refusal() from None


def _claims(row: Token, role: str, token_type: str, project_id: uuid.UUID | None) -> dict[str, Any]:
    of_whom = row.client_id or row.project_id or row.user_id
    claims: dict[str, Any] = {
        "sub": str(of_whom),
        "role": role,
        "token_type": token_type,
        "key": row.key_id,
        "iat": int(timezone.now().timestamp()),
        "jti": uuid.uuid4().hex,
    }
    return claims | ({"project": str(project_id)} if project_id else {})


def _signed(claims: dict[str, Any]) -> str:
    pepper = max(settings.TOKEN_PEPPERS)
    return jwt.encode(claims, _key(pepper), algorithm=ALGORITHM, headers={"kid": str(pepper)})


def _key(pepper: int) -> bytes:
    """Apart from the key of digests, so that neither says anything of the other."""
    return hmac.new(settings.TOKEN_PEPPERS[pepper].encode(), b"studio tickets", hashlib.sha256).digest()
