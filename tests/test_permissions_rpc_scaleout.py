"""Who may call what of Scaleout's gRPC: every RPC, enumerated from the descriptor, for every kind of caller."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import time_machine
from django.core.cache import cache
from django.utils import timezone
from google.protobuf.message_factory import GetMessageClass

from federation.dialects.scaleout import scaleout_pb2 as wire
from projects.models import Project
from projects.tokens import tickets
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.services import create_token
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.scaleout_wire import ScaleoutWire, enrolled, enrolment

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]

OK = grpc.StatusCode.OK
REFUSED = grpc.StatusCode.UNAUTHENTICATED
WRONG = grpc.StatusCode.INVALID_ARGUMENT
UNKNOWN = grpc.StatusCode.NOT_FOUND
METHODS = {
    method.name: method for service in wire.DESCRIPTOR.services_by_name.values() for method in service.methods
}

# What the client itself hears, and another client of the project, about an assignment of the first.
EXPECTED: dict[str, tuple[grpc.StatusCode, grpc.StatusCode]] = {
    "Announce": (OK, OK),
    "PollAndReportAsync": (OK, OK),
    "SendHeartbeat": (OK, OK),
    "SendBacklogReport": (OK, OK),
    "SendStatus": (OK, OK),
    "SendTelemetryMessage": (OK, OK),
    "SendAttributeMessage": (OK, OK),
    "StreamTelemetryRecord": (OK, OK),
    "StreamAttributeRecord": (OK, OK),
    "StreamInferenceResult": (OK, OK),
    "SendModelMetric": (OK, OK),  # of another's task nothing is kept
    "Download": (OK, UNKNOWN),
    "Upload": (OK, UNKNOWN),  # who trains nothing has nothing to send
    "SendModelUpdate": (UNKNOWN, UNKNOWN),  # its upload never came; the task is not one of the other's
    "SendModelValidation": (grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.OUT_OF_RANGE),
    "TaskStream": (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.DEADLINE_EXCEEDED),  # it stays open
}
NEVER = (
    "nobody",
    "nonsense",
    "owner's user token",
    "project token",
    "enrolment ticket that did not register it",
    "expired",
    "revoked",
    "client of another project",
    "another client under its name",
    "access ticket of an hour ago",
)


def request_for(rpc: str, task: wire.TaskRequest) -> Any:
    message: Any = GetMessageClass(METHODS[rpc].input_type)()
    for name in ("correlation_id", "model_id", "session_id", "round_id"):
        if name in METHODS[rpc].input_type.fields_by_name:
            setattr(message, name, getattr(task, name))
    if rpc == "Announce":
        message.type = "Connect"
    if rpc == "SendModelValidation":
        message.data = "{}"
    return message


def call(one: ScaleoutWire, rpc: str, task: wire.TaskRequest) -> grpc.StatusCode:
    stub = one.combiner if hasattr(one.combiner, rpc) else one.models
    request = request_for(rpc, task)
    given = iter([request]) if METHODS[rpc].client_streaming else request
    metadata = (*one.metadata, ("model-id", "m"))
    try:
        answer = getattr(stub, rpc)(given, metadata=metadata, timeout=1 if rpc == "TaskStream" else 10)
        if METHODS[rpc].server_streaming:
            list(answer)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return OK


@pytest.fixture
def combiner(rig: Rig) -> Iterator[CombinerHere]:
    here = CombinerHere(rig.folder / "here")
    worker = WorkerHere()
    yield here
    worker.stop()
    here.stop()


def test_every_rpc_answers_each_caller_as_the_table_says(
    rig: Rig, combiner: CombinerHere, other_project: Project
) -> None:
    fleet = enrolment(rig)
    mine, my_tickets = enrolled(fleet, "mine")
    _other, other_tickets = enrolled(fleet, "other")
    foreign, foreign_tickets = enrolled(enrolment(rig, other_project), "foreign")
    _person, person = create_token(actor=rig.actor, kind=TokenKind.USER, name="laptop")
    _row, project = create_token(actor=rig.actor, kind=TokenKind.PROJECT, name="ci", project=rig.project)
    _row, stranger_fleet = create_token(
        actor=rig.actor, kind=TokenKind.ENROLMENT, name="fleet 2", project=rig.project
    )
    expired, revoked = enrolled(fleet, "expired"), enrolled(fleet, "revoked")
    Token.objects.filter(client=expired[0]).update(expires_at=timezone.now() - dt.timedelta(seconds=1))
    Token.objects.filter(client=revoked[0]).update(revoked_at=timezone.now())
    with time_machine.travel(timezone.now() - dt.timedelta(minutes=61)):
        stale, _ = tickets.access_ticket(Token.objects.get(client=mine))
    secrets = {
        "nobody": (mine.pk, ""),
        "nonsense": (mine.pk, "x.y.z"),
        "owner's user token": (mine.pk, person),
        "project token": (mine.pk, project),
        "enrolment ticket that did not register it": (mine.pk, stranger_fleet),
        "expired": (expired[0].pk, expired[1].access),
        "revoked": (revoked[0].pk, revoked[1].access),
        "client of another project": (mine.pk, foreign_tickets.access),
        "another client under its name": (mine.pk, other_tickets.access),
        "access ticket of an hour ago": (mine.pk, stale),
    }
    assert set(secrets) == set(NEVER) and set(METHODS) == set(EXPECTED)
    itself = ScaleoutWire(combiner.address, mine.pk, my_tickets.access)
    another = ScaleoutWire(combiner.address, _other.pk, other_tickets.access)
    elsewhere = ScaleoutWire(combiner.address, foreign.pk, foreign_tickets.access)
    itself.poll()
    rig.session(min_clients=1, requested_clients=1)
    task = itself.next_task()
    wrong = []
    for rpc in sorted(METHODS, key=lambda name: name == "TaskStream"):  # that one takes the connection over
        own, others = EXPECTED[rpc]
        for who, caller, expected in (
            ("the client itself", itself, own),
            ("another client", another, others),
            ("a client elsewhere", elsewhere, others),
        ):
            if (got := call(caller, rpc, task)) != expected:
                wrong.append(f"{rpc} by {who}: {got} instead of {expected}")
        for who, (client_id, secret) in secrets.items():
            caller = ScaleoutWire(combiner.address, client_id, secret, channel=itself.channel)
            cache.clear()  # nobody is throttled here
            if (got := call(caller, rpc, task)) != REFUSED:
                wrong.append(f"{rpc} by {who}: {got}")
    for each in (itself, another, elsewhere):
        each.close()
    assert not wrong, "\n".join(wrong)
    assert uuid.UUID(task.correlation_id)
