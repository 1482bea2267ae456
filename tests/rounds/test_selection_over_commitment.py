"""More clients are asked than are wanted, and the round ends with those that answer first."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from federation.sessions.config import parse_spec
from foundation.errors import StudioError
from tests.rounds.rows import Rows


@pytest.mark.parametrize(
    ("online", "wanted", "times", "asked"),
    [
        (20, 10, 1.1, 11),
        (20, 10, 1.3, 13),
        (20, 3, 1.3, 4),
        (12, 10, 1.3, 12),
        (10, 10, 1.3, 10),
        (5, 10, 2, 5),
    ],
)
def test_so_many_times_more_are_asked_as_far_as_they_are_there(
    rows: Rows, online: int, wanted: int, times: float, asked: int
) -> None:
    rows.online(rows.lease(), *(f"c{n:02}" for n in range(online)))
    session = rows.running(requested_clients=wanted, selection={"over_commitment": times})
    round_ = rows.round(session)
    assert round_.assignments.count() == asked
    assert round_.goal == min(wanted, online)
    assert (round_.plan["selection"]["wanted"], round_.plan["selection"]["asked"]) == (
        min(wanted, online),
        asked,
    )


def test_a_round_ends_with_as_many_updates_as_were_wanted(rows: Rows) -> None:
    lease = rows.lease()
    clients = rows.online(lease, *(f"c{n}" for n in range(6)))
    session = rows.running(requested_clients=4, selection={"over_commitment": 1.5})
    for client in clients[2:5]:
        rows.accept(lease, rows.task(session, client))
    assert rows.round(session).status == "training"
    rows.accept(lease, rows.task(session, clients[0]))
    assert rows.round(session).status == "closing"
    assert rows.task(session, clients[1]).status == "expired"
    assert rows.task(session, clients[1]).error == "round 1 is closed: 4 updates are enough"


def test_a_fraction_is_wanted_and_more_are_asked(rows: Rows) -> None:
    rows.online(rows.lease(), *(f"c{n:02}" for n in range(20)))
    session = rows.running(selection={"fraction": 0.5, "over_commitment": 1.2})
    assert (rows.round(session).assignments.count(), rows.round(session).goal) == (12, 10)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "over_commitment needs requested_clients or a fraction"),
        ({"requested_clients": 4, "goal": 3}, "over_commitment and goal exclude each other"),
        ({"requested_clients": 4, "reserves": 1}, "over_commitment and reserves exclude each other"),
    ],
)
def test_what_does_not_go_with_it_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudioError) as refused:
        parse_spec({"seed_model": str(uuid.uuid4()), "selection": {"over_commitment": 1.5}, **settings})
    assert sentence in refused.value.message
    assert refused.value.data["field"] == "selection.over_commitment"


@pytest.mark.parametrize("times", [0.9, 11, "many"])
def test_fewer_than_are_wanted_cannot_be_asked(times: Any) -> None:
    with pytest.raises(StudioError, match="over_commitment must be a number from 1 to 10"):
        parse_spec(
            {"seed_model": str(uuid.uuid4()), "requested_clients": 3, "selection": {"over_commitment": times}}
        )
