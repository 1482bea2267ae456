"""Guided selection is worth having: on a made-up population it reaches the same loss in less simulated time.

A world of clients, each with data of one kind and a speed. Training on a kind lowers its loss a little, rare kinds are
held by few; a round lasts as long as the slowest that was asked. Statements are about order, over several worlds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from federation.sessions.config import SelectionSettings
from federation.sessions.selection.draw import sample
from federation.sessions.selection.guided import (
    Candidate,
    Measure,
    Pacer,
    Record,
    Report,
    guide,
    utilities,
)

SEEDS = range(8)
CLIENTS, KINDS, PLACES = 150, 8, 10
TARGET = 0.3  # of the loss that all kinds begin with
MOST_ROUNDS = 2000


@dataclass
class World:
    """Clients as (kind, examples, seconds a training)."""

    clients: list[tuple[int, int, float]]
    losses: list[float] = field(default_factory=lambda: [1.0] * KINDS)

    @classmethod
    def made(cls, seed: int, *, skewed_kinds: bool = True, skewed_speeds: bool = True) -> World:
        rng = random.Random(seed)
        weights = [1 / (kind + 1) if skewed_kinds else 1.0 for kind in range(KINDS)]
        return cls(
            [
                (
                    rng.choices(range(KINDS), weights)[0],
                    int(rng.lognormvariate(4, 0.5)) + 1,
                    rng.lognormvariate(2, 1.0) if skewed_speeds else 10.0,
                )
                for _ in range(CLIENTS)
            ]
        )

    def train(self, asked: list[int]) -> float:
        """Every kind's loss falls with the examples that were trained on; answers how long the round lasted."""
        for kind, examples, _ in (self.clients[i] for i in asked):
            self.losses[kind] *= 1 - min(0.02, examples / 10_000)
        return max(self.clients[i][2] for i in asked)

    @property
    def loss(self) -> float:
        """Every kind counts alike: a model that knows only the frequent ones is not done."""
        return sum(self.losses) / KINDS


@dataclass(frozen=True)
class Course:
    """What it took to reach the target."""

    seconds: float
    rounds: int


def at_random(world: World, seed: int) -> Course:
    rng, seconds = random.Random(seed), 0.0
    for number in range(1, MOST_ROUNDS):
        seconds += world.train(sample(range(CLIENTS), PLACES, rng))
        if world.loss <= TARGET:
            return Course(seconds, number)
    raise AssertionError("the target was not reached")


def with_guidance(world: World, seed: int) -> Course:
    settings = SelectionSettings(strategy="guided")
    rng, seconds = random.Random(seed), 0.0
    records: dict[int, Record] = {}
    pacer = Pacer(settings.duration_percentile)
    for number in range(1, MOST_ROUNDS):
        found = guide(
            [Candidate(records.get(i)) for i in range(CLIENTS)],
            PLACES,
            settings,
            measure=Measure.of(list(records.values()), pacer.percentile),
            round_number=number,
            rng=rng,
        )
        asked = [pick.index for pick in found.picks]
        told = utilities([Report(world.clients[i][1], loss=world.losses[world.clients[i][0]]) for i in asked])
        for i, utility in zip(asked, told):
            times = records[i].times + 1 if i in records else 1
            records[i] = Record(utility, world.clients[i][2], number, times)
        pacer = pacer.after(sum(one or 0.0 for one in told), settings)
        seconds += world.train(asked)
        if world.loss <= TARGET:
            return Course(seconds, number)
    raise AssertionError("the target was not reached")


def test_guided_selection_reaches_a_loss_in_less_time_than_chance() -> None:
    ratios = sorted(
        with_guidance(World.made(seed), seed).seconds / at_random(World.made(seed), seed).seconds
        for seed in SEEDS
    )
    assert ratios[-1] < 1.0, "in every world"
    assert ratios[len(ratios) // 2] < 0.7


@pytest.mark.parametrize("part", ["kinds", "speeds"])
def test_each_half_of_a_clients_worth_pays_by_itself(part: str) -> None:
    """Where all are as fast, fewer rounds are needed; where all data are alike, rounds are shorter."""

    def world(seed: int) -> World:
        return World.made(seed, skewed_kinds=part == "kinds", skewed_speeds=part == "speeds")

    guided = [with_guidance(world(seed), seed) for seed in SEEDS]
    chance = [at_random(world(seed), seed) for seed in SEEDS]
    if part == "kinds":
        assert all(one.rounds < other.rounds for one, other in zip(guided, chance))
    else:
        per_round = [
            (one.seconds / one.rounds, other.seconds / other.rounds) for one, other in zip(guided, chance)
        ]
        assert all(one < other for one, other in per_round)


def test_no_client_is_forgotten() -> None:
    """Exploration and the staleness of what is known bring everybody in."""
    settings = SelectionSettings(strategy="guided")
    rng = random.Random(1)
    records: dict[int, Record] = {}
    for number in range(1, 200):
        found = guide(
            [Candidate(records.get(i)) for i in range(40)],
            4,
            settings,
            measure=Measure.of(list(records.values()), 30),
            round_number=number,
            rng=rng,
        )
        for pick in found.picks:
            times = records[pick.index].times + 1 if pick.index in records else 1
            records[pick.index] = Record(1.0, 1.0 + pick.index % 5, number, times)
    assert len(records) == 40
