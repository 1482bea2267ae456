"""Whatever JSON a client sends with its update, the update has its answer and nobody else's is held up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from federation.combiner import intake
from federation.sessions import assignments
from federation.sessions.models import Assignment
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.rounds.rows import Rows, statuses, update
from tests.wire_client import ACCEPTED, REJECTED

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker")]

# valid JSON that a JSON column of Postgres refuses: a transaction that accepts many updates would fail for one
ODD = {
    "a NUL character": '{"note": "a\\u0000b", "loss": 1.5}',
    "half a character": '{"note": "ab\\ud800", "loss": 1.5}',
    "a name with a NUL character": '{"a\\u0000b": 1, "loss": 1.5}',
    "a number beyond float64": '{"note": 1e999, "loss": 1.5}',
    "a number of 4000 digits": '{"note": ' + "9" * 4000 + ', "loss": 1.5}',
    "lists 900 deep": '{"note": ' + "[" * 900 + "]" * 900 + ', "loss": 1.5}',
}


@pytest.mark.postgres  # the stricter of the two
@pytest.mark.parametrize("said", ODD.values(), ids=ODD)
def test_an_update_with_odd_metadata_is_accepted_and_its_numbers_kept(
    rig: Rig, combiner: CombinerHere, said: str
) -> None:
    wire = rig.connect(combiner, rig.client("a")[1])
    session = rig.session(min_clients=1)
    task = wire.next_task()
    assert wire.upload(task, update(1.0), metadata=said).status == ACCEPTED
    rig.until_session(session, "finished")
    assert Assignment.objects.get(pk=task.assignment_id).metadata["loss"] == 1.5


def test_a_loss_beyond_float64_is_refused_where_updates_count_by_it(rig: Rig, combiner: CombinerHere) -> None:
    wire = rig.connect(combiner, rig.client("a")[1])
    rig.session(min_clients=1, aggregator="qfedavg")
    receipt = wire.upload(wire.next_task(), update(1.0), metadata='{"loss": 1e999}')
    assert receipt.status == REJECTED and "metadata must say loss" in receipt.reason


def test_an_update_that_no_row_can_hold_keeps_nobody_elses_out(live_rows: Rows) -> None:
    """Whatever intake overlooks: of updates that are ready together only that one is refused."""
    rows, lease = live_rows, live_rows.lease()
    clients = rows.online(lease, *"abc")
    session = rows.running(min_clients=3)
    tasks = [rows.task(session, client) for client in clients]
    a, hostile, c = rows.spooled(*tasks)
    hostile = replace(hostile, metadata={"loss": {1, 2}})
    verdicts = assignments.accept_updates(
        combiner_id=lease.combiner_id, epoch=lease.epoch, updates=[a, hostile, c]
    )
    assert [verdicts[task.pk].accepted for task in tasks] == [True, False, True]
    assert verdicts[tasks[1].pk].unkept
    assert statuses(session) == ["accepted", "assigned", "accepted"]


def test_an_update_that_no_row_can_hold_is_rejected_in_words_and_the_round_goes_on(
    rig: Rig, combiner: CombinerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "json_object", lambda *_: {"loss": {1, 2}})
    wire = rig.connect(combiner, rig.client("a")[1])
    session = rig.session(min_clients=1, max_failed_rounds=1)
    receipt = wire.upload(wire.next_task(), update(1.0))
    assert receipt.status == REJECTED and "cannot keep" in receipt.reason
    rig.until_session(session, "failed")
    assert "a (the server cannot keep what came with it)" in session.reason
