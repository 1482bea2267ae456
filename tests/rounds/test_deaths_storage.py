"""Storage refuses a write: retried with backoff, shown as the reason for waiting; the spool keeps everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from federation.combiner import shares
from federation.dialects.native import studio_v1_pb2 as proto
from federation.events.models import Event
from federation.sessions.models import Session
from federation.sessions.services import stop_session
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.rounds.refusing import storage_refuses
from tests.rounds.rows import assert_same, mean, update
from tests.services.environment import free_port
from tests.wire_client import ACCEPTED, WireClient

pytestmark = pytest.mark.django_db(transaction=True)

Combiners = Callable[..., CombinerHere]
Sender = Callable[[float], int]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "LONGEST_WAIT_S", 0.3)


def tasks_of(rig: Rig, combiners: list[CombinerHere], clients: int) -> tuple[Session, list[Sender]]:
    """A session whose clients have their tasks, and what each sends its update with."""
    wires = [rig.connect(combiners[n % len(combiners)], rig.client(f"site-{n}")[1]) for n in range(clients)]
    session = rig.session(min_clients=clients)
    return session, [sender(wire, wire.next_task()) for wire in wires]


def sender(wire: WireClient, task: proto.Task) -> Sender:
    return lambda value: wire.upload(task, update(value), num_examples=value).status


def spooled(combiners: list[CombinerHere], suffix: str) -> list[Path]:
    return [path for one in combiners for path in (one.folder / "spool").glob(f"*.{suffix}")]


def waits(rig: Rig, session: Session) -> None:
    def shown() -> bool:
        session.refresh_from_db()
        return "storage to take a combiner's partial" in session.waiting_for

    rig.wait_until(shown, timeout=15)


@pytest.mark.parametrize("combiners", [1, 2])
def test_a_partial_that_storage_refuses_is_tried_again_until_it_takes_it(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere, impatient: None, combiners: int
) -> None:
    """storage refuses a write: retried with backoff, shown as the reason for waiting; the spool keeps
    everything."""
    here = [combiner_here(f"c{n}") for n in range(combiners)]
    session, senders = tasks_of(rig, here, 2)
    with storage_refuses(f"models/{rig.project.pk}" if combiners == 1 else "partials"):
        assert [send(value) for send, value in zip(senders, (1, 3), strict=True)] == [ACCEPTED, ACCEPTED]
        waits(rig, session)
        assert session.waiting_until is not None
        assert len(spooled(here, "update")) == 2
    rig.until_session(session, "finished")
    assert session.waiting_for == "" and session.waiting_until is None
    assert_same(rig.arrays_of(session.current_model), mean([(update(1), 1), (update(3), 3)]))
    assert Event.objects.filter(kind="storage.refused", session=session, level="error").count() == 1
    assert not spooled(here, "partial")


def test_a_session_that_waits_for_storage_may_be_stopped(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere, impatient: None
) -> None:
    """Retried only as long as somebody waits for it."""
    here = [combiner_here()]
    session, senders = tasks_of(rig, here, 1)
    with storage_refuses(f"models/{rig.project.pk}"):
        assert senders[0](1) == ACCEPTED
        waits(rig, session)
        stop_session(actor=rig.actor, session=session)
        rig.until_session(session, "stopped")
        rig.wait_until(lambda: not spooled(here, "partial"), what="the combiner to let go")


def test_a_bucket_that_does_not_answer_is_a_try_again_later_and_loses_nothing(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """storage refuses: a download is put off, an update is accepted, and the round waits."""
    nowhere = f"s3://key:secret@127.0.0.1:{free_port()}/bucket?tls=0"
    combiner = rig.combiner(STORAGE_URL=nowhere)
    _, token = rig.client("a")
    wire = rig.connect(combiner, token)
    session = rig.session()
    task = wire.next_task()
    with pytest.raises(grpc.RpcError) as put_off:
        wire.download(task)
    assert put_off.value.code() == grpc.StatusCode.UNAVAILABLE
    assert wire.upload(task, update(2)).status == ACCEPTED
    waits(rig, session)
    combiner.kill()
    combiner_here(folder=rig.folder / "combiner-c1")  # the storage is repaired
    rig.until_session(session, "finished")
    assert_same(rig.arrays_of(session.current_model), update(2))
