"""Asynchronous sessions with clients on the wire: work is pushed, nobody waits for slow clients, drops are said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from federation.events.models import Event
from federation.sessions.models import Round
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.rounds.rows import assert_same, update
from tests.wire_client import ACCEPTED, REFUSED

pytestmark = pytest.mark.django_db(transaction=True)


def test_fast_clients_make_models_while_a_slow_one_trains_and_its_update_counts_later(
    rig: Rig, combiner_here: Callable[..., CombinerHere], worker_here: WorkerHere, wait_until: Any
) -> None:
    combiner = combiner_here()
    fast = [rig.connect(combiner, rig.client(name)[1]) for name in ("a", "b")]
    slow = rig.connect(combiner, rig.client("slow")[1])
    session = rig.session(rounds=4, asynchronous={"buffer_size": 2, "staleness_exponent": 1.0})
    held = slow.next_task()
    for number in (1, 2, 3):
        for wire in fast:
            task = wire.next_task()
            base = wire.arrays(task)["b"][0]
            assert wire.upload(task, update(base + 1), num_examples=1).status == ACCEPTED
        wait_until(
            lambda number=number: Round.objects.filter(session=session, number=number, status="finished"), 20
        )
    assert slow.upload(held, update(7), num_examples=1).status == ACCEPTED
    task = fast[0].next_task()
    assert fast[0].upload(task, update(fast[0].arrays(task)["b"][0] + 1), num_examples=1).status == ACCEPTED
    rig.until_session(session, "finished")
    late = session.rounds.get(number=1).assignments.get(client__name="slow")
    assert late.share is not None and late.share.round.number == 4
    assert (late.staleness, late.weight) == (3, 0.25)
    assert slow.said("cancel") is not None  # what it held at the end is not wanted any more


def test_what_is_dropped_is_told_to_the_client_and_is_an_event(
    rig: Rig, combiner_here: Callable[..., CombinerHere], worker_here: WorkerHere, wait_until: Any
) -> None:
    combiner = combiner_here()
    fast = rig.connect(combiner, rig.client("fast")[1])
    slow = rig.connect(combiner, rig.client("slow")[1])
    session = rig.session(rounds=3, asynchronous={"buffer_size": 1, "max_staleness": 0})
    held = slow.next_task()
    assert fast.upload(fast.next_task(), update(3), num_examples=1).status == ACCEPTED
    wait_until(lambda: Round.objects.filter(session=session, number=1, status="finished"), 20)
    receipt = slow.upload(held, update(9), num_examples=1)
    assert receipt.status == REFUSED
    assert receipt.reason == "dropped: its model is 1 rounds old, and at most 0 count"
    said = Event.objects.get(session=session, kind="update.refused")
    assert said.message.startswith("An update of slow was refused: dropped: its model is 1 rounds old")
    fresh = slow.next_task()  # it is asked again, with the newest model
    assert_same(slow.arrays(fresh), update(3))


def test_a_client_that_joins_is_pushed_work_and_one_that_rejoins_goes_on(
    rig: Rig, combiner_here: Callable[..., CombinerHere], worker_here: WorkerHere
) -> None:
    """Clients that drop out rejoin: what it holds is not sent again, and counts."""
    combiner = combiner_here()
    a = rig.connect(combiner, rig.client("a")[1])
    session = rig.session(rounds=1, asynchronous={"buffer_size": 3})
    assert a.upload(a.next_task(), update(1)).status == ACCEPTED
    _row, token = rig.client("late")
    late = rig.connect(combiner, token)
    task = late.next_task()
    late.close()
    back = rig.connect(combiner, token, holds=(task.assignment_id,))
    assert back.upload(task, update(1)).status == ACCEPTED
    assert back.next_task().assignment_id != task.assignment_id
    assert a.upload(a.next_task(), update(1)).status == ACCEPTED
    rig.until_session(session, "finished")
    assert_same(rig.arrays_of(session.current_model), update(1))


def test_two_combiners_fill_one_buffer(
    rig: Rig, combiner_here: Callable[..., CombinerHere], worker_here: WorkerHere
) -> None:
    """A combiner's share belongs to the round that accepts; the model is that of one combiner alone."""
    here = [combiner_here("c1"), combiner_here("c2")]
    wires = [rig.connect(one, rig.client(name)[1]) for one, name in zip(here, "ab", strict=True)]
    session = rig.session(rounds=2, asynchronous={"buffer_size": 2, "staleness_exponent": 0.0})
    for value, wire in zip((1, 4), wires, strict=True):
        assert wire.upload(wire.next_task(), update(value), num_examples=value).status == ACCEPTED
    for wire in wires:
        task = wire.next_task()
        base = wire.arrays(task)["b"][0]
        assert wire.upload(task, update(base + 1), num_examples=1).status == ACCEPTED
    rig.until_session(session, "finished")
    assert session.rounds.get(number=1).shares.count() == 2
    assert_same(rig.arrays_of(session.current_model), update((1 * 1 + 4 * 4) / 5 + 1))
