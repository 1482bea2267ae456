"""Guided selection in a session: what rounds bring becomes scores, and scores the next round."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from clients_app.models import Client
from clients_app.presence import CombinerLease
from federation.sessions.config import SessionConfig
from federation.sessions.models import Assignment, Round, SelectionScore, Session
from federation.sessions.selection import choose_more, eligible
from federation.sessions.selection.scores import candidates, recall
from tests.rounds.rows import Rows, again, give_up, past_deadline

GUIDED = {"strategy": "guided", "seed": 7, "exploration": 0.0}


def guided(
    rows: Rows, *, asked: int = 2, rounds: int = 9, guide: Mapping[str, Any] = GUIDED, **more: Any
) -> Session:
    return rows.running(rounds=rounds, requested_clients=asked, selection=dict(guide), **more)


def in_round(rows: Rows, session: Session) -> set[str]:
    return {row.client.name for row in rows.round(session).assignments.filter(kind="train")}


def answer(
    rows: Rows,
    lease: CombinerLease,
    session: Session,
    losses: Mapping[str, float | None],
    seconds: Mapping[str, float] | None = None,
) -> None:
    """Everybody in the round answers with the loss under its name, after so many seconds (1); then the next opens."""
    tasks = list(
        rows.round(session).assignments.filter(kind="train").select_related("client").order_by("client_id")
    )
    for task in tasks:
        rows.accept(lease, task, value=1.0, examples=10)
        loss = losses.get(task.client.name)
        took = dt.timedelta(seconds=(seconds or {}).get(task.client.name, 1.0))
        Assignment.objects.filter(pk=task.pk).update(
            metadata={} if loss is None else {"loss": loss}, ended_at=task.created_at + took
        )
    next_round(rows, lease, session)


def next_round(rows: Rows, lease: CombinerLease, session: Session) -> None:
    rows.finish_share(lease)
    again(session)
    rows.reduce(session)
    again(session)


def scores(session: Session) -> dict[str, SelectionScore]:
    return {
        row.client.name: row
        for row in SelectionScore.objects.filter(session=session).select_related("client")
    }


def test_a_round_leaves_a_score_for_each_client_once_the_next_opens(rows: Rows) -> None:
    lease = rows.lease()
    rows.online(lease, "a", "b")
    session = guided(rows)
    assert scores(session) == {}
    answer(rows, lease, session, {"a": 3.0, "b": 0.5}, {"a": 4.0, "b": 2.0})
    assert rows.round(session).number == 2
    found = scores(session)
    assert (found["a"].utility, found["a"].duration_s) == (30.0, 4.0)
    assert (found["b"].utility, found["b"].duration_s) == (5.0, 2.0)
    assert {(row.times, row.last_round) for row in found.values()} == {(1, 1)}


def test_the_next_round_asks_those_whose_samples_hurt_most_and_says_so(rows: Rows) -> None:
    lease = rows.lease()
    names = ["a", "b", "c", "d"]
    rows.online(lease, *names)
    session = guided(rows, asked=4, rounds=3)
    answer(rows, lease, session, {"a": 0.1, "b": 9.0, "c": 0.1, "d": 9.0})
    Session.objects.filter(pk=session.pk).update(config=session.config | {"requested_clients": 2})
    answer(rows, lease, session, {"a": 0.1, "b": 9.0, "c": 0.1, "d": 9.0})
    assert in_round(rows, session) == {"b", "d"}
    task = rows.task(session, Client.objects.get(name="b"))
    assert task.why.startswith("guided: score 1.") and task.why.endswith("tried 2 times")


def test_slow_clients_are_asked_less(rows: Rows) -> None:
    lease = rows.lease()
    rows.online(lease, "a", "b", "c", "d")
    session = guided(rows, asked=4, rounds=3)
    same = dict.fromkeys("abcd", 1.0)
    answer(rows, lease, session, same, {"a": 60.0, "b": 1.0, "c": 90.0, "d": 1.0})
    Session.objects.filter(pk=session.pk).update(config=session.config | {"requested_clients": 2})
    answer(rows, lease, session, same, {"a": 60.0, "b": 1.0, "c": 90.0, "d": 1.0})
    assert in_round(rows, session) == {"b", "d"}
    assert rows.round(session).plan["selection"]["aim_s"] == 1.0


def test_the_mean_of_squared_losses_is_preferred_to_the_loss(rows: Rows) -> None:
    lease = rows.lease()
    (a,) = rows.online(lease, "a")
    session = guided(rows, asked=1)
    rows.accept(lease, rows.task(session, a), examples=10)
    Assignment.objects.update(metadata={"loss": 1.0, "loss_squared_mean": 9.0, "loss_of_others": "x"})
    next_round(rows, lease, session)
    assert scores(session)["a"].utility == 30.0


@pytest.mark.parametrize("said", [None, "high", True, {"value": 3}, [3.0], 10**400])
def test_a_client_that_reports_no_usable_loss_is_as_useful_as_the_mean_of_its_round(
    rows: Rows, said: Any
) -> None:
    lease = rows.lease()
    a, b, c = rows.online(lease, "a", "b", "c")
    session = guided(rows, asked=3)
    rows.accept(lease, *(rows.task(session, one) for one in (a, b, c)), examples=10)
    for one, loss in ((a, 1.0), (b, 3.0), (c, said)):
        Assignment.objects.filter(client=one).update(metadata={"loss": loss})
    next_round(rows, lease, session)
    assert scores(session)["c"].utility == 20.0


def test_without_any_loss_clients_are_chosen_by_their_speed(rows: Rows) -> None:
    lease = rows.lease()
    rows.online(lease, "a", "b", "c", "d")
    session = guided(rows, asked=4, rounds=3)
    slow_and_fast = {"a": 60.0, "b": 1.0, "c": 90.0, "d": 1.0}
    answer(rows, lease, session, {}, slow_and_fast)
    Session.objects.filter(pk=session.pk).update(config=session.config | {"requested_clients": 2})
    answer(rows, lease, session, {}, slow_and_fast)
    assert in_round(rows, session) == {"b", "d"}
    assert scores(session)["b"].utility is None


def test_a_client_that_failed_or_was_too_late_counts_as_no_faster_than_its_round(rows: Rows) -> None:
    lease = rows.lease()
    a, _b, c = rows.online(lease, "a", "b", "c")
    session = guided(rows, asked=3, min_updates=1)
    begun = rows.round(session).created_at
    rows.accept(lease, rows.task(session, a), examples=10, value=2.0)
    give_up(rows, session, c)
    past_deadline(rows, session)
    again(session)
    Round.objects.filter(pk=rows.round(session).pk).update(closing_at=begun + dt.timedelta(seconds=30))
    next_round(rows, lease, session)
    found = scores(session)
    assert found["a"].duration_s is not None and found["a"].duration_s < 30
    assert found["b"].duration_s == found["c"].duration_s == 30.0
    assert found["b"].utility == found["c"].utility == 20.0
    assert {row.times for row in found.values()} == {1}


def test_a_missed_round_keeps_what_was_known_of_a_client(rows: Rows) -> None:
    lease = rows.lease()
    a, b = rows.online(lease, "a", "b")
    session = guided(rows, min_updates=1)
    answer(rows, lease, session, {"a": 1.0, "b": 7.0}, {"a": 5.0, "b": 5000.0})
    rows.accept(lease, rows.task(session, a), value=1.0)
    give_up(rows, session, b)
    again(session)
    next_round(rows, lease, session)
    found = scores(session)["b"]
    assert (found.utility, found.duration_s, found.times, found.last_round) == (70.0, 5000.0, 2, 2)


def test_a_failed_round_counts_against_those_who_failed_it(rows: Rows) -> None:
    lease = rows.lease()
    a, b = rows.online(lease, "a", "b")
    session = guided(rows, min_updates=2)
    rows.accept(lease, rows.task(session, a), value=1.0)
    give_up(rows, session, b)
    again(session)
    assert rows.round(session).attempt == 2
    assert scores(session)["b"].times == 1


def test_never_tried_clients_have_their_share_of_the_places(rows: Rows) -> None:
    lease = rows.lease()
    rows.online(lease, *"abcdefgh")
    session = guided(rows, guide={**GUIDED, "exploration": 1.0, "exploration_decay": 1.0})
    seen = in_round(rows, session)
    answer(rows, lease, session, {})
    assert not seen & in_round(rows, session)
    why = set(rows.round(session).assignments.values_list("why", flat=True))
    assert why == {"guided: exploring, never tried"}
    told = rows.round(session).plan["selection"]
    assert (told["exploring"], told["known"], told["epsilon"]) == (2, 2, 1.0)


def speeds(session: Session) -> dict[str, float]:
    """What is expected of the clients that were never tried."""
    config = SessionConfig.from_json(session.config)
    clients = eligible(session, config).clients
    memory = recall(session, config, None)
    return {
        client.name: found.speed
        for client, found in zip(clients, candidates(session, config, clients, memory))
    }


def test_a_client_never_tried_is_as_fast_as_it_was_in_the_guided_session_before(rows: Rows) -> None:
    lease = rows.lease()
    rows.online(lease, "a", "b", "c")
    before = guided(rows, asked=3, rounds=2)
    answer(rows, lease, before, {}, {"a": 5.0, "b": 10.0, "c": 20.0})
    unseeded = {"strategy": "guided"}
    assert speeds(rows.session(start=False, requested_clients=2, selection=unseeded)) == {
        "a": 2.0,
        "b": 1.0,
        "c": 0.5,
    }
    seeded = rows.session(start=False, requested_clients=2, selection=GUIDED)
    assert set(speeds(seeded).values()) == {1.0}  # it must not depend on other sessions


def test_a_client_that_nothing_is_known_of_is_as_fast_as_it_says(rows: Rows) -> None:
    lease = rows.lease()
    rows.online(lease, "a", "b", "c", "d")
    for name, said in (("a", 100), ("b", 50), ("c", 300), ("d", "very")):
        Client.objects.filter(name=name).update(attributes={"speed": said})
    assert speeds(rows.session(start=False, requested_clients=2, selection=GUIDED)) == {
        "a": 1.0,
        "b": 0.5,
        "c": 3.0,
        "d": 1.0,
    }


def test_the_pacer_goes_on_from_round_to_round(rows: Rows) -> None:
    lease = rows.lease()
    rows.online(lease, "a", "b")
    session = guided(rows, guide={**GUIDED, "pacer_step": 1, "pacer_delta": 10})
    for _ in range(3):
        answer(rows, lease, session, {"a": 1.0, "b": 1.0})
    aims = Round.objects.filter(session=session).order_by("id").values_list("plan", flat=True)
    assert [plan["selection"]["aim_percentile"] for plan in aims] == [30, 30, 40, 50]


def test_scores_of_one_session_are_none_of_anothers_business(rows: Rows) -> None:
    lease = rows.lease()
    rows.online(lease, "a", "b")
    one = guided(rows)
    answer(rows, lease, one, {"a": 1.0, "b": 1.0})
    other = guided(rows)
    assert scores(other) == {} and rows.round(other).plan["selection"]["known"] == 0


def test_a_free_place_goes_to_whom_guidance_likes_best(rows: Rows) -> None:
    lease = rows.lease()
    a, b, c = rows.online(lease, "a", "b", "c")
    session = guided(rows, asked=3)
    answer(rows, lease, session, {"a": 9.0, "b": 0.1, "c": 9.0})
    answer(rows, lease, session, {"a": 9.0, "b": 0.1, "c": 9.0})
    config = SessionConfig.from_json(session.config)
    pool = eligible(session, config)
    found = choose_more(session, config, pool, 1, busy={a.pk})
    assert [client.name for client in found.clients] == ["c"] and "score" in found.why[c.pk]
    assert {client.name for client in choose_more(session, config, pool, 5, busy={a.pk}).clients} == {
        "b",
        "c",
    }
    assert choose_more(session, config, pool, 2, busy={a.pk, b.pk, c.pk}).clients == []


@pytest.mark.parametrize("same", [True, False], ids=["the same clients", "others like them"])
def test_a_guided_session_can_be_replayed(rows: Rows, same: bool) -> None:
    """Same seed, clients in the same order, same reports: the same choices for the same reasons."""
    lease = rows.lease()
    told = []
    for prefix in ("x", "x" if same else "y"):
        names = [f"{prefix}{n:02}" for n in range(12)]
        clients = rows.online(lease, *names)
        session = guided(
            rows, asked=4, rounds=7, guide={"strategy": "guided", "seed": 11},
            client_ids=[str(one.pk) for one in clients],
        )  # fmt: skip
        choices = []
        for _ in range(6):
            tasks = rows.round(session).assignments.select_related("client")
            choices.append(sorted((task.client.name[1:], task.why) for task in tasks))
            losses = {name: 1.0 + (7 * int(name[1:])) % 5 for name in names}
            seconds = {name: 1.0 + (5 * int(name[1:])) % 7 for name in names}
            answer(rows, lease, session, losses, seconds)
        Session.objects.filter(pk=session.pk).update(status="stopped")
        told.append(choices)
    assert told[0] == told[1]
    assert len({tuple(choice) for choice in told[0]}) > 1


def test_another_seed_is_another_session(rows: Rows) -> None:
    rows.online(rows.lease(), *(f"c{n:02}" for n in range(30)))
    drawn = {
        frozenset(in_round(rows, guided(rows, asked=5, guide={"strategy": "guided", "seed": seed})))
        for seed in range(4)
    }
    assert len(drawn) == 4


def test_a_client_of_no_use_to_anybody_does_not_stop_a_session(rows: Rows) -> None:
    lease = rows.lease()
    rows.online(lease, "a", "b")
    session = guided(rows, asked=1)
    answer(rows, lease, session, {"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0})
    answer(rows, lease, session, {"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0})
    assert rows.round(session).number == 3 and len(in_round(rows, session)) == 1


def test_an_enormous_claim_harms_nobody(rows: Rows) -> None:
    lease = rows.lease()
    rows.online(lease, "a", "b", "c")
    session = guided(rows, asked=3)
    for _ in range(2):
        answer(rows, lease, session, {"a": 1e300, "b": 1.0, "c": 1.0})
    assert rows.round(session).number == 3


def asynchronous(rows: Rows, lease: CombinerLease, names: str, **settings: Any) -> Session:
    """A guided session of single places and a buffer of two."""
    rows.online(lease, *names)
    return rows.running(
        rounds=9,
        asynchronous={"buffer_size": 2, "concurrency": 1, **settings},
        selection={"strategy": "guided", "seed": 5},
    )


def asked_now(session: Session) -> list[Assignment]:
    return list(
        Assignment.objects.filter(round__session=session, kind="train", status__in=["assigned", "delivered"])
        .select_related("client")
        .order_by("id")
    )


def test_in_an_asynchronous_round_whoever_was_just_asked_is_not_explored_again(rows: Rows) -> None:
    lease = rows.lease()
    session = asynchronous(rows, lease, "abcdefgh", buffer_size=9)
    seen = []
    for _ in range(8):
        (task,) = asked_now(session)
        if task.why == "guided: exploring, never tried":
            seen.append(task.client.name)
        rows.accept(lease, task)
        again(session)
    assert len(seen) == len(set(seen)) >= 6


def test_the_updates_of_an_asynchronous_round_become_scores_when_the_next_opens(rows: Rows) -> None:
    lease = rows.lease()
    session = asynchronous(rows, lease, "abc")
    names = set()
    for _ in range(2):
        (task,) = asked_now(session)
        names.add(task.client.name)
        assert scores(session) == {}
        rows.accept(lease, task, value=2.0, examples=10)
        again(session)
    found = scores(session)
    assert set(found) == names and sum(row.times for row in found.values()) == 2
    assert {row.utility for row in found.values()} == {20.0}


def test_a_listed_client_that_does_not_exist_is_simply_not_there(rows: Rows) -> None:
    (a,) = rows.online(rows.lease(), "a")
    session = guided(rows, asked=1, client_ids=[str(a.pk), str(uuid.uuid4())])
    assert in_round(rows, session) == {"a"}
