"""Intake: in which order bytes become an accepted update, and what is said of every other."""

from __future__ import annotations

import hashlib
import resource
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from federation.dialects.native import studio_v1_pb2 as proto
from federation.events.models import Event
from federation.models.models import Metric
from federation.sessions.models import Assignment, Round, Session
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.rounds.rows import ago, assert_same, update
from tests.wire_client import ACCEPTED, CHUNK, REFUSED, REJECTED, WireClient

pytestmark = pytest.mark.django_db(transaction=True)

Combiners = Callable[..., CombinerHere]


def training(
    rig: Rig, combiner: CombinerHere, *names: str, **settings: Any
) -> tuple[Session, list[WireClient]]:
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in names]
    return rig.session(**{"min_clients": len(names), **settings}), wires


def row(task: proto.Task) -> Assignment:
    return Assignment.objects.get(pk=task.assignment_id)


def spooled(combiner: CombinerHere, suffix: str) -> list[Path]:
    """Files of clients' updates; a share's sum, while it is written, is a `.part` too, whose name begins with a dot."""
    return list((combiner.folder / "spool").glob(f"[!.]*.{suffix}"))


def test_an_accepted_update_is_told_at_once_that_it_is_before_a_byte_is_read(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """The row is looked at before a byte is read: already accepted: answered at once.
    A second copy gets the same answer and changes nothing; only the file named in the row counts."""
    combiner = combiner_here()
    _session, (a, _b) = training(rig, combiner, "a", "b")
    task = a.next_task()
    for value in (1, 50, 60):
        assert a.upload(task, update(value), num_examples=value).status == ACCEPTED
    assert row(task).num_examples == 1
    assert len(spooled(combiner, "update")) == 1 and not spooled(combiner, "part")
    assert Event.objects.filter(kind="update.accepted").count() == 1
    assert Metric.objects.filter(source="training").count() == 1


def test_two_copies_at_the_same_moment_count_once(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """A new upload call ends an older writer for the same assignment first, or gets its verdict."""
    combiner = combiner_here()
    session, (a,) = training(rig, combiner, "a")
    task = a.next_task()
    body = a.encode(update(3))
    calls = []
    for _ in range(20):
        call = a.stub.Upload.future(
            iter(
                [
                    proto.UploadChunk(
                        head=proto.UploadHead(
                            assignment_id=task.assignment_id, upload_id="same", size=len(body)
                        )
                    ),
                    proto.UploadChunk(data=body),
                    tail(body),
                ]
            ),
            metadata=a.metadata,
            timeout=20,
        )
        calls.append(call)
    answers = set()
    for call in calls:
        try:
            answers.add(call.result().status)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.ABORTED
    assert answers == {ACCEPTED}
    rig.until_session(session, "finished")
    assert_same(rig.arrays_of(session.current_model), update(3))
    assert Event.objects.filter(kind="update.accepted").count() == 1


def tail(body: bytes, examples: float = 1.0, metadata: str = "{}") -> proto.UploadChunk:
    return proto.UploadChunk(
        tail=proto.UploadTail(
            sha256=hashlib.sha256(body).hexdigest(), num_examples=examples, metadata_json=metadata
        )
    )


def test_a_late_update_is_refused_with_the_reason_and_an_event(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """ended: refused with the reason. A late one: `refused: round 7 is closed`, and an event."""
    session, (a, b) = training(rig, combiner_here(), "a", "b", min_updates=1)
    task_a, task_b = a.next_task(), b.next_task()
    assert a.upload(task_a, update(1)).status == ACCEPTED
    Round.objects.update(deadline=ago(1))
    Session.objects.update(look_at=None)
    rig.until_session(session, "finished")
    receipt = b.upload(task_b, update(100))
    assert receipt.status == REFUSED and "round 1 is closed" in receipt.reason
    assert row(task_b).status == "expired"
    told = Event.objects.get(kind="update.refused")
    assert "An update of b was refused: round 1 is closed" in told.message and told.level == "warning"
    assert_same(rig.arrays_of(session.current_model), update(1))


def test_an_upload_goes_on_only_with_the_same_id_and_size(rig: Rig, combiner_here: Combiners) -> None:
    """Resume only with the same upload id and size, else from 0."""
    combiner, worker = combiner_here(), WorkerHere()
    seed = rig.model({"w": np.zeros(700_000, np.float32)})
    _session, (a,) = training(rig, combiner, "a", seed=seed)
    task = a.next_task()
    body = a.encode({"w": np.ones(700_000, np.float32)})
    with pytest.raises(grpc.RpcError) as cut:
        a.upload(task, body, upload_id="one", stop_after=2 * CHUNK)
    assert cut.value.code() == grpc.StatusCode.ABORTED

    def offset(upload_id: str, size: int) -> int:
        request = proto.UploadStatusRequest(assignment_id=task.assignment_id, upload_id=upload_id, size=size)
        return int(a.stub.UploadStatus(request, metadata=a.metadata).offset)

    assert offset("one", len(body)) == 2 * CHUNK
    assert offset("two", len(body)) == 0 and offset("one", len(body) - 1) == 0
    assert a.upload(task, body, upload_id="one").status == ACCEPTED
    assert a.resumed_at == 2 * CHUNK
    worker.stop()


def test_no_name_that_a_client_gives_forms_a_path(rig: Rig, combiner_here: Combiners) -> None:
    """Files are `<server-made id>.part`; no string of a client's ever forms a path."""
    combiner, worker = combiner_here(), WorkerHere()
    _session, (a, _b) = training(rig, combiner, "a", "b")
    task = a.next_task()
    with pytest.raises(grpc.RpcError):
        a.upload(task, update(1), upload_id="../../../evil\0/etc", stop_after=8)
    (part,) = spooled(combiner, "part")
    assert part.stem.isalnum() and len(part.stem) == 40
    assert a.upload(task, update(1), upload_id="../../../evil\0/etc").status == ACCEPTED
    assert [p.stem.isalnum() for p in spooled(combiner, "update")] == [True]
    worker.stop()


WRONG: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "another shape": ({"w": np.ones((3, 4), np.float32), "b": np.ones(3, np.float32)}, "w"),
    "another dtype": ({"w": np.ones((4, 3), np.float64), "b": np.ones(3, np.float32)}, "w"),
    "a name missing": ({"w": np.ones((4, 3), np.float32)}, "b"),
    "a name too many": (
        {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32), "x": np.ones(1, np.float32)},
        "x",
    ),
    "not a number": ({"w": np.full((4, 3), np.nan, np.float32), "b": np.ones(3, np.float32)}, "w"),
    "infinite": ({"w": np.full((4, 3), np.inf, np.float32), "b": np.ones(3, np.float32)}, "w"),
    "not a model": (b"hello, world", ""),
}


def test_whatever_is_wrong_with_an_update_is_said_and_the_round_goes_on(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """Headers: names, dtypes, shapes, sizes against the global model's layout; then finite. Anything wrong:
    `rejected`, the reason to the client and to Events; the round goes on."""
    names = [*WRONG, "good"]
    session, wires = training(rig, combiner_here(), *names, min_updates=1)
    for (name, (arrays, culprit)), wire in zip(WRONG.items(), wires):
        task = wire.next_task()
        receipt = wire.upload(task, arrays)
        assert receipt.status == REJECTED and culprit in receipt.reason, name
        assert row(task).status == "rejected" and row(task).error == receipt.reason
        told = Event.objects.get(kind="assignment.rejected", client__name=name)
        assert receipt.reason in told.message
        assert wire.upload(task, update(1)).status == REJECTED  # the same answer again
    assert wires[-1].upload(wires[-1].next_task(), update(2)).status == ACCEPTED
    rig.until_session(session, "finished")
    assert_same(rig.arrays_of(session.current_model), update(2))


@pytest.mark.parametrize("examples", [0.0, 5e-324, -1.0, float("nan"), float("inf"), 1.1e12])
def test_the_number_of_examples_must_be_positive_finite_and_believable(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere, examples: float
) -> None:
    """`num_examples` positive, finite, from 1e-12 (the mean of what counts less is lost in rounding) to 1e12."""
    _session, (a, _b) = training(rig, combiner_here(), "a", "b", min_updates=1)
    task = a.next_task()
    receipt = a.upload(task, update(1), num_examples=examples, metadata={"loss": 1})
    assert receipt.status == REJECTED and "num_examples" in receipt.reason.replace(" ", "_")
    assert row(task).status == "rejected"


def test_bytes_that_do_not_fit_their_checksum_are_asked_for_once_more(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """sha256 compared: sent again once, then rejected."""
    _session, (a, b) = training(rig, combiner_here(), "a", "b", min_updates=1)
    task = a.next_task()
    with pytest.raises(grpc.RpcError) as again:
        a.upload(task, update(1), sha256="0" * 64)
    assert again.value.code() == grpc.StatusCode.ABORTED
    assert a.upload(task, update(1)).status == ACCEPTED
    task = b.next_task()
    with pytest.raises(grpc.RpcError):
        b.upload(task, update(1), sha256="0" * 64)
    receipt = b.upload(task, update(1), sha256="0" * 64)
    assert receipt.status == REJECTED and "twice" in receipt.reason


def test_an_update_that_is_too_large_is_refused_by_its_announced_size(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """sizes against the global model's layout, before a byte is read."""
    combiner = combiner_here()
    _session, (a, _b) = training(rig, combiner, "a", "b", min_updates=1)
    receipt = a.upload(a.next_task(), b"x" * (3 << 20), stop_after=0)
    assert receipt.status == REJECTED and "3145728 bytes" in receipt.reason
    assert not spooled(combiner, "part")


def test_a_call_may_touch_only_the_callers_own_assignments(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """A call may touch only the caller's own assignments and models; unknown and forbidden look the same."""
    _session, (a, b) = training(rig, combiner_here(), "a", "b")
    task = a.next_task()
    refusals = []
    for stranger, name in ((b, task.assignment_id), (a, str(uuid.uuid4()))):
        request = proto.UploadStatusRequest(assignment_id=name, upload_id="x", size=10)
        with pytest.raises(grpc.RpcError) as refused:
            stranger.stub.UploadStatus(request, metadata=stranger.metadata)
        refusals.append((refused.value.code(), refused.value.details()))
    assert refusals[0] == refusals[1] and refusals[0][0] == grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as refused:
        b.download(task)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_call_that_is_cut_while_the_update_is_judged_still_has_its_verdict(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """What was whole goes on to its verdict: the client asks again and is told."""
    combiner = combiner_here()
    session, (a,) = training(rig, combiner, "a", seed=rig.model({"w": np.zeros(400_000, np.float32)}))
    task = a.next_task()
    body = a.encode({"w": np.ones(400_000, np.float32)})
    finish = combiner.core.intake.finish

    async def cut(*args: Any) -> Any:
        call.cancel()
        return await finish(*args)

    combiner.core.intake.finish = cut  # type: ignore[method-assign, assignment]
    head = proto.UploadHead(assignment_id=task.assignment_id, upload_id="x", size=len(body))
    chunks = [
        proto.UploadChunk(head=head),
        *(proto.UploadChunk(data=body[i : i + CHUNK]) for i in range(0, len(body), CHUNK)),
        tail(body),
    ]
    call = a.stub.Upload.future(iter(chunks), metadata=a.metadata)
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        call.result(20)
    combiner.core.intake.finish = finish  # type: ignore[method-assign]
    rig.until_session(session, "finished")
    assert a.upload(task, body, upload_id="x").status == ACCEPTED
    assert not spooled(combiner, "part")


def test_an_update_waiting_for_the_database_is_not_swept_away(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """What was acknowledged is never lost: a file on its way to acceptance stays, however long that takes."""
    combiner = combiner_here()
    _session, (a, _b) = training(rig, combiner, "a", "b")
    spool = combiner.core.spool
    task = a.next_task()
    assert a.upload(task, update(1)).status == ACCEPTED
    name = row(task).spool_name
    assert spool.decided() == {name}
    spool.pending.add(name)  # as between being whole and its row
    assert spool.decided() == set()
    spool.pending.discard(name)
    spool.sweep(spool.decided() - {name})
    assert spool.update(name).exists()
    spool.sweep({name})
    assert not spool.update(name).exists()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux can limit another process's files")
def test_a_full_disk_is_a_try_again_later_an_event_and_nothing_acknowledged(
    rig: Rig, worker_here: WorkerHere
) -> None:
    """disk full (spool): uploads get `try again later`, nothing acknowledged, operator event."""
    limit = 24 << 20
    seed = rig.model({"w": np.zeros(8 << 20, np.float32)})
    combiner = rig.combiner(port=0)
    token = rig.client("a")[1]
    wire = rig.connect(combiner, token)
    session = rig.session(seed=seed)
    task = wire.next_task()
    resource.prlimit(combiner.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    body = wire.encode({"w": np.ones(8 << 20, np.float32)})
    with pytest.raises(grpc.RpcError) as refused:
        wire.upload(task, body, upload_id="mine")
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "disk is full; try again later" in str(refused.value.details())
    assert row(task).status in ("assigned", "delivered")
    rig.wait_until(lambda: Event.objects.filter(kind="combiner.spool_refused", level="error").exists())
    resource.prlimit(
        combiner.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    assert wire.upload(task, body, upload_id="mine").status == ACCEPTED
    assert wire.resumed_at > 0
    rig.until_session(session, "finished")
    assert float(rig.arrays_of(session.current_model)["w"].min()) == 1.0
