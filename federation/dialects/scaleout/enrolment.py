"""Tokens as Scaleout's clients know them: to enrol a device, and to refresh."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone

from clients_app.services import register_device
from federation.dialects.controller.asked import fields_of
from federation.dialects.controller.callers import Caller, token_of
from federation.dialects.controller.view import ControllerView, MessageView, answer
from federation.dialects.scaleout.fields import optional_id, text, whole
from foundation.errors import StudioError
from foundation.throttles import TOKEN_FAILURES, address_of
from projects.tokens import tickets
from projects.tokens.choices import TokenKind
from projects.tokens.exchange import Exchanged, exchange, ticket_for_device
from projects.tokens.models import Token
from projects.tokens.services import create_token

LONGEST_HOURS = 10 * 366 * 24


class Enrol(MessageView):
    """`clients/enroll`: a device becomes a client of the token's project, by an id of its own or a new one."""

    def admitted(self, request: HttpRequest, address: dict[str, Any]) -> Token:
        token, _secret = token_of(request)
        if token.kind != TokenKind.ENROLMENT:
            raise StudioError("wrong_token_kind", "Enrolling a device needs an enrolment token.", 401)
        return token

    def post(self, request: HttpRequest, token: Token) -> HttpResponseBase:
        fields = fields_of(request)
        client_id = optional_id(fields, "client_id")
        client = register_device(
            token=token,
            client_id=client_id,
            name=text(fields, "name", most=120) or None,
            dialect="scaleout",
            version=text(fields, "client_version", most=40),
        )
        made = ticket_for_device(token=token, client=client)
        return answer({"client_id": str(client.pk), **_tokens(made)})


class Refresh(MessageView):
    """`clients/token` and `/api/auth/refresh`: an access ticket for a lasting one; sometimes a new lasting one too."""

    def admitted(self, request: HttpRequest, address: dict[str, Any]) -> None:
        """The ticket is in the body; a stale header must not stand in its way."""

    def post(self, request: HttpRequest, nobody: None) -> HttpResponseBase:
        ticket = text(fields_of(request), "refresh_token", most=tickets.MAX_CHARS)
        try:
            made = exchange(ticket)
        except StudioError as error:
            if error.status == 401:
                TOKEN_FAILURES.count(address_of(request))
            raise
        return answer(_tokens(made))


class EnrolmentTokens(ControllerView):
    """`auth/enrollment-tokens`: a project's admin makes one for devices."""

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        fields = fields_of(request)
        hours = whole(fields, "expires_in_hours", low=1, high=LONGEST_HOURS, default=24)
        row, secret = create_token(
            actor=caller.actor,
            kind=TokenKind.ENROLMENT,
            name=text(fields, "name", most=120) or "devices",
            project=caller.project,
            expires_at=timezone.now() + dt.timedelta(hours=hours),
        )
        assert row.expires_at is not None
        ticket = tickets.lasting_ticket(row, secret)
        return answer({"token": ticket, "expires_at": row.expires_at.isoformat()}, 201)


def _tokens(made: Exchanged) -> dict[str, Any]:
    said: dict[str, Any] = {
        "access_token": made.access,
        "expires_in": int(made.expires_in_s),
        "token_type": "Bearer",
    }
    return said | ({"refresh_token": made.refresh} if made.refresh else {})
