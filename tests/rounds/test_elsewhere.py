"""Models that clients fetch from the bucket itself, by the signed URL that a combiner's lane answers with."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from django.test import override_settings
from studio_sdk import studio_v1_pb2 as pb
from studio_sdk.client import elsewhere
from studio_sdk.client.elsewhere import ElsewhereClosed
from studio_sdk.client.elsewhere import download as from_elsewhere
from studio_sdk.client.lane import Lane
from studio_sdk.client.plain_http import LaneError

from federation.dialects.native.lane import ELSEWHERE
from federation.sessions.models import Session
from federation.sessions.services import stop_session
from foundation import storage
from tests.hostile_bucket import answering
from tests.rig import Rig
from tests.rounds.here import CombinerHere, lane_over_tls
from tests.rounds.test_compression_client import Running
from tests.rounds.test_compression_client import start as start
from tests.rounds.test_lane import OnLane
from tests.services.fixtures import Bucket
from tests.test_storage_s3 import use
from tests.test_wire_tls import Authority

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("bucket", "worker"),
    pytest.mark.s3,
]

NUMBERS = 500_000  # 2 MB
ASKS = {ELSEWHERE.decode(): "1"}


def reached_at(endpoint: str) -> override_settings:
    return override_settings(DIRECT_DOWNLOADS=endpoint)


@pytest.fixture
def bucket(s3_bucket: Bucket) -> Iterator[Bucket]:
    """Models are kept in it, and clients reach it."""
    with use(s3_bucket.url), reached_at(s3_bucket.endpoint):
        yield s3_bucket


@pytest.fixture
def session(rig: Rig) -> Session:
    return rig.session(seed=rig.model({"w": np.zeros(NUMBERS, np.float32)}), min_clients=1, rounds=2)


def trained(rig: Rig, combiner: CombinerHere, start: Any) -> tuple[Running, Session]:
    running = start(
        combiner.address, rig.client("a")[1], lambda arrays, _: ({"w": arrays["w"] + 1}, {"num_examples": 1})
    )
    seed = rig.model({"w": np.zeros(NUMBERS, np.float32)})
    session = rig.session(seed=seed, min_clients=1, rounds=2)
    rig.until_session(session, "finished")
    np.testing.assert_array_equal(rig.arrays_of(session.current_model)["w"], np.full(NUMBERS, 2.0))
    return running, session


def test_a_client_trains_on_models_that_never_pass_the_combiner(
    rig: Rig, combiner: CombinerHere, start: Any
) -> None:
    running, _ = trained(rig, combiner, start)
    assert combiner.core.traffic.sent_bytes == 0 and not list(combiner.core.downloads.folder.iterdir())
    assert not running.said("bucket")


def test_a_client_that_does_not_ask_for_it_and_one_that_does(
    rig: Rig, combiner: CombinerHere, session: Session
) -> None:
    client = OnLane(rig, combiner)
    task = client.stream.next_task()
    status, model = client.get(task)
    assert status == 200 and hashlib.sha256(model).hexdigest() == task.model_sha256
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", combiner.lane_port, timeout=20)) as ask:
        path = f"/studio.v1/model/{task.assignment_id}/{task.model_id}"
        ask.request("GET", path, headers={"Authorization": f"Bearer {client.secret}", **ASKS})
        answer = ask.getresponse()
        url = answer.headers["Location"]
        assert (answer.status, answer.read()) == (307, b"")
    assert client.secret not in url
    whole = b"".join(bytes(block) for block in fetched(url, 0, task.model_size))
    rest = b"".join(bytes(block) for block in fetched(url, 1_000_001, task.model_size))
    assert (whole, rest) == (model, model[1_000_001:])


def fetched(url: str, offset: int, size: int, **options: Any) -> Iterator[memoryview]:
    options = {"only_tls": False, "ca_pem": None} | options
    return from_elsewhere(url, offset, size - offset, cancelling=lambda _cut: None, **options)


def test_another_client_gets_no_url(rig: Rig, combiner: CombinerHere, session: Session) -> None:
    owner = OnLane(rig, combiner)
    task = owner.stream.next_task()
    stranger = OnLane(rig, combiner)
    assert stranger.get(task, **ASKS)[0] == 404
    assert owner.get(task, secret="", **ASKS)[0] == 401
    assert owner.get(task, **ASKS)[0] == 307


def test_a_bucket_that_the_client_cannot_reach_costs_nothing_but_a_sentence(
    rig: Rig, combiner: CombinerHere, start: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with reached_at(endpoint):
        running, session = trained(rig, combiner, start)
    (said,) = running.said("the bucket that this combiner names gives no model")
    assert "refused" in said
    assert combiner.core.traffic.sent_bytes == 2 * session.seed_model.size_bytes


REFUSALS = {
    "refuses": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    "sends another length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nshort",
    "names no length": b"HTTP/1.1 200 OK\r\n\r\nfor ever",
    "sends elsewhere": b"HTTP/1.1 307 On\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "speaks no HTTP": b"* OK IMAP4rev1\r\n",
    "closes": b"",
    "breaks off at once": b"HTTP/1.1 200 OK\r\nContent-Length: %(size)d\r\n\r\nthe beginning",
    "stands still": b"HTTP/1.1 200 OK\r\n",
    "passes the time": b"HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.mark.parametrize("how", REFUSALS)
def test_a_bucket_that_gives_no_model_never_sees_the_token_and_the_combiner_gives_it(
    rig: Rig, combiner: CombinerHere, start: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(elsewhere, "HEAD_TIMEOUT_S", 0.5)
    answer = REFUSALS[how]
    if b"%(" in answer:
        answer %= {b"size": rig.model({"w": np.zeros(NUMBERS, np.float32)}).size_bytes}
    with (
        answering(answer, for_ever=how in ("stands still", "passes the time")) as nobody,
        reached_at(nobody.url),
    ):
        running, _ = trained(rig, combiner, start)
    (head,) = nobody.heads  # once a connection, not for every model
    assert b"authorization" not in head.lower() and b"studio_" not in head
    why = "the download broke off" if how == "breaks off at once" else "gives no model"
    assert len(running.said(why)) == 1


def test_a_bucket_with_other_bytes_under_that_name_is_asked_once(
    rig: Rig, combiner: CombinerHere, start: Any
) -> None:
    size = rig.model({"w": np.zeros(NUMBERS, np.float32)}).size_bytes
    lie = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (size, bytes(size))
    with answering(lie) as liar, reached_at(liar.url):
        running, _ = trained(rig, combiner, start)
    assert len(liar.heads) == 1 and len(running.said("the downloaded model has sha256")) == 1


def test_a_model_that_breaks_off_goes_on_from_the_bucket(rig: Rig, combiner: CombinerHere) -> None:
    """Each try asks the combiner anew, whose URLs are good for a while only."""
    client = OnLane(rig, combiner)
    rig.session(
        seed=rig.model({"w": np.zeros(4_000_000, np.float32)}), min_clients=1
    )  # more than sockets hold
    task = client.stream.next_task()
    lane = Lane(f"127.0.0.1:{combiner.lane_port}", client.secret, False, None)
    cuts: list[Any] = []
    request = pb.DownloadRequest(assignment_id=task.assignment_id, model_id=task.model_id)
    came = lane.download(request, task.model_size, cuts.append)
    first = bytes(next(came))
    cuts[-1]()
    with pytest.raises(LaneError, match="the connection broke"):
        first += b"".join(bytes(block) for block in came)
    request.offset = len(first)
    whole = first + b"".join(bytes(b) for b in lane.download(request, task.model_size, cuts.append))
    assert hashlib.sha256(whole).hexdigest() == task.model_sha256
    assert combiner.core.traffic.sent_bytes == 0


def test_a_combiner_that_cannot_sign_gives_the_model_itself(
    rig: Rig, combiner: CombinerHere, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_credentials(_key: str) -> str:
        raise RuntimeError("nobody gives credentials just now")

    monkeypatch.setattr(storage, "signed_url", no_credentials)
    running, session = trained(rig, combiner, start)
    assert combiner.core.traffic.sent_bytes == 2 * session.seed_model.size_bytes
    assert not running.said("slower way")


def test_the_lane_is_free_again_while_its_client_is_at_the_bucket(
    rig: Rig, combiner: CombinerHere, session: Session
) -> None:
    """A combiner takes so many connections only; over TLS the client's end must be said."""
    client = OnLane(rig, combiner)
    task = client.stream.next_task()
    authority = Authority.make("Ours")
    cert, key = authority.issue(rig.folder)
    body = b"x" * 10_000_000  # more than sockets hold
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    pem = authority.pem.decode()
    with (
        lane_over_tls(combiner, cert, key) as (encrypted, port),
        answering(answer, tls=(cert, key)) as slow,
        reached_at(slow.url),
    ):
        lane = Lane(f"127.0.0.1:{port}", client.secret, True, pem)
        request = pb.DownloadRequest(assignment_id=task.assignment_id, model_id=task.model_id)
        came = lane.download(request, len(body), lambda _cut: None)
        assert bytes(next(came)) == body[: 1 << 20]
        rig.wait_until(lambda: not encrypted.connections, timeout=5, what="the lane to be free")
        assert sum(len(block) for block in came) == len(body) - (1 << 20)


def test_a_task_that_is_cancelled_leaves_the_bucket_at_once(
    rig: Rig, combiner: CombinerHere, start: Any
) -> None:
    size = rig.model({"w": np.zeros(NUMBERS, np.float32)}).size_bytes
    stands_still = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    with answering(stands_still, for_ever=True) as slow, reached_at(slow.url):
        running = start(combiner.address, rig.client("a")[1])
        session = rig.session(seed=rig.model({"w": np.zeros(NUMBERS, np.float32)}), min_clients=1)
        rig.wait_until(lambda: slow.heads, what="the client to ask the bucket")
        stop_session(actor=rig.actor, session=session)
        rig.wait_until(lambda: running.said("cancelled|stopped"), timeout=10, what="the client to go on")
        rig.wait_until(lambda: slow.left, timeout=5, what="the client to leave the bucket")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "none of HTTP"),
        ("file:///etc/passwd", "none of HTTP"),
        ("ftp://host/model", "none of HTTP"),
        ("http://[::1", "cannot be read"),
        ("http://host:port/model", "cannot be read"),
        ("http://127.0.0.1:1/a model", "refused"),
        ("http://a host/model", "control characters"),
        ("http://\x7f/model", "control characters"),
        ("https://127.0.0.1:1/model", "refused"),
    ],
)
def test_an_address_that_leads_nowhere_is_said(url: str, reason: str) -> None:
    with pytest.raises(ElsewhereClosed, match=reason):
        list(fetched(url, 0, 10))


def test_a_client_that_speaks_tls_takes_no_model_in_the_clear(rig: Rig) -> None:
    url = storage.signed_url("models/p/one")
    assert storage.signs() and urlsplit(url).scheme == "http"
    with pytest.raises(ElsewhereClosed, match="not encrypted"):
        list(fetched(url, 0, 10, only_tls=True))


def test_nothing_is_signed_unless_clients_are_said_to_reach_the_bucket() -> None:
    with reached_at(""):
        assert not storage.signs()


def test_files_are_never_elsewhere(tmp_path: Any) -> None:
    with use(f"file://{tmp_path / 'artifacts'}"):
        assert not storage.signs()
