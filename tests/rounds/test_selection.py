"""Who takes part in a round, and after how many updates it may end."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from clients_app.models import Client
from federation.sessions.config import parse_spec
from federation.sessions.models import Assignment, CombinerShare, Session
from foundation.errors import StudioError
from tests.rounds.rows import Rows, again, ago, give_up, past_deadline


def spec(**values: Any) -> Any:
    return parse_spec({"seed_model": str(uuid.uuid4()), **values}).config


def crowd(rows: Rows, count: int) -> list[Client]:
    return rows.online(rows.lease(), *(f"c{n:02}" for n in range(count)))


def in_round(rows: Rows, session: Session) -> list[Assignment]:
    return list(rows.round(session).assignments.filter(kind="train").order_by("client_id"))


def test_only_the_clients_that_were_named_take_part(rows: Rows) -> None:
    a, _b, c = rows.online(rows.lease(), "a", "b", "c")
    session = rows.running(client_ids=[str(a.pk), str(c.pk)])
    assert {(row.client.name, row.why) for row in in_round(rows, session)} == {
        ("a", "listed"),
        ("c", "listed"),
    }


def test_a_session_waits_for_the_clients_that_were_named_though_others_are_online(rows: Rows) -> None:
    a, _b, _c = rows.online(rows.lease(), "a", "b", "c")
    session = rows.running(client_ids=[str(a.pk), str(uuid.uuid4())], min_clients=2)
    assert session.waiting_for == "1 more client to come online (1 of 2 are)"


def test_a_round_ends_with_its_goal_though_others_have_not_answered(rows: Rows) -> None:
    lease = rows.lease()
    clients = rows.online(lease, "a", "b", "c")
    session = rows.running(goal=2)
    for client in clients[:2]:
        assert rows.round(session).status == "training"
        rows.accept(lease, rows.task(session, client))
    assert rows.round(session).status == "closing"
    assert sorted(row.status for row in rows.round(session).assignments.all()) == [
        "accepted",
        "accepted",
        "expired",
    ]


def test_a_goal_that_more_clients_would_be_needed_for_is_everybody(rows: Rows) -> None:
    rows.online(rows.lease(), "a", "b")
    assert rows.round(rows.running(goal=5)).goal == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"goal": 1, "min_clients": 2},
        {"goal": 0},
        {"goal": 3, "reserves": 1},
        {"client_ids": ["nonsense"]},
        {"client_ids": 5},
        {"client_ids": [str(uuid.UUID(int=1))], "min_clients": 2},
        {"client_ids": [str(uuid.UUID(int=n)) for n in range(10_001)]},
        {"selection": {"fraction": 0.5}, "requested_clients": 3},
        {"selection": {"fraction": 0}},
        {"selection": {"strategy": "guided"}},
        {"selection": {"strategy": "poisson"}},
        {"selection": {"strategy": "best"}},
        {"selection": {"seed": -1}},
        {"selection": {"max_times": 0}},
        {"selection": {"fractoin": 0.5}},
    ],
)
def test_senseless_choices_are_refused_with_their_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(StudioError) as refused:
        spec(**wrong)
    assert refused.value.data["field"].split(".")[0] in wrong


def test_client_ids_come_as_a_list_or_as_text_with_commas() -> None:
    one, two = sorted(str(uuid.uuid4()) for _ in range(2))
    assert spec(client_ids=[two, one, one]).client_ids == [one, two]
    assert spec(client_ids=f"{two}, {one}").client_ids == [one, two]
    assert spec(client_ids=None).client_ids == spec(client_ids="").client_ids == []


def test_all_that_are_online_take_part_when_no_number_is_asked_for(rows: Rows) -> None:
    crowd(rows, 3)
    session = rows.running()
    assert [row.why for row in in_round(rows, session)] == ["all that are online take part"] * 3


def test_a_number_is_drawn_at_random(rows: Rows) -> None:
    crowd(rows, 12)
    session = rows.running(requested_clients=5)
    chosen = in_round(rows, session)
    assert len({row.client_id for row in chosen}) == 5
    assert {row.why for row in chosen} == {"drawn at random, 5 of 12"}
    told = rows.round(session).plan["selection"]
    assert {key: told[key] for key in ("strategy", "online", "eligible", "wanted", "chosen", "needed", "where")} == {
        "strategy": "random", "online": 12, "eligible": 12, "wanted": 5, "chosen": 5, "needed": 1, "where": "",
    }  # fmt: skip
    assert rows.round(session).goal == 5


@pytest.mark.parametrize(
    ("fraction", "settings", "count"),
    [
        (0.5, {}, 5),
        (0.25, {}, 3),  # to the nearest
        (0.01, {}, 1),
        (0.01, {"min_clients": 4}, 4),
        (0.1, {"min_updates": 3}, 3),
        (1, {}, 10),
    ],
)
def test_a_fraction_of_the_eligible_clients_is_drawn_but_never_too_few(
    rows: Rows, fraction: float, settings: dict[str, Any], count: int
) -> None:
    crowd(rows, 10)
    session = rows.running(selection={"fraction": fraction}, **settings)
    assert len(in_round(rows, session)) == count == rows.round(session).goal


def test_a_fraction_counts_those_that_fit(rows: Rows) -> None:
    clients = crowd(rows, 10)
    Client.objects.filter(pk__in=[c.pk for c in clients[:4]]).update(attributes={"gpu": 1})
    session = rows.running(selection={"fraction": 0.5, "where": "gpu>=1"})
    assert {row.why for row in in_round(rows, session)} == {"drawn at random, 2 of 4"}


def test_a_client_takes_part_as_often_as_it_may_and_no_more(rows: Rows) -> None:
    lease = rows.lease()
    a, b = rows.online(lease, "a", "b")
    session = rows.running(rounds=3, selection={"max_times": 2}, min_clients=2, max_failed_rounds=9)
    give_up(rows, session, a)
    again(session)  # a second attempt of the round is a second time
    rows.accept(lease, rows.task(session, a), rows.task(session, b))
    rows.finish_share(lease)
    again(session)
    rows.reduce(session)
    again(session)
    assert rows.round(session).attempt == 2
    assert (
        session.waiting_for
        == "2 more clients to come online (0 of 2 are; 2 took part in 2 rounds, which is all they may)"
    )
    rows.online(lease, "c", "d")
    again(session)
    assert {row.client.name for row in in_round(rows, session)} == {"c", "d"}


def test_who_steps_in_for_a_client_that_went_away_must_fit_and_is_told_why(rows: Rows) -> None:
    a, b, _c = rows.online(rows.lease(), "a", "b", "c")
    Client.objects.filter(pk__in=[a.pk, b.pk]).update(attributes={"gpu": 1})
    session = rows.running(requested_clients=1, reserves=2, selection={"where": "gpu>=1"})
    (first,) = in_round(rows, session)
    rows.offline(first.client)
    again(session)
    (other,) = [row for row in in_round(rows, session) if row.pk != first.pk]
    assert {first.client_id, other.client_id} == {a.pk, b.pk}
    assert other.why == "in place of a client that went away"


def test_a_chosen_client_that_no_longer_fits_is_not_gone(rows: Rows) -> None:
    """What it says of itself while it trains, and that it may take part no more, are no reasons to ask another."""
    clients = rows.online(rows.lease(), "a", "b", "c")
    Client.objects.update(attributes={"gpu": 1})
    session = rows.running(requested_clients=1, reserves=2, selection={"where": "gpu>=1", "max_times": 1})
    (first,) = in_round(rows, session)
    Client.objects.filter(pk=first.client_id).update(attributes={})
    again(session)
    assert len(in_round(rows, session)) == 1 and len(clients) == 3


def test_a_client_whose_update_was_lost_is_asked_again_and_told_why(rows: Rows) -> None:
    lease = rows.lease("c1")
    (a,) = rows.online(lease, "a")
    rows.online(rows.lease("c2"), "b")
    session = rows.running(min_clients=2)
    rows.accept(lease, rows.task(session, a))
    rows.lease_out(lease, 600)
    again(session)
    CombinerShare.objects.update(silent_since=ago(60))
    again(session)
    assert rows.task(session, a).why == "asked again: its update was lost with the combiner"


def test_the_reasons_and_the_plan_stay_with_a_round_that_failed(rows: Rows) -> None:
    crowd(rows, 4)
    session = rows.running(requested_clients=2)
    past_deadline(rows, session)
    again(session)
    first, second = session.rounds.order_by("id")
    assert first.status == "failed" and first.plan["selection"]["chosen"] == 2
    assert second.attempt == 2 and second.plan["selection"]["seed"] == first.plan["selection"]["seed"]
