"""Poisson sampling: each client takes part by its own coin."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from clients_app.models import Client
from federation.sessions.config import SessionConfig, parse_spec
from federation.sessions.models import Session
from federation.sessions.selection import Chosen, choose_for_round, eligible, population
from federation.sessions.selection.draw import coins, coins_with_at_least
from foundation.errors import StudioError
from tests.rounds.rows import Rows


def crowd(rows: Rows, count: int) -> list[Client]:
    return rows.online(rows.lease(), *(f"c{n:02}" for n in range(count)))


def drawn(session: Session, **selection: Any) -> Chosen:
    """What a round would be opened with; `selection` in place of the session's."""
    config = SessionConfig.from_json(session.config)
    config = replace(config, selection=replace(config.selection, **selection))
    return choose_for_round(session, config, eligible(session, config))


def test_each_client_comes_up_with_its_probability_and_any_number_of_them_may() -> None:
    draws = [coins(range(10), 0.3, random.Random(seed)) for seed in range(2000)]
    each = Counter(one for draw in draws for one in draw)
    assert all(abs(each[one] / 2000 - 0.3) < 0.05 for one in range(10))
    assert len({len(draw) for draw in draws}) > 6


def test_one_coin_says_nothing_of_another() -> None:
    both = sum({0, 1} <= set(coins(range(2), 0.5, random.Random(seed))) for seed in range(2000))
    assert abs(both / 2000 - 0.25) < 0.05


def test_a_draw_of_too_few_is_repeated_and_in_the_end_filled_up() -> None:
    assert all(len(coins_with_at_least(range(10), 0.3, 3, random.Random(seed))) >= 3 for seed in range(200))
    assert len(coins_with_at_least(range(10), 1e-9, 4, random.Random(1))) == 4


def test_a_round_of_clients_drawn_by_coins_says_with_what_probability(rows: Rows) -> None:
    crowd(rows, 20)
    session = rows.running(selection={"strategy": "poisson", "fraction": 0.4, "seed": 3})
    round_ = rows.round(session)
    told = round_.plan["selection"]
    assert (told["probability"], told["seed"], told["chosen"]) == (0.4, 3, round_.assignments.count())
    why = set(round_.assignments.values_list("why", flat=True))
    assert why == {"drawn by its own coin, with probability 0.4"}
    assert round_.goal == told["chosen"] >= round_.min_updates


def test_a_number_makes_the_probability(rows: Rows) -> None:
    crowd(rows, 20)
    session = rows.running(selection={"strategy": "poisson"}, requested_clients=5)
    assert rows.round(session).plan["selection"]["probability"] == 0.25


def test_without_privacy_a_round_has_enough_clients(rows: Rows) -> None:
    crowd(rows, 6)
    session = rows.session(selection={"strategy": "poisson", "fraction": 0.01}, min_clients=3, start=False)
    for seed in range(20):
        assert len(drawn(session, seed=seed).clients) >= 3


def test_with_privacy_a_draw_is_what_it_is_and_may_be_empty(rows: Rows) -> None:
    """Drawing again until somebody comes up would condition the sample, and the accounting would be wrong."""
    crowd(rows, 4)
    session = rows.session(
        selection={"strategy": "poisson", "fraction": 0.1},
        privacy={"clip_norm": 1.0},
        min_clients=2,
        start=False,
    )
    found = [drawn(session) for _ in range(60)]
    sizes = {len(one.clients) for one in found}
    assert 0 in sizes and len(sizes) > 1
    assert all(one.min_updates == one.goal == len(one.clients) for one in found if len(one.clients) < 2)


def test_with_privacy_nobody_can_repeat_the_draw(rows: Rows) -> None:
    crowd(rows, 20)
    session = rows.session(
        selection={"strategy": "poisson", "fraction": 0.5}, privacy={"clip_norm": 1.0}, start=False
    )
    draws = {tuple(client.pk for client in drawn(session).clients) for _ in range(5)}
    assert len(draws) > 1
    assert drawn(session).plan["selection"]["seed"] is None


def test_the_population_is_everybody_who_might_come_online_or_not(rows: Rows) -> None:
    clients = crowd(rows, 10)
    Client.objects.filter(pk__in=[c.pk for c in clients[:8]]).update(attributes={"gpu": 1})
    rows.offline(*clients[5:])

    def counted(**settings: Any) -> int:
        session = rows.session(start=False, **settings)
        return population(session, SessionConfig.from_json(session.config))

    assert counted() == 10
    assert counted(selection={"where": "gpu>=1"}) == 8
    assert counted(client_ids=[str(c.pk) for c in clients[6:]]) == 4
    assert counted(client_ids=[str(c.pk) for c in clients[6:]], selection={"where": "gpu>=1"}) == 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"selection": {}}, "needs a fraction or requested_clients"),
        ({"selection": {"fraction": 0.5, "over_commitment": 2}}, "no over_commitment, reserves or goal"),
        ({"selection": {"fraction": 0.5}, "reserves": 1}, "no over_commitment, reserves or goal"),
        ({"selection": {"fraction": 0.5}, "goal": 1}, "no over_commitment, reserves or goal"),
        ({"selection": {"fraction": 0.5, "seed": 1}, "privacy": True}, "leave the seed out"),
    ],
)
def test_what_does_not_go_with_it_is_refused(settings: dict[str, Any], sentence: str) -> None:
    selection = {"strategy": "poisson", **settings["selection"]}
    with pytest.raises(StudioError) as refused:
        parse_spec({"seed_model": str(uuid.uuid4()), **settings, "selection": selection})
    assert sentence in refused.value.message
