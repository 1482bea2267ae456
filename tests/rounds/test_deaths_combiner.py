"""What must be seen when a combiner dies, freezes, or comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from clients_app.models import Combiner
from federation.combiner.spool import Spool
from federation.events.models import Event
from federation.sessions.models import Assignment, CombinerShare, Round
from foundation import storage
from foundation.errors import StudioError
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere, frozen
from tests.rounds.refusing import block, unblock
from tests.rounds.rows import ago, assert_same, mean, update
from tests.wire_client import ACCEPTED

Combiners = Callable[..., CombinerHere]
pytestmark = pytest.mark.django_db(transaction=True)


def port_of(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


def test_killed_after_acknowledging_it_starts_again_and_every_update_counts_once(
    rig: Rig, worker_here: WorkerHere
) -> None:
    """combiner, after acknowledgement, before the fold: restart rebuilds the accumulator; counted once.
    combiner, before an update was acknowledged: client sends again, resuming; counted once."""
    combiner = rig.combiner()
    tokens = [rig.client(name)[1] for name in "abc"]
    wires = [rig.connect(combiner, token) for token in tokens]
    session = rig.session(rounds=2, min_clients=3)
    tasks = [wire.next_task() for wire in wires]
    big = {"w": np.full((4, 3), 7, np.float32), "b": np.full(3, 7, np.float32)}
    assert wires[0].upload(tasks[0], update(1), num_examples=10).status == ACCEPTED
    assert wires[1].upload(tasks[1], update(2), num_examples=20).status == ACCEPTED
    body = wires[2].encode(big)
    with pytest.raises(grpc.RpcError):
        wires[2].upload(tasks[2], body, upload_id="mine", stop_after=len(body) // 2)

    combiner.kill()
    combiner = rig.combiner(port=port_of(combiner.address))

    wires = [rig.connect(combiner, token, holds=(task.assignment_id,)) for token, task in zip(tokens, tasks)]
    again = [wires[n].upload(tasks[n], update(9), num_examples=99).status for n in (0, 1)]
    assert again == [ACCEPTED, ACCEPTED]  # the same answer, and nothing changes
    assert wires[2].upload(tasks[2], body, upload_id="mine", num_examples=30).status == ACCEPTED
    assert wires[2].resumed_at == len(body) // 2
    for wire, value in zip(wires, (3, 4, 5)):
        task = wire.next_task()
        assert task.round == 2
        assert wire.upload(task, update(value), num_examples=1).status == ACCEPTED

    rig.until_session(session, "finished")
    first, second = session.trail.order_by("round_number")
    assert_same(rig.arrays_of(first), mean([(update(1), 10), (update(2), 20), (big, 30)]))
    assert_same(rig.arrays_of(second), mean([(update(3), 1), (update(4), 1), (update(5), 1)]))
    assert [s.updates for s in CombinerShare.objects.order_by("id")] == [3, 3]


def block_models(rig: Rig) -> Path:
    """Storage refuses every new model of the project: a file stands where the folder was."""
    folder = Path(storage.artifacts().path(f"models/{rig.project.pk}"))
    block(folder)
    return folder


def test_killed_while_closing_it_closes_again_with_the_same_partial(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """combiner, while closing: closes again; same partial.
    storage refuses a write: retried with backoff, shown as the reason for waiting; the spool keeps everything."""
    combiner = rig.combiner()
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "ab"]
    session = rig.session(rounds=1, min_clients=2)
    tasks = [wire.next_task() for wire in wires]
    folder = block_models(rig)
    try:
        for wire, task, value in zip(wires, tasks, (1, 4)):
            assert wire.upload(task, update(value), num_examples=value).status == ACCEPTED

        def waits_for_storage() -> bool:
            session.refresh_from_db()
            return "storage" in session.waiting_for

        rig.wait_until(waits_for_storage, timeout=15)
        assert session.waiting_until is not None
        combiner.kill()
    finally:
        unblock(folder)
    assert CombinerShare.objects.get().status == "closing"

    combiner_here(folder=rig.folder / "combiner-c1")
    rig.until_session(session, "finished")
    assert_same(rig.arrays_of(session.current_model), mean([(update(1), 1), (update(4), 4)]))
    assert session.trail.count() == 1
    assert session.waiting_for == ""
    assert Event.objects.filter(session=session, kind="storage.refused", level="error").count() == 1


def test_frozen_and_thawed_after_its_share_was_given_up_it_changes_nothing(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """combiner, frozen (SIGSTOP) and thawed after its shares were given up: its acceptances fail on epoch or
    share; nothing acknowledged is lost unseen."""
    one, two = rig.combiner("c1"), combiner_here("c2")
    token_a, token_b = rig.client("a")[1], rig.client("b")[1]
    a, b = rig.connect(one, token_a), rig.connect(one, token_b)
    session = rig.session(rounds=1, min_clients=2, lost_after_s=5, round_timeout_s=60)
    task_a, task_b = a.next_task(), b.next_task()
    assert a.upload(task_a, update(100), num_examples=5).status == ACCEPTED
    share = CombinerShare.objects.get()

    with frozen(one):
        Combiner.objects.filter(name="c1").update(lease_until=ago(6))
        rig.wait_until(lambda: CombinerShare.objects.get(pk=share.pk).status == "abandoned", timeout=15)
        assert Assignment.objects.get(pk=task_a.assignment_id).status == "lost"
        assert Event.objects.filter(session=session, kind="round.updates_lost", level="error").exists()
        moved = rig.connect(two, token_a)
        again = moved.next_task()
        assert again.assignment_id != task_a.assignment_id
        assert moved.upload(again, update(1), num_examples=1).status == ACCEPTED
        assert rig.connect(two, token_b).upload(task_b, update(3), num_examples=3).status == ACCEPTED
        rig.until_session(session, "finished")

    # thawed, it still has the old update in its spool; nobody takes it
    receipt = b.upload(task_b, update(50), num_examples=50)
    assert receipt.status == ACCEPTED  # the answer that this client had elsewhere
    assert_same(rig.arrays_of(session.current_model), mean([(update(1), 1), (update(3), 3)]))
    assert session.trail.count() == 1


def test_a_newer_combiner_of_its_name_makes_a_thawed_one_exit_having_accepted_nothing(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """Every write it makes carries the epoch; a lease renewal that changes zero rows means a newer one is
    running: it exits."""
    old = rig.combiner("c1")
    token = rig.client("a")[1]
    wire = rig.connect(old, token)
    rig.session(rounds=1, min_clients=1)
    task = wire.next_task()
    with frozen(old):
        new = combiner_here("c1", rig.folder / "another")
    with pytest.raises(grpc.RpcError) as refused:
        wire.upload(task, update(5))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE  # not "refused": the result is still wanted
    assert old.process.wait(15) != 0
    assert Assignment.objects.get().status in ("assigned", "delivered")
    wire = rig.connect(new, token, holds=(task.assignment_id,))
    assert wire.upload(task, update(5)).status == ACCEPTED


def test_back_with_another_disk_it_owns_up_and_the_clients_train_again(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """combiner and its disk: rule 2 of combiners; never silently."""
    combiner = rig.combiner()
    tokens = [rig.client(name)[1] for name in "ab"]
    wires = [rig.connect(combiner, token) for token in tokens]
    session = rig.session(rounds=1, min_clients=2)
    tasks = [wire.next_task() for wire in wires]
    assert wires[0].upload(tasks[0], update(100), num_examples=100).status == ACCEPTED

    combiner.kill()
    back = combiner_here("c1", rig.folder / "a-new-disk")

    assert Assignment.objects.get(pk=tasks[0].assignment_id).status == "lost"
    assert "another disk" in Event.objects.get(session=session, kind="round.updates_lost").message
    wires = [rig.connect(back, token, holds=(t.assignment_id,)) for token, t in zip(tokens, tasks)]
    again = wires[0].next_task()
    assert again.assignment_id != tasks[0].assignment_id
    assert wires[0].upload(again, update(1), num_examples=1).status == ACCEPTED
    assert wires[1].upload(tasks[1], update(3), num_examples=3).status == ACCEPTED
    rig.until_session(session, "finished")
    assert_same(rig.arrays_of(session.current_model), mean([(update(1), 1), (update(3), 3)]))
    assert Round.objects.count() == 1


def test_two_combiners_never_share_a_spool_folder(tmp_path: Path) -> None:
    """A combiner locks its spool directory (`flock`)."""
    first = Spool(tmp_path / "spool")
    with pytest.raises(StudioError, match="Another combiner is using the spool folder"):
        Spool(tmp_path / "spool")
    first.close()  # as when its process ends, however it ends
    again = Spool(tmp_path / "spool")
    assert again.spool_id == first.spool_id
    again.close()
