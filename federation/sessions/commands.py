"""Commands: what clients are asked to do outside any round. Each client has an order, which ends once."""

from __future__ import annotations

import datetime as dt
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from clients_app.models import Client
from federation.events.services import publish
from federation.models import services as models
from federation.models.models import Model
from federation.sessions import assignments
from federation.sessions.assignments import Verdict
from federation.sessions.choices import LIVE_ORDER, ORDER_MOVES, AssignmentStatus, CommandKind, OrderStatus
from federation.sessions.models import Command, Order
from foundation.clock import db_now
from foundation.errors import StudioError, invalid
from foundation.hints import wake_combiners
from foundation.moves import move
from foundation.plain_json import plain
from projects import audit
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project
from projects.scoping import reach

MAX_PARAMETERS_BYTES = 64 * 1024
MAX_RESPONSE_BYTES = 1 << 20
LONGEST_S = 24 * 3600.0
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")
# which dialects have a word for it
DIALECTS_OF_KIND: dict[str, tuple[str, ...]] = {
    CommandKind.CUSTOM: ("scaleout",),
    CommandKind.STAGE: ("scaleout",),
    CommandKind.RESTART: ("scaleout",),
    CommandKind.VALIDATE: ("scaleout", "fedn"),
    CommandKind.PREDICT: ("scaleout", "fedn"),
}
_WITHOUT_MODEL = (CommandKind.CUSTOM, CommandKind.RESTART)


@dataclass(frozen=True)
class CommandSpec:
    """A request. `client_ids` None: all that are online and speak a dialect that knows the kind; times in seconds."""

    kind: str
    name: str = ""
    parameters: Mapping[str, Any] | None = None
    model_id: uuid.UUID | None = None
    client_ids: Iterable[uuid.UUID] | None = None
    timeout_s: float = 600.0
    command_id: uuid.UUID | None = None  # chosen by the caller, for one that wants to find it again


def start_command(*, actor: Actor, project: Project, spec: CommandSpec) -> Command:
    """Order it of the clients that are online now. Raises StudioError 400 (`no_clients`), 403, 404, 409."""
    project = reach(Project.objects.all(), actor, Action.RUN, "project", pk=project.pk)
    model = None
    if spec.model_id is not None:
        model = reach(Model.objects.filter(project=project), actor, Action.RUN, "model", pk=spec.model_id)
    elif spec.kind not in _WITHOUT_MODEL:
        raise invalid("model_id", f"A command to {spec.kind} needs a model.")
    if spec.kind == CommandKind.CUSTOM and not _NAME.fullmatch(spec.name):
        raise invalid("name", "A command's name has letters, digits, - and _, at most 100, a letter first.")
    if not 0 < spec.timeout_s <= LONGEST_S:
        raise invalid("timeout", f"timeout must be a number of seconds above 0, at most {LONGEST_S:g}.")
    clients = _chosen(project, spec)
    deadline = db_now() + dt.timedelta(seconds=spec.timeout_s)
    with transaction.atomic():
        if spec.command_id is not None and Command.objects.filter(pk=spec.command_id).exists():
            raise StudioError("command_id_taken", "A command of this id was started already.", 409)
        command = Command.objects.create(
            **({"id": spec.command_id} if spec.command_id else {}),
            project=project,
            kind=spec.kind,
            name=spec.name if spec.kind == CommandKind.CUSTOM else "",
            model=model,
            parameters=_parameters(spec.parameters),
            deadline=deadline,
            created_by=actor.user,
        )
        Order.objects.bulk_create(
            [Order(project=project, command=command, client=client) for client in clients]
        )
        audit.record(
            actor, "command.start", project_id=project.pk, target=str(command), command=str(command.pk)
        )
        publish(
            project_id=project.pk,
            kind="command.started",
            message=f"{command} was ordered of {len(clients)} client{'s' * (len(clients) != 1)}.",
            command=command.pk,
        )
        wake_combiners([str(client.pk) for client in clients])
    return command


def restart_clients(*, actor: Actor, project: Project, abort_ongoing: bool) -> Command | None:
    """Clients that can be told so start again, for a new package; those at work only with `abort_ongoing`. None: no
    such client is online. Raises as `start_command`."""
    spec = CommandSpec(kind=CommandKind.RESTART, parameters={"abort_ongoing_tasks": abort_ongoing})
    try:
        return start_command(actor=actor, project=project, spec=spec)
    except StudioError as error:
        if error.code != "no_clients":
            raise
        return None


def _parameters(given: Mapping[str, Any] | None) -> Any:
    kept = plain(dict(given or {}))
    if len(json.dumps(kept)) > MAX_PARAMETERS_BYTES:
        raise invalid("parameters", "The parameters of a command are at most 64 KiB of JSON.")
    return kept


def _chosen(project: Project, spec: CommandSpec) -> list[Client]:
    able = Client.objects.online().filter(project=project, dialect__in=DIALECTS_OF_KIND[spec.kind])
    if spec.client_ids is None:
        clients = list(able.order_by("id"))
    else:
        wanted = set(spec.client_ids)
        clients = list(able.filter(pk__in=wanted).order_by("id"))
        missing = wanted - {client.pk for client in clients}
        if missing:
            raise StudioError(
                "no_clients",
                f"Of the clients named, {len(missing)} are not online in this project with a client that can do this: "
                f"{', '.join(sorted(map(str, missing))[:3])}.",
            )
    if not clients:
        raise StudioError("no_clients", "No client that can do this is online.")
    return clients


# --- as a combiner uses them ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Ordered:
    """An order that a connected client has not answered yet; `assignment_id` is its id, as that of an assignment."""

    assignment_id: uuid.UUID
    client_id: uuid.UUID
    command_id: uuid.UUID
    kind: str
    name: str
    model_id: uuid.UUID | None
    parameters: dict[str, Any]
    deadline_unix_s: float


def ordered(client_ids: Iterable[uuid.UUID]) -> list[Ordered]:
    """Live orders of these clients, oldest first: one query."""
    rows = (
        Order.objects.filter(
            client_id__in=list(client_ids), status__in=LIVE_ORDER, command__deadline__gt=Now()
        )
        .select_related("command")
        .order_by("id")
    )
    return [
        Ordered(
            assignment_id=row.pk,
            client_id=row.client_id,
            command_id=row.command_id,
            kind=row.command.kind,
            name=row.command.name,
            model_id=row.command.model_id,
            parameters=row.command.parameters,
            deadline_unix_s=row.command.deadline.timestamp(),
        )
        for row in rows
    ]


def reasons_of_end(order_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, tuple[str, str]]:
    """Of those that have ended or are past their time: (status, reason)."""
    rows = Order.objects.filter(pk__in=list(order_ids))
    return {row.pk: (row.status if row.status not in LIVE_ORDER else "timeout", row.reason) for row in rows}


def note_started(order_ids: Iterable[uuid.UUID]) -> None:
    move(Order.objects.filter(pk__in=list(order_ids)), ORDER_MOVES, OrderStatus.RUNNING, started_at=Now())


def end_order(
    *, client_id: uuid.UUID, order_id: uuid.UUID, status: OrderStatus, response: Any = None, reason: str = ""
) -> bool:
    """The client's last word on an order. A second report changes nothing: False."""
    kept = plain(response)
    if len(json.dumps(kept)) > MAX_RESPONSE_BYTES:
        status, kept, reason = OrderStatus.FAILED, None, "the client's response was larger than 1 MiB"
    with transaction.atomic():
        mine = Order.objects.filter(pk=order_id, client_id=client_id)
        if not move(mine, ORDER_MOVES, status, ended_at=Now(), response=kept, reason=reason[:1000]):
            return False
        row = mine.select_related("command", "client").get()
        publish(
            project_id=row.project_id,
            kind=f"command.{status}",
            level="info" if status == OrderStatus.COMPLETED else "warning",
            message=f"{row.command} by {row.client.name} {status}{f': {reason}' if reason else ''}.",
            client_id=client_id,
            command=row.command_id,
        )
    return True


def accept_measured(
    *, client_id: uuid.UUID, task_id: uuid.UUID, data: dict[str, Any], weight: float
) -> Verdict:
    """A client measured the model of one of its tasks: of a round's assignment, or of an order to validate. A second
    copy gets the same answer and changes nothing. `weight`: examples behind it, 0 for not told."""
    verdict = assignments.accept_validation(
        client_id=client_id, assignment_id=task_id, data=data, weight=weight
    )
    if verdict is not None:
        return verdict
    row = (
        Order.objects.filter(pk=task_id, client_id=client_id, command__kind=CommandKind.VALIDATE)
        .select_related("command", "client")
        .first()
    )
    if row is None or row.command.model_id is None:
        return Verdict(False, "there is no such validation of yours")
    with transaction.atomic():
        if not end_order(client_id=client_id, order_id=task_id, status=OrderStatus.COMPLETED, response=data):
            row.refresh_from_db()
            if row.status == OrderStatus.COMPLETED:
                return Verdict(True)
            return Verdict(False, row.reason or "it had ended already")
        models.record_validation(
            project_id=row.project_id,
            session_id=None,
            round_number=None,
            model_id=row.command.model_id,
            client_id=client_id,
            client_name=row.client.name,
            assignment_id=task_id,
            data=data,
            weight=weight,
        )
    return Verdict(True)


def reject_measured(*, client_id: uuid.UUID, task_id: uuid.UUID, reason: str) -> None:
    """What the client sent of that task cannot be read: the task ends with the reason."""
    if not assignments.end_with_reason(
        client_id=client_id, assignment_id=task_id, status=AssignmentStatus.REJECTED, reason=reason
    ):
        end_order(client_id=client_id, order_id=task_id, status=OrderStatus.FAILED, reason=reason)


# --- as people use them -----------------------------------------------------------------------------------------
def stop_command(*, actor: Actor, command: Command, skip: bool = False) -> int:
    """End what is left of it: clients that work on it are told. With `skip` only what has not begun. Answers how many
    orders ended."""
    row: Command = reach(Command.objects.all(), actor, Action.RUN, "command", pk=command.pk)
    to = OrderStatus.SKIPPED if skip else OrderStatus.INTERRUPTED
    with transaction.atomic():
        live = Order.objects.filter(command=row, status__in=("pending",) if skip else LIVE_ORDER)
        clients = [str(pk) for pk in live.values_list("client_id", flat=True)]
        ended = move(live, ORDER_MOVES, to, ended_at=Now(), reason="stopped by a person")
        if ended:
            audit.record(
                actor, "command.stop", project_id=row.project_id, target=str(row), command=str(row.pk)
            )
            publish(
                project_id=row.project_id,
                kind="command.stopped",
                message=f"{row} was {'skipped' if skip else 'stopped'} for {ended} client{'s' * (ended != 1)}.",
                command=row.pk,
            )
            wake_combiners(clients)
    return ended


def time_out() -> int:
    """Orders past their command's deadline end; run now and then."""
    late = Order.objects.filter(command__deadline__lte=Now(), status__in=LIVE_ORDER)
    return move(
        Order.objects.filter(pk__in=late.values("pk")),
        ORDER_MOVES,
        OrderStatus.TIMEOUT,
        ended_at=Now(),
        reason="its time was up",
    )
