"""Sessions that FEDn's and Scaleout's clients make: ordinary ones."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from federation.dialects.controller.asked import fields_of
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.nouns.clients import CLIENTS
from federation.dialects.controller.nouns.sessions import SESSIONS
from federation.dialects.controller.session_words import spec_from, whole_or_none
from federation.dialects.controller.view import ControllerView, answer
from federation.dialects.controller.views.lists import Many, One
from federation.sessions.config import SessionConfig
from federation.sessions.models import Session
from federation.sessions.selectors import running_of, session_of
from federation.sessions.services import check_can_run, create_session, run_session, stop_session
from foundation.errors import StudioError
from projects.choices import Action


class Sessions(Many):
    noun = SESSIONS

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        spec = spec_from(fields_of(request), caller.project)
        session = create_session(actor=caller.actor, project=caller.project, spec=spec)
        return answer(SESSIONS.shaped(caller, [session])[0], 201)


class OneSession(One):
    noun = SESSIONS

    def patch(self, request: HttpRequest, caller: Caller, pk: str) -> HttpResponseBase:
        """Ends a session: status Terminated. Nothing else of a session changes once it is made."""
        return self._change(caller, pk, fields_of(request))

    def put(self, request: HttpRequest, caller: Caller, pk: str) -> HttpResponseBase:
        return self._change(caller, pk, fields_of(request))

    def _change(self, caller: Caller, pk: str, given: dict[str, Any]) -> HttpResponseBase:
        session = SESSIONS.row(caller, pk)
        now = SESSIONS.shaped(caller, [session])[0]
        status = given.pop("status", None)
        other = [
            key
            for key, value in given.items()
            if now.get(key) != value and key not in ("committed_at", "updated_at")
        ]
        if other or status not in (None, "Terminated", now["status"]):
            raise StudioError(
                "invalid", "Only the status of a session can be set, and only to Terminated.", 400
            )
        if status == "Terminated":
            stop_session(actor=caller.actor, session=session)
        else:
            session_of(caller.actor, caller.project, session.pk, Action.RUN)
        return answer({**now, "status": status or now["status"]})


class StartSession(ControllerView):
    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        given = fields_of(request)
        session = _named(caller, given)
        if running_of(caller.actor, caller.project):
            raise StudioError("session_running", "A session is already running!", 400)
        check_can_run(session)
        needed = SessionConfig.from_json(session.config).min_clients
        named = {"client_id": given["client_ids"]} if given.get("client_ids") else {}
        if CLIENTS.matching(caller, {"status": "online", **named}).count() < needed:
            raise StudioError(
                "too_few_clients",
                f"Number of available clients is lower than the required minimum of {needed}",
                400,
            )
        run_session(
            actor=caller.actor,
            session=session,
            rounds=whole_or_none(given, "rounds"),
            round_timeout_s=whole_or_none(given, "round_timeout"),
            client_ids=given.get("client_ids"),
        )
        return answer({"message": "Session started"})


class StartSplitLearning(ControllerView):
    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        _named(caller, fields_of(request))
        raise StudioError(
            "not_offered", "Split learning is not offered here; the session is kept as it was sent.", 400
        )


def _named(caller: Caller, given: dict[str, Any]) -> Session:
    """In the words and statuses that the clients know."""
    if not given.get("session_id"):
        raise StudioError("invalid", "Session ID is required", 400)
    try:
        row: Session = SESSIONS.row(caller, str(given["session_id"]))
    except StudioError:
        raise StudioError("invalid", "Session with specified ID does not exist", 400) from None
    return session_of(caller.actor, caller.project, row.pk, Action.RUN)


class ControllerStatus(ControllerView):
    """GET get_controller_status."""

    def get(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        running = running_of(caller.actor, caller.project)
        return answer({"state": "monitoring" if running else "idle"})
