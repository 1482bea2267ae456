"""REST authentication by `Authorization: Bearer stu_…`."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import AnonymousUser
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from foundation.errors import StudioError
from foundation.throttles import TOKEN_FAILURES, address_of
from projects.tokens.models import Token
from projects.tokens.verify import actor_for, verify


class TokenBearer(AnonymousUser):
    """Somebody known by a token that is no person's: a project, a client or a device that enrols."""

    @property
    def is_authenticated(self) -> bool:  # type: ignore[override]  # known, though no person
        return True

    @property
    def is_anonymous(self) -> bool:  # type: ignore[override]
        return False


class TokenAuthentication(BaseAuthentication):
    """Sets `request.actor`, and answers with the token as `request.auth`."""

    def authenticate(self, request: Request) -> tuple[Any, Token] | None:
        scheme, _, secret = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() not in ("bearer", "token"):
            return None
        try:
            token = verify(secret.strip())
        except StudioError:
            # a good token still passes from an address that others flood with bad ones
            TOKEN_FAILURES.count(address_of(request))
            raise
        request._request.actor = actor_for(token)  # type: ignore[attr-defined]
        return token.user if token.user is not None else TokenBearer(), token

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="Studio"'
