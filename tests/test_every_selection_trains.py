"""Every way of choosing clients trains the digits example, with clients that say over the wire what they are and how
much their samples hurt."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clients_app.models import Client
from examples.digits.client import model as digits_model
from federation.dialects.native import studio_v1_pb2 as wire_words
from federation.sessions.models import Assignment, Round, SelectionScore, Session
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.test_every_aggregator_trains import CLIENTS, Images, accuracy, images, train
from tests.wire_client import WireClient

__all__ = ["images", "train"]  # fixtures

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]

ROUNDS = 8
WAYS: dict[str, dict[str, Any]] = {
    "where": {"selection": {"where": "half=even and gpu>=1 or tag:lab"}, "min_clients": 4},
    "fraction": {"selection": {"fraction": 0.5, "seed": 1}},
    "poisson": {"selection": {"strategy": "poisson", "fraction": 0.6}, "min_clients": 2},
    "guided": {"selection": {"strategy": "guided", "over_commitment": 1.3}, "requested_clients": 3},
    "guided, asynchronous": {
        "selection": {"strategy": "guided"},
        "asynchronous": {"buffer_size": 3, "concurrency": 4},
    },
}


def answer_while_asked(
    wire: WireClient,
    own: Images,
    train: Callable[..., Any],
    over: threading.Event,
) -> None:
    """Train whenever that is asked; what comes too late may be refused."""
    while not over.is_set():
        try:
            task = wire.next_task(timeout=1.0)
        except AssertionError:
            continue
        received = {name: np.array(array) for name, array in wire.arrays(task).items()}
        update, metadata = train(received, *own, json.loads(task.settings_json or "{}"))
        wire.upload(task, update, num_examples=metadata["num_examples"], metadata=metadata)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_choosing_clients_trains_the_digits_example(
    rig: Rig,
    combiner: CombinerHere,
    worker: WorkerHere,
    train: Callable[..., Any],
    images: tuple[list[Images], Images],
    way: str,
) -> None:
    own, test = images
    wires = [rig.connect(combiner, rig.client(f"site-{number}")[1]) for number in range(CLIENTS)]
    for number, one in enumerate(wires):
        said = {"half": ["even", "odd"][number % 2], "gpu": number % 3, "tags": ["lab"] if number < 3 else []}
        one.say(attributes=wire_words.Attributes(attributes_json=json.dumps(said)))
    rig.wait_until(lambda: Client.objects.filter(attributes__has_key="tags").count() == CLIENTS)
    over = threading.Event()
    threads = [
        threading.Thread(target=answer_while_asked, args=(one, mine, train, over), daemon=True)
        for one, mine in zip(wires, own, strict=True)
    ]
    for thread in threads:
        thread.start()
    session = rig.session(
        seed=rig.model(digits_model.seed()),
        rounds=ROUNDS,
        client_settings={"epochs": 2, "learning_rate": 0.05},
        **WAYS[way],
    )
    rig.until_session(session, "finished", "failed", timeout=60)
    over.set()
    for thread in threads:
        thread.join(20)
    assert session.status == "finished", session.reason
    assert accuracy(rig, session, test) > 0.6
    assert not Assignment.objects.filter(why="").exists()
    check(session, way)


def check(session: Session, way: str) -> None:
    rounds = Round.objects.filter(session=session, status="finished").order_by("id")
    plans = [plan["selection"] for plan in rounds.values_list("plan", flat=True)]
    trains = Assignment.objects.filter(round__session=session, kind="train")
    if way == "where":
        fit = {"site-0", "site-1", "site-2", "site-4"}
        assert set(trains.values_list("client__name", flat=True)) == fit
        assert {plan["eligible"] for plan in plans} == {4}
    elif way == "fraction":
        assert {plan["chosen"] for plan in plans} == {4}
    elif way == "poisson":
        assert {plan["probability"] for plan in plans} == {0.6} and min(plan["chosen"] for plan in plans) >= 2
    else:
        known = SelectionScore.objects.filter(session=session, utility__gt=0, duration_s__gt=0)
        assert known.count() >= 4
        assert plans[0]["known"] == 0 < plans[-1]["known"]
        assert all(why.startswith("guided: ") for why in trains.values_list("why", flat=True))
