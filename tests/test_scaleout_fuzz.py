"""Whatever arrives at Scaleout's doors, HTTP and gRPC: a refusal or an answer, never a fault, never half a row."""

from __future__ import annotations

import datetime as dt
import io
import json
import logging
import re
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import grpc
import pytest
from django.core.cache import cache
from django.utils import timezone
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients_app.models import Client, Registration
from federation.dialects.scaleout.containers import unwrapping
from federation.models.models import ComputePackage, Model
from federation.sessions.models import Assignment, Command, Order
from foundation.errors import StudioError
from projects.models import Project, User
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.services import create_token
from tests.cast import ApiFor, actor
from tests.permissions.test_scaleout import ROUTES, TABLE
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.scaleout_wire import B, ScaleoutWire, W, container, enrolled, enrolment
from tests.test_permissions_rpc_scaleout import METHODS

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)


def settings_of(examples: int) -> Any:
    return settings(fuzz, max_examples=examples)


TEXT = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["", "a\x00b", "../../etc/passwd", str(uuid.uuid4()), "x.y.z", "1e999", "-1", "\ud800", "x" * 5000]
    ),
)
NUMBER = st.one_of(st.integers(-(1 << 70), 1 << 70), st.floats(), st.booleans())
JSON = st.recursive(
    st.one_of(st.none(), NUMBER, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)
FIELDS = [
    *("name", "client_id", "refresh_token", "expires_in_hours", "file_name", "file_size", "chunk_size"),
    *("command_type", "client_ids", "timeout", "parameters", "model_id", "status", "log_level", "type"),
    *("session_id", "public_hostname", "file_token", "helper"),
]


# --- HTTP ---------------------------------------------------------------------------------------------------------
@pytest.mark.django_db
@pytest.mark.parametrize("name", [name for name in TABLE if name != "command-line-login"])
def test_no_http_body_makes_a_fault_or_half_a_row(
    name: str, owner: User, project: Project, api: ApiFor, tmp_path: Path, settings: Any, caplog: Any
) -> None:
    settings.DATA_DIR = tmp_path
    secrets = [
        create_token(actor=actor(owner), kind=kind, name="x", project=project, scopes=("admin",))[1]
        for kind in (TokenKind.PROJECT, TokenKind.ENROLMENT)
    ]
    command = Command.objects.create(
        project=project, kind="custom", name="echo", deadline=timezone.now() + dt.timedelta(hours=1)
    )
    pattern = ROUTES[name].replace("^", "").replace("/?$", "")
    pattern = re.sub(r"\(\?!.*?\)(?=\()", "", pattern)

    @settings_of(8)
    @given(
        secret=st.sampled_from(secrets),
        body=st.one_of(
            st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6), JSON, st.binary(max_size=60)
        ),
        kind=st.sampled_from(
            ["application/json", "application/x-www-form-urlencoded", "multipart/form-data", ""]
        ),
        pk=st.sampled_from([str(command.pk), str(uuid.uuid4()), "x", "%00", "%ff", "0" * 32, "a" * 64]),
        header=st.sampled_from(["0", "-1", "x", "9" * 40]),
        query=st.dictionaries(
            st.sampled_from(["parent_correlation_id", "status", "requestId", "pollToken", "x"]),
            TEXT,
            max_size=3,
        ),
    )
    def tried(secret: str, body: Any, kind: str, pk: str, header: str, query: dict[str, str]) -> None:
        cache.clear()
        url = re.sub(r"\(\?P<\w+>[^)]*\)", pk, pattern)
        query = {key: value.encode("utf-8", "replace").decode() for key, value in query.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        for method in TABLE[name]:
            answer = api(secret).generic(
                method,
                url if method != "GET" else f"{url}?{urlencode(query)}",
                data,  # type: ignore[arg-type]  # bytes are fine
                content_type=kind,
                headers={"X-Chunk-Index": header, "X-Limit": header, "X-Sort-Key": "x"},
            )
            assert answer.status_code < 500, (url, body, answer.content)
            if answer.status_code >= 400:
                assert "message" in answer.json() and "Traceback" not in answer.content.decode()

    with caplog.at_level(logging.ERROR):
        tried()
    assert not [record for record in caplog.records if "request.failed" in record.getMessage()]
    assert Client.objects.count() == Registration.objects.count()
    assert Token.objects.filter(kind=TokenKind.CLIENT, client=None).count() == 0
    assert not Order.objects.exists() and not ComputePackage.objects.exists() and not Model.objects.exists()


# --- containers ---------------------------------------------------------------------------------------------------
def unwrapped(body: bytes, most: int = 1 << 20) -> str:
    """ok, or the sentence of the refusal."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "s", Path(folder) / "t"
        source.write_bytes(body)
        try:
            unwrapping(most)(source, target)
        except StudioError as refused:
            assert refused.code == "invalid_model"
            return refused.message
        assert target.stat().st_size <= max(most, len(body))
        return "ok"


WHOLE = container([W, B])


@fuzz
@given(
    st.one_of(
        st.binary(max_size=300),
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)).map(
            lambda at: WHOLE[: at[0]] + bytes([at[1]]) + WHOLE[at[0] + 1 :]
        ),
        st.integers(0, len(WHOLE)).map(lambda cut: WHOLE[:cut]),
        st.binary(max_size=50).map(lambda more: WHOLE + more),
    )
)
def test_no_bytes_make_unwrapping_fail_otherwise_than_with_a_sentence(body: bytes) -> None:
    assert unwrapped(body)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return out.getvalue()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (zipped({"training_model.bin": bytes(8 << 20)}), "at most 1048576"),
        (zipped({f"files/{n}": b"" for n in range(100)} | {"training_model.bin": b""}), "101 files"),
        (zipped({f"f{n:05}" * 20: b"" for n in range(2000)}), "too large"),
        (zipped({"training_model.bin": b"x"}, zipfile.ZIP_LZMA), "other than deflate"),
        (zipped({"training_model.bin": b"x"}, zipfile.ZIP_BZIP2), "other than deflate"),
        (zipped({"model.pkl": b"x"}), "holds no training_model.bin"),
        (zipped({}), "holds no training_model.bin"),
    ],
    ids=["bomb", "many files", "huge directory", "lzma", "bzip2", "a pickle", "nothing"],
)
def test_hostile_containers_are_refused_before_they_are_unpacked(body: bytes, says: str) -> None:
    assert says in unwrapped(body)


def test_a_directory_that_lies_about_a_size_is_found_out() -> None:
    body = bytearray(zipped({"training_model.bin": bytes(4 << 20)}))
    real = (4 << 20).to_bytes(4, "little")
    assert body.count(real) == 2  # in the entry's header and in the directory
    assert "cannot be read" in unwrapped(bytes(body.replace(real, (100).to_bytes(4, "little"))))


# --- gRPC ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def combiner(rig: Rig) -> Iterator[CombinerHere]:
    here = CombinerHere(rig.folder / "here")
    worker = WorkerHere()
    yield here
    worker.stop()
    here.stop()


WIRE_TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", "{}", "[" * 3000, '{"value": NaN}', "VersionCheck", "FAILED", "COMPLETED", "\x00", "1" * 5000]
    ),
)
KINDS: dict[int, Any] = {
    9: WIRE_TEXT,
    8: st.booleans(),
    2: st.floats(width=32),
    1: st.floats(),
    13: st.integers(0, (1 << 32) - 1),
    5: st.integers(-(1 << 31), (1 << 31) - 1),
    3: st.integers(-(1 << 63), (1 << 63) - 1),
    14: st.integers(0, 5),
    12: st.binary(max_size=200),
}


def messages(descriptor: Any, ids: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Any message of that type; what is named like an id is often one that exists."""
    fields: dict[str, Any] = {}
    for field in descriptor.fields:
        value = messages(field.message_type, ids) if field.type == 11 else KINDS[field.type]
        if field.name.endswith("_id"):
            value = st.one_of(ids, WIRE_TEXT)
        repeated = getattr(field, "is_repeated", False)
        fields[field.name] = st.lists(value, max_size=3) if repeated else value
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: GetMessageClass(descriptor)(**given))


@pytest.mark.django_db(transaction=True)
def test_no_message_makes_a_fault_or_half_a_row(rig: Rig, combiner: CombinerHere, capfd: Any) -> None:
    client, made = enrolled(enrolment(rig), "fuzzed")
    one = ScaleoutWire(combiner.address, client.pk, made.access)
    one.poll()
    rig.session(min_clients=1, max_failed_rounds=1000)
    task = one.next_task()
    ids = st.sampled_from(
        [task.correlation_id, task.model_id, task.session_id, one.client_id, str(uuid.uuid4())]
    )
    names = sorted(set(METHODS) - {"TaskStream"})

    @settings(max_examples=300, deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)
    @given(data=st.data())
    def tried(data: Any) -> None:
        rpc = data.draw(st.sampled_from(names))
        method = METHODS[rpc]
        stub = one.combiner if hasattr(one.combiner, rpc) else one.models
        kinds = messages(method.input_type, ids)
        sent = iter(data.draw(st.lists(kinds, max_size=3))) if method.client_streaming else data.draw(kinds)
        more = data.draw(st.sampled_from([(), (("model-id", "m"),), (("model-id", "m"), ("checksum", "x"))]))
        try:
            answer = getattr(stub, rpc)(sent, metadata=(*one.metadata, *more), timeout=20)
            if method.server_streaming:
                list(answer)
        except grpc.RpcError as error:
            assert error.code() in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.OUT_OF_RANGE,
            ), (rpc, error.code(), error.details())

    tried()
    assert "call_failed" not in capfd.readouterr().err
    one.close()
    for row in Assignment.objects.all():
        assert (row.ended_at is None) == (row.status in ("assigned", "delivered"))
