"""A deterministic session comes to the same bytes, however its updates arrive and through however many combiners."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from clients_app.models import Client
from federation.aggregation.aggregators import AGGREGATORS
from federation.models.models import Model
from federation.sessions.models import CombinerShare, Session
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.wire_client import ACCEPTED, WireClient

pytestmark = pytest.mark.django_db(transaction=True)

CLIENTS, ROUNDS = 7, 2
Combiners = Callable[..., CombinerHere]


def numbers(seed: int) -> dict[str, np.ndarray]:
    """Doubles of very different sizes: sums of them tell in which order they were made."""
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(0, 1, (40, 30)) * 10.0 ** rng.integers(-6, 6, (40, 30)),
        "b": rng.normal(0, 1, 50).astype(np.float32),
        "count": rng.integers(0, 1000, 5),
    }


def trained(
    rig: Rig, seed: Model, wires: Sequence[WireClient], order: int, **settings: object
) -> tuple[Session, str]:
    """A session whose clients send the same updates each time, one after the other, in a shuffled order."""
    session = rig.session(seed=seed, rounds=ROUNDS, min_clients=len(wires), **settings)
    shuffled = random.Random(order)
    for number in range(ROUNDS):
        tasks = [wire.next_task() for wire in wires]
        for place in shuffled.sample(range(len(wires)), len(wires)):
            said = {"num_steps": 3 + place, "loss": 0.5 + place / 7}
            sent = numbers(100 * number + place)
            receipt = wires[place].upload(tasks[place], sent, num_examples=1 + place / 3, metadata=said)
            assert receipt.status == ACCEPTED, receipt.reason
    rig.until_session(session, "finished", "failed")
    assert session.status == "finished", session.reason
    return session, session.current_model.sha256


def connected(rig: Rig, combiners: Sequence[CombinerHere], tokens: Sequence[str]) -> list[WireClient]:
    """Every client at one of the combiners."""
    for wire in rig.wires:
        wire.close()
    rig.wires.clear()
    return [rig.connect(combiners[place % len(combiners)], token) for place, token in enumerate(tokens)]


@pytest.mark.once
def test_the_same_updates_make_the_same_bytes_in_any_order_at_one_combiner_or_three(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """Every aggregator there is, over two rounds, so that what a server optimiser remembers is part of it."""
    tokens = [rig.client(f"site-{place}")[1] for place in range(CLIENTS)]
    seed = rig.model(numbers(7))
    one = combiner_here("c1")
    wires = connected(rig, [one], tokens)
    first = {
        name: trained(rig, seed, wires, order=1, aggregator=name, deterministic=True)[1]
        for name in AGGREGATORS
    }
    wires = connected(rig, [one, combiner_here("c2"), combiner_here("c3")], tokens)
    for name, sha256 in first.items():
        session, again = trained(rig, seed, wires, order=2, aggregator=name, deterministic=True)
        shares = CombinerShare.objects.filter(round__session=session, round__number=1)
        assert shares.count() == 3 and all(share.collected for share in shares)
        assert again == sha256, name
    assert len(set(first.values())) > len(first) / 2, "aggregators differ from each other"


def test_without_it_the_order_of_arrival_shows(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """What the test above would miss if its numbers could not tell."""
    tokens = [rig.client(f"site-{place}")[1] for place in range(CLIENTS)]
    seed = rig.model(numbers(7))
    wires = connected(rig, [combiner_here("c1")], tokens)
    found = {trained(rig, seed, wires, order=order)[1] for order in range(3)}
    assert len(found) > 1


def test_a_client_that_was_named_last_counts_where_its_id_says(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """The order is that of the clients' ids, which their names and connections do not change."""
    tokens = [rig.client(f"site-{place}")[1] for place in range(3)]
    seed = rig.model(numbers(7))
    one = combiner_here("c1")
    _, before = trained(rig, seed, connected(rig, [one], tokens), order=1, deterministic=True)
    for place, row in enumerate(Client.objects.order_by("id")):
        row.name = f"renamed-{9 - place}"
        row.save(update_fields=["name"])
    _, after = trained(rig, seed, connected(rig, [one], tokens), order=3, deterministic=True)
    assert after == before
