"""Combiners and presence: leases, epochs, disks, and who is online."""

from __future__ import annotations

import datetime as dt

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from clients_app import presence
from clients_app.models import Client, Combiner
from federation.events.models import Event
from federation.sessions import assignments, due, engine
from federation.sessions.config import SessionConfig
from federation.sessions.models import Assignment, CombinerShare, Session
from federation.sessions.selection import eligible
from tests.rounds.rows import Rows, ago, assert_same, mean, update

pytestmark = pytest.mark.django_db


def again(session: Session) -> None:
    engine.advance(session.pk)
    session.refresh_from_db()


def test_every_write_of_a_combiner_carries_its_epoch(rows: Rows) -> None:
    """Every write it makes carries the epoch: those of an older one change nothing."""
    old = rows.lease()
    a, b = rows.online(old, "a", "b")
    session = rows.running(min_clients=1, requested_clients=1)
    task = Assignment.objects.get()
    client = a if task.client_id == a.pk else b
    rows.accept(old, task)
    share = rows.share(session, old)
    new = rows.lease()
    assert (new.combiner_id, new.epoch) == (old.combiner_id, old.epoch + 1)
    assert not presence.renew_lease(combiner_id=old.combiner_id, epoch=old.epoch, load={})
    assert not rows.connect_row(client, old, "late")
    (verdict,) = rows.accept(old, task)
    assert not verdict.accepted and verdict.superseded
    assert rows.finish_share(old) == [False]
    share.refresh_from_db()
    assert share.status == "closing"
    assert rows.finish_share(new) == [True]


def test_a_restarted_combiner_goes_on_with_the_share_of_its_disk(rows: Rows) -> None:
    """It knows its `spool_id`: back with the same one, nothing is lost."""
    lease = rows.lease()
    a, b = rows.online(lease, "a", "b")
    session = rows.running(min_clients=2)
    rows.accept(lease, rows.task(session, a), value=1)
    lease = rows.lease()
    assert not lease.lost_spool
    rows.online(lease, "a", "b")
    rows.accept(lease, rows.task(session, b), value=3)
    rows.finish_share(lease)
    rows.reduce(session)
    again(session)
    assert CombinerShare.objects.count() == 1
    assert_same(rows.arrays_of(session.current_model), update(2))


def test_a_combiner_with_another_disk_loses_what_it_accepted_in_unfinished_rounds_only(rows: Rows) -> None:
    """A disk is lost when a combiner returns with another `spool_id`: its accepted Assignments of unfinished
    rounds -> lost; in training they are assigned again."""
    lease = rows.lease()
    a, b = rows.online(lease, "a", "b")
    session = rows.running(rounds=2, min_clients=2)
    rows.accept(lease, rows.task(session, a), rows.task(session, b))
    rows.finish_share(lease)
    rows.reduce(session)
    again(session)
    done = Assignment.objects.filter(round__number=1)
    first = rows.task(session, a)
    rows.accept(lease, first)
    lease = rows.lease(spool_id="new")
    assert lease.lost_spool and assignments.lose_disk(lease.combiner_id) == 1
    first.refresh_from_db()
    assert first.status == "lost" and first.error == "the combiner came back with another disk"
    assert {t.status for t in done} == {"accepted"}
    assert rows.task(session, a).status == "assigned" and rows.task(session, a).pk != first.pk
    assert Event.objects.filter(session=session, kind="round.updates_lost", level="error").count() == 1


def test_a_lease_that_is_out_for_lost_after_s_gives_the_disk_up_in_training(rows: Rows) -> None:
    """or its lease has been out for `lost_after_s`: its accepted Assignments -> lost; in training they are
    assigned again."""
    one, two = rows.lease("c1"), rows.lease("c2")
    (a,), (b,) = rows.online(one, "a"), rows.online(two, "b")
    session = rows.running(min_clients=2, lost_after_s=60)
    rows.accept(one, rows.task(session, a), value=99)
    rows.lease_out(one, 30)
    assert session.pk in due.due_sessions()  # the tick looks, long before the deadline of the round
    again(session)
    rows.lease_out(one, 61)
    CombinerShare.objects.update(silent_since=ago(31))
    again(session)
    assert rows.share(session, one).status == "abandoned"
    assert "combiner c1 has been away for 60 s" in rows.events(session, "round.updates_lost")[0]
    rows.online(two, "a")
    rows.accept(two, rows.task(session, a), value=1)
    rows.accept(two, rows.task(session, b), value=3)
    assert rows.finish_share(two) == [True]
    rows.reduce(session)
    again(session)
    assert_same(rows.arrays_of(session.current_model), mean([(update(1), 1), (update(3), 1)]))


def test_an_outage_of_the_database_gives_up_no_disk(rows: Rows) -> None:
    """database restarted: nothing already acknowledged is refused. After the outage every lease is long out; a
    combiner that lives renews it before it is given up."""
    lease = rows.lease()
    a, _b = rows.online(lease, "a", "b")
    session = rows.running(min_clients=2, lost_after_s=60)
    rows.accept(lease, rows.task(session, a))
    rows.lease_out(lease, 600)  # ten minutes without a database
    again(session)
    assert rows.share(session, lease).status == "open"
    assert presence.renew_lease(combiner_id=lease.combiner_id, epoch=lease.epoch, load={})
    rows.lease_out(lease, 0.5)  # much later, a short silence: the old observation does not count
    CombinerShare.objects.update(silent_since=ago(3000))
    again(session)
    share = rows.share(session, lease)
    assert share.status == "open" and share.silent_since is not None and share.silent_since > ago(5)


def test_a_client_is_online_by_a_connection_of_a_combiner_with_a_live_lease(rows: Rows) -> None:
    """Online: a connection of a combiner with a live lease; it is eligible then."""
    lease = rows.lease()
    rows.online(lease, "a")
    Client.objects.create(project=rows.project, name="never-came")
    session = rows.session(start=False)
    assert [c.name for c in eligible(session, SessionConfig()).clients] == ["a"]
    rows.lease_out(lease)
    assert eligible(session, SessionConfig()).clients == []
    rows.lease()  # started again: the client is not back yet
    assert eligible(session, SessionConfig()).clients == []


def test_the_late_word_of_an_old_combiner_does_not_hide_a_client_that_came_back_elsewhere(rows: Rows) -> None:
    """ "Offline" is written only where it matches the connection that ended."""
    one, two = rows.lease("c1"), rows.lease("c2")
    (client,) = rows.online(one, "a", connection_id="old")
    rows.online(two, "a", connection_id="new")
    assert not presence.disconnected(
        client_id=client.pk, combiner_id=one.combiner_id, epoch=one.epoch, connection_id="old"
    )
    assert Client.objects.online().filter(pk=client.pk).exists()


def test_a_thousand_heartbeats_are_one_statement(rows: Rows) -> None:
    """Presence costs no row write per heartbeat: `last_seen` and telemetry are flushed in batches."""
    here, there = rows.lease("c1"), rows.lease("c2")
    Client.objects.bulk_create(
        Client(
            project=rows.project, name=f"{lease.combiner_id}-{n}", combiner_id=lease.combiner_id,
            connection_epoch=lease.epoch, connection_id=f"stream-{n}",
        )
        for lease, count in ((here, 1000), (there, 10))
        for n in range(count)
    )  # fmt: skip
    with CaptureQueriesContext(connection) as queries:
        presence.touch_clients(combiner_id=here.combiner_id, epoch=here.epoch)
    assert len(queries) == 1
    assert Client.objects.filter(last_seen_at__gt=ago(60)).count() == 1000


def test_a_combiner_that_stops_on_purpose_ends_its_lease_at_once(rows: Rows) -> None:
    """Its clients are offline from now, and nobody waits for the lease."""
    lease = rows.lease()
    rows.online(lease, "a")
    presence.end_lease(combiner_id=lease.combiner_id, epoch=lease.epoch)
    assert not Client.objects.online().exists()
    assert Combiner.objects.get().lease_until <= ago(-1) + dt.timedelta(seconds=1)  # type: ignore[operator]
