"""Grace: once enough updates are there, a round waits for the others a while longer, and no more."""

from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone

from federation.sessions import due
from federation.sessions.models import Round
from tests.rounds.rows import Rows, again, ago, statuses

pytestmark = pytest.mark.django_db


def left(round_: Round) -> float:
    return (round_.deadline - timezone.now()).total_seconds()


def test_the_others_have_the_grace_from_when_enough_updates_were_there(rows: Rows) -> None:
    lease = rows.lease()
    a, b, _c = rows.online(lease, "a", "b", "c")
    session = rows.running(min_clients=3, min_updates=1, grace_s=40, round_timeout_s=1000)
    assert left(rows.round(session)) > 900
    rows.accept(lease, rows.task(session, a))
    assert 30 < left(rows.round(session)) <= 40
    Round.objects.update(deadline=timezone.now() + dt.timedelta(seconds=5))  # 35 s later
    rows.accept(lease, rows.task(session, b))
    assert left(rows.round(session)) <= 5  # it does not begin anew
    Round.objects.update(deadline=ago(0.1))
    assert due.due_sessions() == [session.pk]  # whatever moment was noted to look at it
    again(session)
    assert rows.round(session).status == "closing"
    assert statuses(session) == ["accepted", "accepted", "expired"]


def test_a_round_that_everybody_answered_does_not_wait_for_its_grace(rows: Rows) -> None:
    lease = rows.lease()
    a, b = rows.online(lease, "a", "b")
    session = rows.running(min_clients=2, min_updates=1, grace_s=40)
    rows.accept(lease, rows.task(session, a))
    (verdict,) = rows.accept(lease, rows.task(session, b))
    assert verdict.closes


def test_grace_never_makes_a_round_longer(rows: Rows) -> None:
    lease = rows.lease()
    a, _b = rows.online(lease, "a", "b")
    session = rows.running(min_clients=2, min_updates=1, grace_s=3600, round_timeout_s=20)
    rows.accept(lease, rows.task(session, a))
    assert left(rows.round(session)) <= 20


def test_without_grace_a_round_waits_for_everybody_it_asked(rows: Rows) -> None:
    lease = rows.lease()
    a, _b = rows.online(lease, "a", "b")
    session = rows.running(min_clients=2, min_updates=1, round_timeout_s=1000)
    rows.accept(lease, rows.task(session, a))
    assert left(rows.round(session)) > 900 and "grace_until" not in rows.round(session).plan


def test_no_grace_at_all_closes_with_the_update_that_is_enough(rows: Rows) -> None:
    lease = rows.lease()
    a, _b = rows.online(lease, "a", "b")
    session = rows.running(min_clients=2, min_updates=1, grace_s=0)
    (verdict,) = rows.accept(lease, rows.task(session, a))
    assert verdict.closes and rows.round(session).status == "closing"
