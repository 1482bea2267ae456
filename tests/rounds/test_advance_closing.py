"""advance(session) from a round that closes to its model: every row of its table."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest
from django.utils import timezone

from federation.sessions import engine
from federation.sessions.models import CombinerShare, Round
from tests.rounds.rows import Rows, again, ago, assert_same, update

pytestmark = pytest.mark.django_db


# --- closing and reducing -------------------------------------------------------------------------------------


def test_a_silent_combiner_is_given_up_while_closing_and_the_others_suffice(rows: Rows) -> None:
    """closing, a Share's combiner silent past its lease and `closing_timeout_s`: Share abandoned, its accepted
    Assignments -> lost, event; enough left: go on."""
    one, two = rows.lease("c1"), rows.lease("c2")
    (a,), (b,) = rows.online(one, "a"), rows.online(two, "b")
    session = rows.running(min_clients=2, min_updates=1, closing_timeout_s=10)
    rows.accept(one, rows.task(session, a), value=1)
    rows.accept(two, rows.task(session, b), value=7)
    rows.lease_out(one, 5)
    again(session)  # the engine sees the silence
    assert rows.share(session, one).status == "closing"
    Round.objects.update(closing_at=ago(11))
    CombinerShare.objects.filter(combiner_id=one.combiner_id).update(silent_since=ago(4.9))
    again(session)
    assert rows.share(session, one).status == "closing"  # not seen silent for long enough
    CombinerShare.objects.filter(combiner_id=one.combiner_id).update(silent_since=ago(10.1))
    rows.lease_out(one, 20)
    again(session)
    assert rows.share(session, one).status == "abandoned"
    assert rows.task(session, a).status == "lost"
    assert "1 accepted update of round 1 lost" in rows.events(session, "round.updates_lost")[0]
    assert rows.finish_share(two) == [True]
    assert rows.reduce(session).status == "finished"
    again(session)
    assert_same(rows.arrays_of(session.current_model), update(7))


def test_too_few_updates_left_when_closing_fails_the_round(rows: Rows) -> None:
    """closing, a Share's combiner silent ...: else Round failed."""
    lease = rows.lease()
    (a,) = rows.online(lease, "a")
    session = rows.running(closing_timeout_s=1)
    rows.accept(lease, rows.task(session, a))
    rows.lease_out(lease, 20)
    CombinerShare.objects.update(silent_since=ago(5))
    Round.objects.update(closing_at=ago(6))
    first = rows.round(session)
    again(session)
    first.refresh_from_db()
    assert first.status == "failed" and "0 of 1 needed updates were left" in first.reason
    assert "did not finish its share" in first.reason


def test_the_last_finished_share_starts_the_reduction_itself(rows: Rows) -> None:
    """closing, every Share ended, at least `min_updates` accepted: Round -> reducing. The one that finishes the
    last Share may itself start reducing."""
    one, two = rows.lease("c1"), rows.lease("c2")
    (a,), (b,) = rows.online(one, "a"), rows.online(two, "b")
    session = rows.running(min_clients=2)
    rows.accept(one, rows.task(session, a))
    rows.accept(two, rows.task(session, b))
    rows.finish_share(one)
    assert rows.round(session).status == "closing"
    rows.finish_share(two)
    assert rows.round(session).status == "reducing"


def test_a_reduction_whose_claim_ran_out_is_enqueued_again(
    rows: Rows, django_capture_on_commit_callbacks: object
) -> None:
    """reducing, its claim run out: enqueued again."""
    lease = rows.lease()
    (a,) = rows.online(lease, "a")
    session = rows.running(aggregator="fedavgm")  # a plain average of one share leaves nothing to reduce
    rows.accept(lease, rows.task(session, a))
    rows.finish_share(lease)
    claimed = Round.objects.filter(pk=rows.round(session).pk)

    def hints() -> int:
        with django_capture_on_commit_callbacks() as callbacks:  # type: ignore[operator]
            engine.advance(session.pk)
        return len(callbacks)

    claimed.update(reduce_owner=uuid.uuid4(), reduce_until=timezone.now() + dt.timedelta(seconds=10))
    assert hints() == 0
    claimed.update(reduce_until=ago(1), reduce_asked_at=ago(11))
    assert hints() == 1
    claimed.update(reduce_owner=None, reduce_until=None, reduce_asked_at=ago(1), reducing_at=ago(1))
    assert hints() == 0  # the first task is on its way
    claimed.update(reduce_asked_at=ago(3), reducing_at=ago(3))
    assert hints() == 1
