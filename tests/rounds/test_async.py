"""Asynchronous rounds on rows: who is asked, which round takes an update, and what it counts."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from django.utils import timezone

from clients_app.models import Client, Combiner
from clients_app.presence import CombinerLease
from federation.models.models import Model
from federation.sessions import assignments, due, reduction
from federation.sessions.choices import LIVE_ASSIGNMENT, PAST_TRAINING, AssignmentStatus
from federation.sessions.models import Assignment, Round, Session
from foundation import hints
from foundation.errors import StudioError
from tests.rounds.rows import Rows, again, ago, assert_same, give_up, update

pytestmark = pytest.mark.django_db


def begin(
    rows: Rows, names: str = "abc", rounds: int = 3, asynchronous: Any = None, **settings: Any
) -> tuple[Session, CombinerLease, list[Client]]:
    """A running asynchronous session with a client for each letter; its buffer holds two updates."""
    lease = rows.lease()
    Combiner.objects.update(lease_until=ago(-3600))  # however slow the machine
    clients = rows.online(lease, *names)
    session = rows.running(rounds=rounds, asynchronous={"buffer_size": 2} | (asynchronous or {}), **settings)
    return session, lease, clients


def training(session: Session) -> list[str]:
    """Names of the clients that hold a live train assignment."""
    rows = Assignment.objects.filter(round__session=session, kind="train", status__in=LIVE_ASSIGNMENT)
    return sorted(rows.values_list("client__name", flat=True))


def open_rounds(session: Session) -> list[tuple[int, str]]:
    rows = Round.objects.filter(session=session, status__in=("training", *PAST_TRAINING)).order_by("number")
    return list(rows.values_list("number", "status"))


def send(rows: Rows, lease: CombinerLease, session: Session, client: Client, value: float = 1.0) -> Any:
    """The client answers what it holds."""
    (verdict,) = rows.accept(lease, rows.task(session, client), value=value)
    return verdict


def statuses_of(round_: Round) -> list[str]:
    return list(round_.assignments.values_list("status", flat=True))


def become_model(rows: Rows, lease: CombinerLease, session: Session) -> Model:
    """The round that closed becomes a model."""
    assert rows.finish_share(lease) == [True]
    round_ = Round.objects.get(session=session, status="reducing")
    reduction.reduce_round(round_.pk)
    again(session)
    return session.current_model


# --- who is asked, and which round takes what -----------------------------------------------------------------


def test_everybody_online_trains_and_whoever_answered_is_asked_again_at_once(rows: Rows) -> None:
    session, lease, (a, _b, _c) = begin(rows)
    assert training(session) == ["a", "b", "c"]
    first = rows.task(session, a)
    assert send(rows, lease, session, a).accepted
    assert training(session) == ["a", "b", "c"] and rows.task(session, a).pk != first.pk
    assert open_rounds(session) == [(1, "training")]


def test_a_full_buffer_closes_and_the_next_round_opens_in_that_transaction(rows: Rows) -> None:
    session, lease, (a, b, _c) = begin(rows)
    assert not send(rows, lease, session, a).closes
    assert send(rows, lease, session, b).closes
    assert open_rounds(session) == [(1, "closing"), (2, "training")]
    assert training(session) == ["a", "b", "c"]  # nobody lost the lease, and whoever was free has a new one


def test_an_update_belongs_to_the_round_that_trains_when_it_comes(rows: Rows) -> None:
    """It goes to the session's open round that is training, not to the round that issued it."""
    session, lease, (a, b, slow) = begin(rows)
    asked = rows.task(session, slow)
    send(rows, lease, session, a)
    send(rows, lease, session, b)
    become_model(rows, lease, session)
    verdict = send(rows, lease, session, slow)
    asked.refresh_from_db()
    assert verdict.accepted and asked.round.number == 1 and asked.share is not None
    assert (asked.share.round.number, asked.staleness) == (2, 1)
    assert asked.weight == pytest.approx(2**-0.5)


def test_a_second_copy_is_accepted_again_and_changes_nothing(rows: Rows) -> None:
    session, lease, (a, b, _c) = begin(rows)
    task = rows.task(session, a)
    (first,) = rows.accept(lease, task)
    send(rows, lease, session, b)  # the round closes
    (second,) = rows.accept(lease, task)
    assert second.accepted and second.closes, "the answer that said so may have been lost"
    assert (second.spool_name, second.share_id, second.round_id) == (
        first.spool_name, first.share_id, task.round_id,
    )  # fmt: skip
    assert Assignment.objects.filter(round__session=session, status="accepted").count() == 2


def test_what_a_client_trains_from_is_the_newest_model(rows: Rows) -> None:
    session, lease, (a, b, c) = begin(rows)
    send(rows, lease, session, a)
    send(rows, lease, session, b)
    assert rows.task(session, a).model_id == session.seed_model_id  # round 1 is not a model yet
    made = become_model(rows, lease, session)
    send(rows, lease, session, c)
    assert rows.task(session, c).model_id == made.pk


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_no_more_clients_train_at_once_than_asked_for(rows: Rows, concurrency: int) -> None:
    session, lease, clients = begin(rows, "abcde", 60, {"concurrency": concurrency, "max_staleness": 60})
    dice = random.Random(concurrency)
    took_part = set()
    for _ in range(40):
        session.refresh_from_db()
        if session.status != "running":
            break
        busy = training(session)
        assert len(busy) == concurrency
        took_part.add(chosen := dice.choice(busy))
        client = next(one for one in clients if one.name == chosen)
        if dice.random() < 0.2 and "failed" not in statuses_of(rows.round(session)):
            give_up(rows, session, client)
            again(session)
        else:
            assert send(rows, lease, session, client).accepted
        if len(open_rounds(session)) == 2 and dice.random() < 0.7:
            become_model(rows, lease, session)
    assert session.rounds_done >= 2 and len(took_part) == 5  # places go round


def test_a_client_that_joins_while_the_session_runs_is_given_work(
    rows: Rows, django_capture_on_commit_callbacks: Any
) -> None:
    session, lease, _ = begin(rows, "ab")
    (late,) = rows.online(lease, "late")
    with django_capture_on_commit_callbacks() as said:
        assignments.wake_waiting_sessions([rows.project.pk])
    assert len(said) == 1  # it is looked at now
    again(session)
    assert training(session) == ["a", "b", "late"]
    assert rows.task(session, late).model_id == session.current_model_id


def test_a_lost_hint_costs_a_newcomer_seconds_and_not_the_round(rows: Rows) -> None:
    """A slow poll exists behind every push: the tick sees who came online since the session sought clients."""
    session, lease, _ = begin(rows, "ab", round_timeout_s=3600)
    assert session.sought_at is not None
    Client.objects.update(connected_at=session.sought_at - dt.timedelta(seconds=10))
    assert session.pk not in due.due_sessions()
    rows.online(lease, "late")
    assert session.pk in due.due_sessions()
    again(session)
    Client.objects.update(connected_at=ago(5))
    Session.objects.update(sought_at=ago(1))  # when it looked
    assert session.pk not in due.due_sessions()


def test_what_a_session_has_seen_of_newcomers_is_kept_however_soon_a_lease_ends(rows: Rows) -> None:
    session, _lease, _ = begin(rows, "ab", round_timeout_s=30)
    Session.objects.update(sought_at=ago(20))
    before = session.look_at
    again(session)
    assert session.look_at == before  # the first lease that ends
    assert session.sought_at is not None and session.sought_at > ago(10)


# --- what it counts -------------------------------------------------------------------------------------------


class Oracle:
    """FedBuff in float64 on one number: x += sum(n s (u - base)) / sum(n), n examples, s = (1 + staleness) ** -e."""

    def __init__(self, exponent: float) -> None:
        self.models, self.exponent = [0.0], exponent
        self.buffer: list[tuple[float, float, float]] = []

    def take(self, value: float, examples: float, base: int) -> None:
        staleness = len(self.models) - 1 - base
        self.buffer.append((examples, (1 + staleness) ** -self.exponent, value - self.models[base]))

    def step(self) -> float:
        total = sum(examples for examples, _, _ in self.buffer)
        change = sum(examples * discount * delta for examples, discount, delta in self.buffer) / total
        self.models.append(float(np.float32(self.models[-1] + change)))
        self.buffer.clear()
        return self.models[-1]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
def test_the_model_of_every_round_is_fedbuffs(rows: Rows, exponent: float) -> None:
    """Staleness weights equal a float64 oracle over a scripted order of arrivals."""
    session, lease, clients = begin(
        rows, "abcd", 5, {"staleness_exponent": exponent, "buffer_size": 3, "max_staleness": 4}
    )
    by_name = dict(zip("abcd", clients, strict=True))
    oracle, held = Oracle(exponent), dict.fromkeys("abcd", 0)
    dice = np.random.default_rng(7)
    for made, arrivals in enumerate(("aba", "bcb", "aab", "dac", "bbb")):
        for name in arrivals:
            value, examples = float(np.float32(dice.normal())), float(dice.integers(1, 9))
            (verdict,) = rows.accept(lease, rows.task(session, by_name[name]), value=value, examples=examples)
            assert verdict.accepted
            oracle.take(value, examples, held[name])
            held[name] = made  # the round that closes is not a model yet
        expected = oracle.step()
        assert_same(rows.arrays_of(become_model(rows, lease, session)), update(expected), rtol=1e-5)
    assert session.status == "finished" and session.trail.count() == 5


def test_an_update_that_is_too_stale_is_refused_with_the_reason_and_its_client_asked_again(
    rows: Rows,
) -> None:
    session, lease, (a, b, slow) = begin(rows, "abc", 9, {"max_staleness": 1})
    asked = rows.task(session, slow)
    for _ in range(2):
        send(rows, lease, session, a)
        send(rows, lease, session, b)
        become_model(rows, lease, session)
    verdict = send(rows, lease, session, slow)
    assert not verdict.accepted
    assert verdict.reason == "dropped: its model is 2 rounds old, and at most 1 count"
    asked.refresh_from_db()
    assert (asked.status, asked.staleness, asked.share_id) == ("expired", 2, None)
    fresh = rows.task(session, slow)
    assert fresh.pk != asked.pk and fresh.model_id == session.current_model_id
    assert send(rows, lease, session, slow).accepted and rows.task(session, slow).pk != fresh.pk


@pytest.mark.parametrize("name", ["c1", "c2"])
def test_an_update_that_is_refused_may_close_a_round_and_every_combiner_is_told(
    rows: Rows, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The round was full already; the one before it has become a model, and no worker has looked since."""
    session, lease, (a, b, slow) = begin(rows, "abc", 9, {"max_staleness": 1})
    asked, told = rows.task(session, slow), []
    for number in (1, 2, 3):
        send(rows, lease, session, a)
        send(rows, lease, session, b)
        if number == 1:
            become_model(rows, lease, session)
    rows.finish_share(lease)
    reduction.reduce_round(Round.objects.get(session=session, number=2).pk)
    wake = hints.wake_combiners

    def noted(clients: list[str], **said: Any) -> None:
        told.append((clients, said))
        wake(clients, **said)

    monkeypatch.setattr(hints, "wake_combiners", noted)
    other = rows.lease("c2")
    (verdict,) = rows.accept(lease if name == "c1" else other, asked)
    assert not verdict.accepted and verdict.closes and verdict.closing is None
    assert open_rounds(session) == [(3, "closing"), (4, "training")]
    assert ([], {"ourselves": True}) in told


def test_a_slow_client_never_delays_a_round(rows: Rows) -> None:
    session, lease, (a, b, slow) = begin(rows, "abc", 3)
    held = rows.task(session, slow)
    for number in (1, 2, 3):
        send(rows, lease, session, a)
        send(rows, lease, session, b)
        assert become_model(rows, lease, session).round_number == number
    assert again(session).status == "finished"
    held.refresh_from_db()
    assert held.status == "expired" and held.error == "round 3, the last, is closed"
    (late,) = rows.accept(lease, held)
    assert not late.accepted and late.reason == "round 3, the last, is closed"


def test_while_a_model_is_made_updates_go_on_being_taken(rows: Rows) -> None:
    """Rounds commit in order: the next closes once the one before it is a model, with all that has come."""
    session, lease, (a, b, c) = begin(rows)
    send(rows, lease, session, a)
    send(rows, lease, session, b)
    for client in (a, b, c, a):
        assert not send(rows, lease, session, client, value=5).closes
    assert open_rounds(session) == [(1, "closing"), (2, "training")]
    first = become_model(rows, lease, session)
    assert open_rounds(session) == [(2, "closing"), (3, "training")]
    second = Round.objects.get(session=session, number=2)
    assert second.input_model_id == first.pk
    assert Assignment.objects.filter(share__round=second, status="accepted").count() == 4
    assert become_model(rows, lease, session).parent_id == first.pk


def test_the_last_round_takes_nothing_after_it_closed_and_the_session_ends(rows: Rows) -> None:
    session, lease, (a, b, _c) = begin(rows, rounds=1)
    send(rows, lease, session, a)
    send(rows, lease, session, b)
    assert open_rounds(session) == [(1, "closing")] and training(session) == []
    become_model(rows, lease, session)
    assert (session.status, session.reason) == ("finished", "The round is done.")


def test_a_new_model_is_validated_by_the_clients_of_its_round(rows: Rows) -> None:
    session, lease, (a, b, _c) = begin(rows, validate=True)
    send(rows, lease, session, a)
    send(rows, lease, session, b)
    made = become_model(rows, lease, session)
    asked = Assignment.objects.filter(round__session=session, kind="validate", model=made)
    assert sorted(asked.values_list("client__name", flat=True)) == ["a", "b"]


# --- who goes away --------------------------------------------------------------------------------------------


def test_a_client_that_dropped_out_goes_on_with_what_it_holds_when_it_comes_back(rows: Rows) -> None:
    session, lease, (a, b, gone) = begin(rows)
    held = rows.task(session, gone)
    rows.offline(gone)
    send(rows, lease, session, a)
    send(rows, lease, session, b)
    become_model(rows, lease, session)
    assert training(session) == ["a", "b", "c"]  # the lease is kept
    rows.online(lease, "c")
    again(session)
    assert rows.task(session, gone).pk == held.pk
    assert send(rows, lease, session, gone).accepted


def test_a_lease_that_ran_out_expires_and_its_place_is_given_to_another(rows: Rows) -> None:
    """A client that drops out keeps its assignment until its own deadline."""
    session, _lease, clients = begin(rows, "abc", asynchronous={"concurrency": 1})
    (held,) = Assignment.objects.filter(round__session=session)
    gone = next(client for client in clients if client.pk == held.client_id)
    rows.offline(gone)
    assert training(again(session)) == [gone.name]
    Assignment.objects.filter(pk=held.pk).update(deadline=ago(1))
    (other,) = training(again(session))
    assert other != gone.name
    held.refresh_from_db()
    assert (held.status, held.error) == ("expired", "no update came in time")
    assert not send(rows, _lease, session, gone).accepted


def test_each_client_has_the_whole_time_from_when_it_was_asked(rows: Rows) -> None:
    session, lease, (a, _b, _c) = begin(rows, round_timeout_s=100)
    Round.objects.filter(session=session).update(deadline=timezone.now() + dt.timedelta(seconds=5))
    send(rows, lease, session, a)
    left = rows.task(session, a).deadline - timezone.now()
    assert dt.timedelta(seconds=90) < left <= dt.timedelta(seconds=100)


def test_a_client_that_gives_up_is_asked_again_by_the_next_round_and_not_by_this_one(rows: Rows) -> None:
    session, lease, (a, b, broken) = begin(rows)
    give_up(rows, session, broken, "no data")
    again(session)
    assert training(session) == ["a", "b"]
    send(rows, lease, session, a)
    send(rows, lease, session, b)
    assert training(session) == ["a", "b", "c"]


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"deterministic": True}, "cannot be deterministic"),
        ({"privacy": {"expected_clients": 5}}, "cannot promise privacy"),
        ({"goal": 2}, "no goal: buffer_size"),
        ({"reserves": 1}, "no reserves"),
        ({"grace_s": 5}, "no grace_s"),
        ({"requested_clients": 4}, "concurrency says how many"),
        ({"selection": {"fraction": 0.5}}, "concurrency says how many"),
        ({"selection": {"over_commitment": 1.5}}, "waits for nobody"),
        ({"selection": {"strategy": "poisson"}}, "Choose another strategy"),
        ({"aggregator": "fedmedian"}, "Choose an aggregator that averages"),
        ({"min_clients": 3}, "min_clients must not be more than buffer_size (2)"),
        ({"min_updates": 4}, "min_updates must not be more than buffer_size (2)"),
        ({"asynchronous": {"concurrency": 1}, "min_clients": 2}, "more than concurrency (1)"),
        ({"asynchronous": {"buffer_size": 0}}, "buffer_size must be a whole number"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused_with_a_sentence(
    rows: Rows, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(StudioError, match="(?s)" + words.replace("(", r"\(").replace(")", r"\)")):
        rows.session(**({"asynchronous": {"buffer_size": 2}} | settings))
    assert not Session.objects.exists()


def names(clients: Sequence[Client]) -> list[str]:
    return [client.name for client in clients]


def test_a_synchronous_session_beside_it_goes_its_own_way(rows: Rows) -> None:
    session, lease, clients = begin(rows)
    beside = rows.running(min_clients=3)
    for client in clients:
        rows.accept(lease, rows.task(beside, client), value=2)
    again(session)
    assert open_rounds(beside) == [(1, "closing")] and open_rounds(session) == [(1, "training")]
    assert training(session) == names(clients)
    assert Assignment.objects.filter(round__session=beside, status=AssignmentStatus.ACCEPTED).count() == 3
