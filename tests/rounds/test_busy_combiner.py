"""A combiner that thousands of clients keep busy."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from clients_app.models import Combiner
from federation.combiner import accepting as accepting_module
from federation.combiner import threads
from federation.events.models import Event
from federation.sessions import assignments
from federation.sessions.models import CombinerShare
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.wire_client import ACCEPTED

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker_here")]


def test_its_lease_is_renewed_while_every_thread_for_rows_is_taken(
    combiner: CombinerHere, wait_until: Callable[..., Any]
) -> None:
    free, begun = threading.Event(), threading.Barrier(threads.ROW_THREADS + 1)

    def taken() -> None:
        begun.wait(10)
        free.wait(30)

    for _ in range(threads.ROW_THREADS):
        threads._rows.submit(taken)
    begun.wait(10)
    try:
        before = Combiner.objects.get().lease_until
        wait_until(
            lambda: Combiner.objects.get().lease_until > before, timeout=20, what="the lease to be renewed"
        )
    finally:
        free.set()


def test_a_share_that_ends_while_the_rows_are_read_is_not_closed_again(
    rig: Rig, combiner: CombinerHere, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]
) -> None:
    """Of thousands of updates the rows take a while to read, and what was read then is of yesterday."""
    shares, read, finish = combiner.core.shares, assignments.closing_shares, assignments.finish_share
    read_again, looked, finished = threading.Event(), threading.Event(), []

    def slowly(*args: Any, **options: Any) -> Any:
        found = read(*args, **options)
        if found and shares._closing:  # it is being closed just now
            read_again.set()
            wait_until(lambda: not shares._closing, what="the share to be closed")
            looked.set()
        return found

    def after_the_second_read(**said: Any) -> bool:
        finished.append(said["share_id"])
        combiner.loop.call_soon_threadsafe(shares.look.set)
        read_again.wait(10)
        return finish(**said)

    monkeypatch.setattr(assignments, "closing_shares", slowly)
    monkeypatch.setattr(assignments, "finish_share", after_the_second_read)
    wire = rig.connect(combiner, rig.client("a")[1])
    session = rig.session(min_clients=1, rounds=2, seed=rig.model({"w": np.zeros(8, np.float32)}))
    for _ in range(2):
        assert wire.upload(wire.next_task(), {"w": np.ones(8, np.float32)}).status == ACCEPTED
    rig.until_session(session, "finished")
    assert looked.is_set(), "nothing was read while a share was closing: this test shows nothing"
    assert len(finished) == len(set(finished)) == CombinerShare.objects.filter(status="finished").count() == 2
    assert not Event.objects.filter(kind="round.updates_lost").exists()


def test_updates_that_are_whole_in_the_same_moment_are_accepted_in_one_transaction(
    rig: Rig, combiner: CombinerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    acceptance, intake = combiner.core.intake.acceptance, combiner.core.intake
    checked, ask, accept = intake._checked, acceptance.ask, assignments.accept_updates
    arrived, asked, batches = [], asyncio.Event(), []

    async def one_after_the_other(upload: Any, digest: str) -> Any:
        arrived.append(upload)
        while len(arrived) < 2:
            await asyncio.sleep(0.01)
        if upload is arrived[1]:
            await asked.wait()
        return await checked(upload, digest)

    def asking(*args: Any) -> Any:
        asked.set()
        return ask(*args)

    def accepting(**said: Any) -> Any:
        batches.append(len(said["updates"]))
        return accept(**said)

    monkeypatch.setattr(accepting_module, "LINGER_S", 20.0)
    monkeypatch.setattr(intake, "_checked", one_after_the_other)
    monkeypatch.setattr(acceptance, "ask", asking)
    monkeypatch.setattr(assignments, "accept_updates", accepting)
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "ab"]
    session = rig.session(min_clients=2, seed=rig.model({"w": np.zeros(8, np.float32)}))
    tasks = [wire.next_task() for wire in wires]
    with ThreadPoolExecutor(2) as pool:
        receipts = pool.map(lambda wire, task: wire.upload(task, {"w": np.ones(8, np.float32)}), wires, tasks)
        assert [receipt.status for receipt in receipts] == [ACCEPTED, ACCEPTED]
    rig.until_session(session, "finished")
    assert batches == [2]


def test_a_share_is_closed_by_what_its_last_verdict_told_and_no_row_is_read_for_it(
    rig: Rig, combiner: CombinerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are read by hints and every two seconds for what is left over; a round does not wait for that."""
    monkeypatch.setattr(assignments, "closing_shares", lambda *_args, **_options: [])
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "ab"]
    session = rig.session(min_clients=2, rounds=2, seed=rig.model({"w": np.zeros(8, np.float32)}))
    for number in (1, 2):
        for wire, value in zip(wires, (number, 3 * number), strict=True):
            sent = {"w": np.full(8, value, np.float32)}
            assert wire.upload(wire.next_task(), sent).status == ACCEPTED
    rig.until_session(session, "finished")
    np.testing.assert_array_equal(rig.arrays_of(session.current_model)["w"], 4.0)
