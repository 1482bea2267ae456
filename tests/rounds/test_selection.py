"""Who takes part in a round, and after how many updates it may end."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from federation.sessions.config import parse_spec
from foundation.errors import StudioError
from tests.rounds.rows import Rows


def spec(**values: Any) -> Any:
    return parse_spec({"seed_model": str(uuid.uuid4()), **values}).config


def test_only_the_clients_that_were_named_take_part(rows: Rows) -> None:
    a, _b, c = rows.online(rows.lease(), "a", "b", "c")
    session = rows.running(client_ids=[str(a.pk), str(c.pk)])
    assert {row.client.name for row in rows.round(session).assignments.all()} == {"a", "c"}


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
    ],
)
def test_senseless_choices_are_refused_with_their_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(StudioError) as refused:
        spec(**wrong)
    assert refused.value.data["field"] in wrong


def test_client_ids_come_as_a_list_or_as_text_with_commas() -> None:
    one, two = sorted(str(uuid.uuid4()) for _ in range(2))
    assert spec(client_ids=[two, one, one]).client_ids == [one, two]
    assert spec(client_ids=f"{two}, {one}").client_ids == [one, two]
    assert spec(client_ids=None).client_ids == spec(client_ids="").client_ids == []
