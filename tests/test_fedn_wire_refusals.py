"""Who may call FEDn's RPCs, in plain text and over TLS; hostile messages get an answer, never a traceback."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.dialects.fedn import fedn_pb2 as wire
from federation.dialects.fedn import fedn_pb2_grpc as rpc
from federation.events.models import Event
from federation.sessions.models import Assignment
from federation.sessions.tasks import tick
from projects.models import Project
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.services import create_token
from tests.fedn_wire import FednWire, enrolment, registered
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.tls_files import certificate

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]

UNWELCOME, OK = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.OK
SERVED = ("Combiner", "Connector", "ModelService")
METHODS = {
    f"{name}.{method.name}": method
    for name in SERVED
    for method in wire.DESCRIPTOR.services_by_name[name].methods
}
# of the published contract, called by no client: the server's own parts talked over them
REFUSED = {
    "Combiner.SendBackwardCompletion",
    "Connector.AllianceStatusStream",
    "Connector.ListActiveClients",
    "Connector.ReassignClient",
    "Connector.ReconnectClient",
}
ANYBODY = {"Connector.AcceptingClients"}
# statuses after which a FEDn client is still alive
SURVIVED = (OK, grpc.StatusCode.UNAVAILABLE)


def stub_of(name: str, channel: grpc.Channel) -> Any:
    service, method = name.split(".")
    return getattr(getattr(rpc, f"{service}Stub")(channel), method)


def call(channel: grpc.Channel, name: str, metadata: list[tuple[str, str]], message: Any = None) -> Any:
    """The status that the call ends with; a stream that stays open is OK and is cut."""
    method = METHODS[name]
    message = message if message is not None else _message(method)
    streams_in = name == "ModelService.Upload"
    try:
        answer = stub_of(name, channel)(
            iter([message]) if streams_in else message, metadata=metadata, timeout=3 if streams_in else 10
        )
        if name == "Combiner.TaskStream":
            if not any(key == "studio-combiner" for key, _ in answer.initial_metadata()):
                list(answer)  # refused: it says why
            answer.cancel()
        elif name == "ModelService.Download" or name == "Connector.AllianceStatusStream":
            list(answer)
    except grpc.RpcError as error:
        return error.code()
    return OK


def _message(method: Any) -> Any:
    return getattr(wire, method.input_type.name)()


Callers = Callable[[Token, str], dict[str, tuple[list[tuple[str, str]], bool]]]


@pytest.fixture
def callers(rig: Rig, other_project: Project) -> Callers:
    """Name -> (metadata, welcome), all of a site where `site` registered with the token `fleet`."""

    def make(fleet: Token, secret: str) -> dict[str, tuple[list[tuple[str, str]], bool]]:
        mine = registered(fleet, "site")
        theirs_token, theirs = enrolment(rig, other_project)
        theirs_client = registered(theirs_token, "theirs")
        dead, dead_secret = enrolment(rig)
        gone = registered(dead, "revoked")
        Token.objects.filter(pk=dead.pk).update(revoked_at=timezone.now())
        late, late_secret = enrolment(rig)
        expired = registered(late, "expired")
        Token.objects.filter(pk=late.pk).update(expires_at=timezone.now())
        _, person = create_token(actor=rig.actor, kind=TokenKind.USER, name="laptop")

        def said(client_id: object, token: str = "") -> list[tuple[str, str]]:
            bearer = [("authorization", f"Bearer {token}")] if token else []
            return [("client", str(client_id)), *bearer]

        return {
            "the client by its registration": (said(mine.pk), True),
            "the client by its token": (said(mine.pk, secret), True),
            "a client of another project": (said(theirs_client.pk), True),
            "the client by another project's token": (said(mine.pk, theirs), False),
            "another project's client by this token": (said(theirs_client.pk, secret), False),
            "revoked": (said(gone.pk), False),
            "revoked, by token": (said(gone.pk, dead_secret), False),
            "expired": (said(expired.pk), False),
            "expired, by token": (said(expired.pk, late_secret), False),
            "a person's token": (said(mine.pk, person), False),
            "nonsense": (said(mine.pk, "stu_nonsense"), False),
            "nobody": ([], False),
            "an unknown id": (said(uuid.uuid4()), False),
        }

    return make


@pytest.mark.parametrize("name", METHODS)
def test_every_rpc_answers_each_caller_as_the_table_says(
    name: str, rig: Rig, combiner: CombinerHere, callers: Callers
) -> None:
    wrong = []
    with grpc.insecure_channel(combiner.address) as channel:
        for who, (metadata, welcome) in callers(*enrolment(rig)).items():
            got = call(channel, name, metadata)
            if name in REFUSED:
                expected = grpc.StatusCode.UNIMPLEMENTED
            else:
                expected = OK if welcome or name in ANYBODY else UNWELCOME
            if got != expected:
                wrong.append(f"{name} by {who}: {got} instead of {expected}")
    assert not wrong, "\n".join(wrong)


def test_over_tls_the_token_is_required(rig: Rig) -> None:
    cert, key = certificate(rig.folder, "127.0.0.1")
    combiner = rig.combiner(extra=["--tls-port", "0", "--tls-cert", str(cert), "--tls-key", str(key)])
    fleet, secret = enrolment(rig)
    client = registered(fleet, "site")
    with grpc.secure_channel(
        combiner.tls_address, grpc.ssl_channel_credentials(cert.read_bytes())
    ) as channel:
        said = [("client", str(client.pk))]
        assert call(channel, "Connector.SendHeartbeat", said) == UNWELCOME
        assert call(channel, "Connector.SendHeartbeat", [*said, ("authorization", f"Bearer {secret}")]) == OK


FIELD = st.one_of(
    st.text(max_size=40),
    st.just(str(uuid.UUID(int=1))),
    st.sampled_from(
        ["{}", "[]", "null", '{"config": "{}"}', '{"config": {"assignment_id": 5}}', "{" * 200, "\x00"]
    ),
)


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, Any]:
    """Any RPC that is served, and a message of its kind with fields of any content."""
    name = draw(st.sampled_from(sorted(set(METHODS) - REFUSED)))
    message = _message(METHODS[name])
    for field in message.DESCRIPTOR.fields:
        if not draw(st.booleans()):
            continue
        if field.type == field.TYPE_STRING:
            setattr(message, field.name, draw(FIELD))
        elif field.type == field.TYPE_BYTES:
            setattr(message, field.name, draw(st.binary(max_size=200)))
        elif field.type == field.TYPE_ENUM:
            setattr(message, field.name, draw(st.integers(-5, 300)))
        elif field.type == field.TYPE_MESSAGE and field.is_repeated:
            element = getattr(message, field.name).add()
            element.key = draw(FIELD)
            if isinstance(element, wire.AttributeElem):
                element.value = draw(FIELD)
            else:
                element.value = draw(st.floats(width=32))
    return name, message


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)  # fmt: skip
@given(said=messages())
def test_hostile_messages_leave_the_client_alive_and_no_half_written_row(
    said: tuple[str, Any], rig: Rig, combiner: CombinerHere, site: FednWire
) -> None:
    client = site
    name, message = said
    got = call(client.channel, name, list(client.metadata), message)
    assert got in SURVIVED, f"{name}: {got}"
    assert Assignment.objects.get().status in ("assigned", "delivered")
    assert not Event.objects.filter(message="").exists()


@pytest.fixture
def site(rig: Rig, combiner: CombinerHere) -> Iterator[FednWire]:
    client = FednWire(combiner.address, registered(enrolment(rig)[0], "site").pk).open()
    rig.wait_until(lambda: uuid.UUID(client.client_id) in combiner.core.hub.connections)
    session = rig.session()
    tick()
    client.next_task()
    yield client
    client.close()
    session.delete()
