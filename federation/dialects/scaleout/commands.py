"""What Scaleout's Python API asks of clients outside any round, and the switches it has for what runs now."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from clients_app.services import name_combiner_host
from federation.dialects.controller.asked import fields_of, page_of
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.nouns.combiners import COMBINERS
from federation.dialects.controller.nouns.statuses import STATUSES
from federation.dialects.controller.view import ControllerView, answer
from federation.dialects.controller.views.lists import Many, One
from federation.dialects.scaleout.command_nouns import CHILDREN, ROOTS, any_of, command_type
from federation.dialects.scaleout.fields import optional_id, text
from federation.events.services import publish
from federation.sessions.choices import LIVE_ORDER, CommandKind
from federation.sessions.commands import LONGEST_S, CommandSpec, start_command, stop_command
from federation.sessions.models import Command, Order
from federation.sessions.selectors import running_of
from federation.sessions.services import stop_session
from foundation.errors import StudioError, forbidden, invalid
from projects.choices import Action

MAX_CLIENTS = 10_000
_LEVELS = {"DEBUG": "debug", "WARNING": "warning", "ERROR": "error"}


def _client_ids(given: Mapping[str, Any]) -> list[uuid.UUID] | None:
    """A list, or text with commas; nothing, or an empty list: all."""
    named = given.get("client_ids", given.get("node_ids"))
    many = named.split(",") if isinstance(named, str) else named
    if many is None or many in ([], [""]):
        return None
    if not isinstance(many, list) or len(many) > MAX_CLIENTS:
        raise invalid("client_ids", "client_ids must be a list of client ids.")
    return [found for each in many if (found := optional_id({"client_ids": each}, "client_ids"))]


def _timeout_s(given: Mapping[str, Any]) -> float:
    value = given.get("timeout")
    if value is None:
        return CommandSpec.timeout_s
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid("timeout", "timeout must be a number of seconds; -1 for as long as may be.")
    return LONGEST_S if value == -1 else float(value)


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    value = given.get("parameters")
    if value is not None and not isinstance(value, dict):
        raise invalid("parameters", "parameters must be a JSON object.")
    return value or {}


def _start(caller: Caller, message: str, spec: CommandSpec) -> HttpResponseBase:
    command = start_command(actor=caller.actor, project=caller.project, spec=spec)
    return answer(
        {
            "success": True,
            "message": message,
            "correlation_id": str(command.pk),
            "command_type": command_type(command),
        }
    )


class RunCommand(ControllerView):
    """All clients named work on it at once, whatever `synchronous` says: nothing else waits for them."""

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        given = fields_of(request)
        name = text(given, "command_type").removeprefix("Custom_")
        spec = CommandSpec(
            kind=CommandKind.CUSTOM,
            name=name,
            parameters=_parameters(given),
            client_ids=_client_ids(given),
            timeout_s=_timeout_s(given),
        )
        return _start(caller, "Command started", spec)


class _OnModel(ControllerView):
    """A command that is about a model, which the body or the address names."""

    kind: CommandKind
    message: str

    def post(self, request: HttpRequest, caller: Caller, pk: str = "") -> HttpResponseBase:
        given = fields_of(request)
        model_id = optional_id({"model_id": pk} if pk else given, "model_id")
        spec = CommandSpec(
            kind=self.kind,
            model_id=model_id,
            parameters=_parameters(given),
            client_ids=_client_ids(given),
            timeout_s=_timeout_s(given),
        )
        return _start(caller, self.message, spec)


class StageModel(_OnModel):
    kind = CommandKind.STAGE
    message = "Model staging started"


class StartInference(_OnModel):
    kind = CommandKind.PREDICT
    message = "Inference started"


class StartValidation(_OnModel):
    kind = CommandKind.VALIDATE
    message = "Validation started"


class Commands(ControllerView):
    """The children of a root that is named, else the roots."""

    def get(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        given = request.GET.dict()
        noun = CHILDREN if given.get("parent_correlation_id") else ROOTS
        return answer(noun.listed(caller, given, page_of(request)))


class OneCommand(ControllerView):
    def get(self, request: HttpRequest, caller: Caller, pk: str) -> HttpResponseBase:
        row = any_of(caller, pk)
        return answer((ROOTS if isinstance(row, Command) else CHILDREN).shaped(caller, [row])[0])


class EndCommand(ControllerView):
    """`stop` ends what is left of a command and tells its clients; `skip` goes on without those that have not begun."""

    skip = False

    def post(self, request: HttpRequest, caller: Caller, pk: str) -> HttpResponseBase:
        row = any_of(caller, pk)
        command = row.command if isinstance(row, Order) else row
        ended = stop_command(actor=caller.actor, command=command, skip=self.skip)
        return answer({"success": True, "message": f"{ended} of its clients were told to stop."})


class StopCurrent(ControllerView):
    """Whatever runs now: the project's sessions and commands."""

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        _may_run(caller)
        sessions, commands = running_of(caller.actor, caller.project), _running(caller)
        if not sessions and not commands:
            raise StudioError("nothing_runs", "Nothing runs in this project now.", 400)
        for session in sessions:
            stop_session(actor=caller.actor, session=session)
        for command in commands:
            stop_command(actor=caller.actor, command=command)
        return answer({"success": True, "message": f"{len(sessions) + len(commands)} stopped"})


class ContinueCurrent(ControllerView):
    """Commands go on without the clients that have not begun; a round of a session ends by its own rule."""

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        _may_run(caller)
        commands = _running(caller)
        if not commands:
            raise StudioError(
                "nothing_waits", "No command waits for clients now; rounds end by their own rule.", 400
            )
        ended = sum(stop_command(actor=caller.actor, command=each, skip=True) for each in commands)
        return answer({"success": True, "message": f"{ended} clients are not waited for"})


def _may_run(caller: Caller) -> None:
    """Where no row is changed that would ask."""
    if not caller.may(Action.RUN):
        raise forbidden("You may see this project, but your role does not allow you to change what it does.")


def _running(caller: Caller) -> list[Command]:
    return list(ROOTS.rows(caller).filter(orders__status__in=LIVE_ORDER).distinct()[:100])


class Statuses(Many):
    noun = STATUSES

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        """A sentence for the project's events."""
        _may_run(caller)
        given = fields_of(request)
        event = publish(
            project_id=caller.project.pk,
            kind="status.posted",
            message=text(given, "status", most=1000) or "(no text)",
            level=_LEVELS.get(text(given, "log_level", most=20).upper(), "info"),
            type=text(given, "type", most=60),
            by=caller.actor.key,
        )
        return answer(STATUSES.shaped(caller, [event])[0], 201)


class OneCombiner(One):
    noun = COMBINERS

    def patch(self, request: HttpRequest, caller: Caller, pk: str) -> HttpResponseBase:
        """The host name by which this project's clients reach it; another project's are told their own."""
        row = COMBINERS.row(caller, pk)
        hostname = text(fields_of(request), "public_hostname")
        name_combiner_host(actor=caller.actor, project=caller.project, combiner=row, hostname=hostname)
        caller.project.refresh_from_db(fields=["settings"])
        return answer(COMBINERS.one(caller, pk))
