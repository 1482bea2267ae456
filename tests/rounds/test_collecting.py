"""Sessions whose worker reads the updates themselves: how those get to storage, and what dies on the way."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.db import OperationalError
from django.db.models import F
from django.utils import timezone

from clients_app.models import Combiner
from clients_app.presence import CombinerLease
from federation.combiner import collecting
from federation.sessions import assignments, tasks
from federation.sessions.models import Assignment, CombinerShare, Round, Session
from federation.sessions.services import stop_session
from federation.sessions.sweeping import sweep
from foundation import storage
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.rounds.refusing import storage_refuses
from tests.rounds.rows import Rows, again, assert_same, update
from tests.rounds.test_deaths_worker import killed_at_statement
from tests.wire_client import ACCEPTED, WireClient

pytestmark = pytest.mark.django_db(transaction=True)

Combiners = Callable[..., CombinerHere]
VALUES = (1.0, 2.0, 90.0)
MEDIAN = update(2.0)


def collected_files(session: Session) -> list[str]:
    """Copies of updates of this session's rounds."""
    root = Path(storage.artifacts().path("updates"))
    rounds = [str(pk) for pk in session.rounds.values_list("pk", flat=True)]
    return sorted(str(path.relative_to(root)) for pk in rounds for path in root.glob(f"{pk}/*"))


def sent(rig: Rig, combiner: CombinerHere, **settings: Any) -> tuple[Session, list[WireClient]]:
    """A round to which three clients have sent their updates."""
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "abc"]
    session = rig.session(min_clients=3, aggregator="fedmedian", **settings)
    for wire, value in zip(wires, VALUES, strict=True):
        assert wire.upload(wire.next_task(), update(value), num_examples=value).status == ACCEPTED
    return session, wires


def finished(rig: Rig, session: Session) -> None:
    """The session came to the median, of one update each, and left no copies behind."""
    rig.until_session(session, "finished", "failed")
    assert session.status == "finished", session.reason
    assert_same(rig.arrays_of(session.current_model), MEDIAN)
    assert session.trail.count() == 1
    assert session.current_model.metadata == {"updates": 3, "num_examples": sum(VALUES)}
    rig.wait_until(lambda: not collected_files(session), what="the copies to go")


def test_updates_are_collected_while_the_round_trains_and_go_when_it_is_committed(
    rig: Rig, combiner_here: Combiners, wait_until: Any
) -> None:
    combiner = combiner_here()
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "abc"]
    session = again(rig.session(min_clients=3, aggregator="fedmedian"))
    tasks = [wire.next_task() for wire in wires]
    assert wires[0].upload(tasks[0], update(1.0), num_examples=1).status == ACCEPTED
    row = Assignment.objects.get(pk=tasks[0].assignment_id)

    def copied() -> str:
        row.refresh_from_db()
        return row.update_key

    key = wait_until(copied, what="the update's key in its row")
    assert key.startswith(f"updates/{row.round_id}/")
    with storage.local(key) as path:
        assert storage.sha256_of(path) == row.sha256
    assert Round.objects.get().status == "training"
    for wire, task, value in list(zip(wires, tasks, VALUES, strict=True))[1:]:
        assert wire.upload(task, update(value), num_examples=value).status == ACCEPTED
    wait_until(lambda: CombinerShare.objects.get().status == "finished", what="the share to finish")
    share = CombinerShare.objects.get()
    assert share.collected and not share.partial_key and share.updates == 3
    assert share.weight == 3.0, "every client counts alike, whatever it says of its examples"
    assert len(collected_files(session)) == 3
    worker = WorkerHere()
    try:
        finished(rig, session)
    finally:
        worker.stop()


def test_storage_that_refuses_for_a_moment_is_tried_again_while_the_round_trains(
    rig: Rig, combiner_here: Combiners, wait_until: Any
) -> None:
    combiner = combiner_here()
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "ab"]
    again(rig.session(min_clients=2, aggregator="fedmedian"))
    task = wires[0].next_task()
    with storage_refuses("updates"):
        assert wires[0].upload(task, update(1.0)).status == ACCEPTED
        collector = combiner.core.shares.collector
        wait_until(lambda: not collector._copying, what="a first try")
        assert Assignment.objects.get(pk=task.assignment_id).update_key == ""
    wait_until(
        lambda: Assignment.objects.get(pk=task.assignment_id).update_key, what="the update's key in its row"
    )
    assert Round.objects.get().status == "training"


def test_a_combiner_killed_before_an_update_was_copied_copies_it_when_it_starts_again(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere, wait_until: Any
) -> None:
    combiner = combiner_here()
    with storage_refuses("updates"):
        session, _ = sent(rig, combiner)

        def says_so() -> bool:
            session.refresh_from_db()
            return "storage to take accepted updates" in session.waiting_for

        wait_until(says_so, what="the session to say what it waits for")
        combiner.stop()
    assert set(Assignment.objects.values_list("update_key", flat=True)) == {""}
    combiner_here(folder=rig.folder / "here-c1")
    finished(rig, session)
    assert session.waiting_for == ""


def test_a_combiner_killed_between_the_copy_and_its_row_copies_again_and_nothing_counts_twice(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere, monkeypatch: Any, wait_until: Any
) -> None:
    def killed(**_: Any) -> set[uuid.UUID]:
        raise RuntimeError("killed here")

    combiner = combiner_here()
    with monkeypatch.context() as patch:
        patch.setattr(collecting.assignments, "note_collected", killed)
        session, _ = sent(rig, combiner)
        wait_until(lambda: len(collected_files(session)) >= 3, what="copies that no row names")
        combiner.stop()
    combiner_here(folder=rig.folder / "here-c1")
    finished(rig, session)


@pytest.mark.parametrize("newer", [0, 1], ids=["alone", "a newer one runs"])
def test_a_combiner_whose_answer_was_lost_never_deletes_a_copy_that_its_row_names(
    rig: Rig, combiner_here: Combiners, monkeypatch: Any, wait_until: Any, newer: int
) -> None:
    """The connection breaks with the answer, and the combiner asks again."""
    note, answers = assignments.note_collected, []

    def answer_lost(**said: Any) -> set[uuid.UUID]:
        answers.append(note(**said))
        if len(answers) == 1:
            Combiner.objects.update(epoch=F("epoch") + newer)
            raise OperationalError("the connection broke with the answer")
        return answers[-1]

    monkeypatch.setattr(collecting.assignments, "note_collected", answer_lost)
    combiner = combiner_here()
    wire = rig.connect(combiner, rig.client("a")[1])
    again(rig.session(aggregator="fedmedian"))
    task = wire.next_task()
    assert wire.upload(task, update(1.0)).status == ACCEPTED
    collector = combiner.core.shares.collector
    wait_until(lambda: len(answers) > 1 and not collector._copying, what="the second answer")
    key = Assignment.objects.get(pk=task.assignment_id).update_key
    assert key and storage.artifacts().exists(key)


def test_a_combiner_killed_before_it_said_that_its_share_is_whole_says_so_later(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere, monkeypatch: Any, wait_until: Any
) -> None:
    def killed(**_: Any) -> bool:
        raise RuntimeError("killed here")

    combiner = combiner_here()
    with monkeypatch.context() as patch:
        patch.setattr(collecting.assignments, "finish_share", killed)
        session, _ = sent(rig, combiner)
        wait_until(
            lambda: not Assignment.objects.filter(update_key="").exists(), what="all updates to be copied"
        )
        combiner.stop()
    keys = set(Assignment.objects.values_list("update_key", flat=True))
    combiner_here(folder=rig.folder / "here-c1")
    rig.until_session(session, "finished")
    assert set(Assignment.objects.values_list("update_key", flat=True)) == keys, "nothing was copied again"
    finished(rig, session)


def test_a_spool_file_that_is_gone_before_it_was_copied_is_asked_for_again(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere, monkeypatch: Any, wait_until: Any
) -> None:
    """Never silently: the share is given up, and its clients train again."""
    combiner = combiner_here()
    with storage_refuses("updates"):
        session, wires = sent(rig, combiner, max_failed_rounds=3)
        (lost,) = Assignment.objects.filter(client__name="b").values_list("spool_name", flat=True)
        combiner.core.spool.update(lost).unlink()
    tasks = [wire.next_task() for wire in wires]
    assert CombinerShare.objects.filter(status="abandoned").exists()
    for wire, task, value in zip(wires, tasks, VALUES, strict=True):
        assert wire.upload(task, update(value), num_examples=value).status == ACCEPTED
    rig.until_session(session, "finished", "failed")
    assert session.status == "finished", session.reason
    assert_same(rig.arrays_of(session.current_model), MEDIAN)


# --- on rows ------------------------------------------------------------------------------------------------------


def accepted(rows: Rows, **settings: Any) -> tuple[Session, CombinerLease, list[Assignment]]:
    lease = rows.lease()
    clients = rows.online(lease, *"abc")
    session = rows.running(min_clients=3, **{"aggregator": "fedmedian", **settings})
    tasks = [rows.task(session, client) for client in clients]
    for task, value in zip(tasks, VALUES, strict=True):
        assert rows.accept(lease, task, value=value, examples=value)[0].accepted
    return session, lease, tasks


def note(
    lease: CombinerLease, *tasks: Assignment, epoch: int | None = None, prefix: str = ""
) -> set[uuid.UUID]:
    keys = {task.pk: f"{prefix}{task.pk}" for task in tasks}
    return assignments.note_collected(combiner_id=lease.combiner_id, epoch=epoch or lease.epoch, keys=keys)


def test_an_update_has_one_copy_the_first_that_its_row_named(live_rows: Rows) -> None:
    _, lease, tasks = accepted(live_rows)
    assert note(lease, tasks[0], prefix="first-") == {tasks[0].pk}
    assert note(lease, *tasks, prefix="second-") == {tasks[1].pk, tasks[2].pk}
    assert Assignment.objects.get(pk=tasks[0].pk).update_key == f"first-{tasks[0].pk}"


def test_a_combiner_that_a_newer_one_took_over_from_notes_nothing(live_rows: Rows) -> None:
    _, old, tasks = accepted(live_rows)
    live_rows.lease()
    assert note(old, *tasks) == set()


def test_an_update_that_was_lost_meanwhile_takes_no_copy(live_rows: Rows) -> None:
    _, lease, tasks = accepted(live_rows)
    Assignment.objects.filter(pk=tasks[1].pk).update(status="lost")
    assert note(lease, *tasks) == {tasks[0].pk, tasks[2].pk}


def test_a_share_is_not_whole_before_every_accepted_update_is_in_storage(live_rows: Rows) -> None:
    session, lease, tasks = accepted(live_rows)
    note(lease, *tasks[:2])
    share = live_rows.share(session, lease)
    whole: dict[str, Any] = {
        "share_id": share.pk, "round_id": share.round_id, "session_id": session.pk,
        "combiner_id": lease.combiner_id, "epoch": lease.epoch,
        "weight": 3.0, "updates": 3, "collected": True,
    }  # fmt: skip
    assert not assignments.finish_share(**whole)
    note(lease, tasks[2])
    assert assignments.finish_share(**whole)
    assert live_rows.round(session).status == "reducing"


def test_a_worker_killed_anywhere_in_reduce_makes_one_model_of_what_was_collected(live_rows: Rows) -> None:
    """Whatever died, the updates are there until a model is committed; then they go."""
    for number in range(1, 200):
        session, lease, _ = accepted(live_rows)
        assert live_rows.finish_share(lease) == [True]
        round_ = live_rows.round(session)
        copies = collected_files(session)
        assert len(copies) == 3
        died = killed_at_statement(number, lambda: tasks.reduce_round(str(round_.pk)))  # noqa: B023
        committed = session.trail.exists()
        left = collected_files(session)
        assert left == copies or committed
        Round.objects.update(reduce_until=None)
        tasks.reduce_round(str(round_.pk))
        assert again(session).status == "finished"
        assert_same(live_rows.arrays_of(session.trail.get()), MEDIAN)
        if not died:
            assert not left
            assert number > 8, "it should have been killed in the middle"
            return


def test_the_sweeper_spares_what_a_round_needs_and_takes_what_was_left_behind(live_rows: Rows) -> None:
    session, lease, _ = accepted(live_rows)
    assert live_rows.finish_share(lease) == [True]
    orphan = f"updates/{live_rows.round(session).pk}/{uuid.uuid4()}.safetensors"
    stray = f"updates/{uuid.uuid4()}/{uuid.uuid4()}.safetensors"
    path = live_rows.folder / "x"
    path.write_bytes(b"x")
    for key in (orphan, stray):
        storage.put(key, path)
    tomorrow = timezone.now() + dt.timedelta(hours=25)
    assert {orphan, stray} <= set(sweep(tomorrow))
    assert len(collected_files(session)) == 3
    stop_session(actor=live_rows.actor, session=session)
    again(session)
    assert session.status == "stopped"
    sweep(tomorrow)
    assert collected_files(session) == []


def test_a_round_that_cannot_be_counted_by_its_aggregator_fails_in_words(live_rows: Rows) -> None:
    """Krum of three updates promises nothing: it says how many it needs, and whose there were."""
    session, lease, _ = accepted(live_rows)
    config = {**session.config, "aggregator": "krum", "aggregator_kwargs": {"byzantine": 1}}
    Session.objects.filter(pk=session.pk).update(config=config)
    assert live_rows.finish_share(lease) == [True]
    round_ = live_rows.reduce(session)
    assert round_.status == "failed" and "at least 5 updates" in round_.reason and "a, b, c" in round_.reason
    assert len(collected_files(session)) == 3
    sweep(timezone.now() + dt.timedelta(hours=25))
    assert collected_files(session) == []


def test_collected_updates_of_odd_layouts_are_read_as_they_came(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """Every dtype that a model may have goes through collecting and comes back as it was."""
    seed = {
        "half": np.zeros(5, np.float16), "flags": np.zeros(4, np.bool_), "steps": np.array(3, np.int64),
        "none": np.zeros((0, 2), np.float32), "w": np.zeros((2, 2), np.float64),
    }  # fmt: skip
    combiner = combiner_here()
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "abc"]
    session = rig.session(min_clients=3, aggregator="fedmedian", seed=rig.model(seed))
    for wire, value in zip(wires, (1, 2, 9), strict=True):
        sent = {name: np.full_like(array, value % 9) for name, array in seed.items()}
        assert wire.upload(wire.next_task(), sent).status == ACCEPTED
    rig.until_session(session, "finished", "failed")
    assert session.status == "finished", session.reason
    found = rig.arrays_of(session.current_model)
    assert {name: array.dtype for name, array in found.items()} == {n: a.dtype for n, a in seed.items()}
    assert_same(found, {name: np.full_like(array, 1) for name, array in seed.items()})
