"""Who may call what on the wire: every RPC of the service, enumerated from its descriptor, for every kind of caller."""

from __future__ import annotations

import datetime as dt
import http.client
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from django.utils import timezone

from federation.dialects.native import studio_v1_pb2 as wire
from federation.dialects.native.studio_v1_pb2_grpc import CombinerStub
from foundation.throttles import TOKEN_FAILURES
from projects.models import Project
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.services import create_token
from tests.rig import Child, Rig

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]

RPCS = [method.name for method in wire.DESCRIPTOR.services_by_name["Combiner"].methods]
REFUSED = grpc.StatusCode.UNAUTHENTICATED
UNKNOWN = grpc.StatusCode.NOT_FOUND
OK = grpc.StatusCode.OK

# What each caller hears about an assignment of the client `mine`. Connect names no assignment: any client may.
EXPECTED: dict[str, dict[str, grpc.StatusCode]] = {
    "Connect": {"the client itself": OK, "another client": OK, "client of another project": OK},
    "UploadStatus": {
        "the client itself": OK,
        "another client": UNKNOWN,
        "client of another project": UNKNOWN,
    },
    "Upload": {
        "the client itself": grpc.StatusCode.ABORTED,  # this upload ends before its tail
        "another client": UNKNOWN,
        "client of another project": UNKNOWN,
    },
    "Download": {"the client itself": OK, "another client": UNKNOWN, "client of another project": UNKNOWN},
}
NEVER = ["nobody", "nonsense", "owner's user token", "project token", "enrolment token", "expired", "revoked"]


def call(stub: CombinerStub, rpc: str, secret: str | None, task: wire.Task) -> grpc.StatusCode:
    metadata = (("authorization", f"Bearer {secret}"),) if secret else ()
    options: dict[str, Any] = {"metadata": metadata, "timeout": 10}
    mine = {"assignment_id": task.assignment_id, "upload_id": "u", "size": 100}
    try:
        if rpc == "Connect":
            hello = wire.ClientMessage(hello=wire.Hello(protocol=1))
            bye = wire.ClientMessage(bye=wire.Bye())
            list(stub.Connect(iter([hello, bye]), **options))
        elif rpc == "UploadStatus":
            stub.UploadStatus(wire.UploadStatusRequest(**mine), **options)
        elif rpc == "Upload":
            stub.Upload(iter([wire.UploadChunk(head=wire.UploadHead(**mine))]), **options)
        elif rpc == "Download":
            named = wire.DownloadRequest(assignment_id=task.assignment_id, model_id=task.model_id)
            list(stub.Download(named, **options))
        else:
            raise AssertionError(f"say in this table who may call {rpc}")
    except grpc.RpcError as error:
        return error.code()
    return OK


@pytest.fixture
def secrets(rig: Rig, other_project: Project) -> Iterator[Callable[[], dict[str, str | None]]]:
    def make() -> dict[str, str | None]:
        _, another = rig.client("another")
        _, foreign = rig.client("foreign", other_project)
        _, expired = rig.client("expired")
        Token.objects.filter(client__name="expired").update(
            expires_at=timezone.now() - dt.timedelta(seconds=1)
        )
        _, revoked = rig.client("revoked")
        Token.objects.filter(client__name="revoked").update(revoked_at=timezone.now())
        _, person = create_token(actor=rig.actor, kind=TokenKind.USER, name="laptop")
        _, project = create_token(actor=rig.actor, kind=TokenKind.PROJECT, name="ci", project=rig.project)
        _, enrolment = create_token(
            actor=rig.actor, kind=TokenKind.ENROLMENT, name="fleet", project=rig.project
        )
        return {
            "another client": another,
            "client of another project": foreign,
            "nobody": None,
            "nonsense": f"stu_{'a' * 12}_{uuid.uuid4().hex}",
            "owner's user token": person,
            "project token": project,
            "enrolment token": enrolment,
            "expired": expired,
            "revoked": revoked,
        }

    yield make


@dataclass
class Scene:
    """A client that was given a task, and everybody who asks for it: by name, with what they show."""

    combiner: Child
    task: wire.Task
    callers: dict[str, str | None]


@pytest.fixture
def scene(rig: Rig, secrets: Callable[[], dict[str, str | None]]) -> Scene:
    _, mine = rig.client("mine")
    combiner = rig.combiner()
    client = rig.connect(combiner, mine)
    rig.session(start=True, min_clients=1)
    rig.worker()
    # the client itself last, whose calls may end its assignment
    return Scene(combiner, client.next_task(), {**secrets(), "the client itself": mine})


def expected_of(rpc: str, caller: str) -> grpc.StatusCode:
    return REFUSED if caller in NEVER else EXPECTED[rpc][caller]


def test_every_rpc_answers_each_caller_as_the_table_says(scene: Scene) -> None:
    wrong = []
    with grpc.insecure_channel(scene.combiner.address) as channel:
        stub = CombinerStub(channel)
        for rpc in RPCS:
            for caller, secret in scene.callers.items():
                expected = expected_of(rpc, caller)
                got = call(stub, rpc, secret, scene.task)
                if got != expected:
                    wrong.append(f"{rpc} by {caller}: {got} instead of {expected}")
    assert not wrong, "\n".join(wrong)


# The same calls on the lane, as HTTP. Whoever may call `Upload` may PUT, whoever may `Download` may GET.
LANE = {"GET": "Download", "PUT": "Upload"}
STATUS = {OK: 200, UNKNOWN: 404, REFUSED: 401}


def ask_lane(port: int, method: str, secret: str | None, task: wire.Task) -> int:
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    head = wire.UploadHead(assignment_id=task.assignment_id, upload_id="u", size=10**9, offset=10**9 - 4)
    start = wire.UploadStart(head=head).SerializeToString()
    body = len(start).to_bytes(4) + start + b"tail"
    path = (
        f"/studio.v1/model/{task.assignment_id}/{task.model_id}" if method == "GET" else "/studio.v1/update"
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body if method == "PUT" else None, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_lane_answers_each_caller_as_the_rpcs_do(scene: Scene) -> None:
    wrong = []
    for method, rpc in LANE.items():
        for caller, secret in scene.callers.items():
            # its own update is too large, and rejected: an answer as any
            expected = 200 if caller == "the client itself" else STATUS[expected_of(rpc, caller)]
            got = ask_lane(scene.combiner.lane, method, secret, scene.task)
            if got != expected:
                wrong.append(f"{method} by {caller}: {got} instead of {expected}")
    assert not wrong, "\n".join(wrong)


def test_guessing_tokens_on_the_wire_is_throttled_while_a_good_one_still_works(rig: Rig) -> None:
    _, mine = rig.client("mine")
    combiner = rig.combiner()
    request = wire.UploadStatusRequest(assignment_id=str(uuid.uuid4()), upload_id="u", size=1)

    def ask(stub: CombinerStub, secret: str) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as refused:
            stub.UploadStatus(request, metadata=(("authorization", f"Bearer {secret}"),), timeout=10)
        return refused.value.code()

    with grpc.insecure_channel(combiner.address) as channel:
        stub = CombinerStub(channel)
        guesses = [
            ask(stub, f"stu_{number:012d}_{uuid.uuid4().hex}") for number in range(TOKEN_FAILURES.amount + 1)
        ]
        assert set(guesses[:-1]) == {REFUSED}
        assert guesses[-1] == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ask(stub, mine) == UNKNOWN  # heard, and told that there is no such assignment
