"""Every aggregator trains the digits example: its own model, data and training, through real rounds.

A combiner and a worker run in this process; seven clients each hold a part of the images that no other has.
"""

from __future__ import annotations

import itertools
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from examples.digits.client import data as digits_data
from examples.digits.client import model as digits_model
from federation.aggregation.aggregators import AGGREGATORS
from federation.sessions.config import parse_spec
from federation.sessions.models import Assignment, Session
from foundation.errors import StudioError
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.wire_client import ACCEPTED, WireClient

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]

CLIENTS, ROUNDS = 7, 4
# Where the default is for models larger than this one, or rounds more than these.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "fedadam": {"learning_rate": 0.05},
    "fedyogi": {"learning_rate": 0.05},
    "fedadagrad": {"learning_rate": 0.1},
    "fedopt": {"learning_rate": 0.05},
    "normclip": {"max_norm": 3.0},
}

Images = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def train() -> Iterator[Callable[..., Any]]:
    """The example's own training, as a client imports it: with its folder on the path."""
    folder = str(Path(digits_model.__file__).parent)
    mine = {"data", "model", "train"}
    before: dict[str, ModuleType] = {name: sys.modules.pop(name) for name in mine if name in sys.modules}
    sys.path.insert(0, folder)
    try:
        from train import train as trained

        yield trained
    finally:
        sys.path.remove(folder)
        for name in mine:
            sys.modules.pop(name, None)
        sys.modules.update(before)


@pytest.fixture(scope="module")
def images() -> tuple[list[Images], Images]:
    """(each client's, those that nobody trains on)."""
    x, y = digits_data.digits()
    clients, test = digits_data.split(CLIENTS)
    return [(x[rows], y[rows]) for rows in clients], (x[test], y[test])


def take_part(
    wires: list[WireClient], images: list[Images], train: Callable[..., Any], trainings: int
) -> None:
    """The clients do so many trainings, one after the other in turn."""
    for wire, (x, y) in itertools.islice(itertools.cycle(zip(wires, images, strict=True)), trainings):
        task = wire.next_task()
        received = {name: np.array(array) for name, array in wire.arrays(task).items()}
        update, metadata = train(received, x, y, json.loads(task.settings_json or "{}"))
        receipt = wire.upload(task, update, num_examples=metadata["num_examples"], metadata=metadata)
        assert receipt.status == ACCEPTED, receipt.reason


def accuracy(rig: Rig, session: Session, test: Images) -> float:
    return digits_model.measure(rig.arrays_of(session.current_model), *test)["accuracy"]


def trained_session(
    rig: Rig, combiner: CombinerHere, images: list[Images], train: Callable[..., Any], **settings: Any
) -> Session:
    wires = [rig.connect(combiner, rig.client(f"site-{number}")[1]) for number in range(len(images))]
    session = rig.session(
        seed=rig.model(digits_model.seed()),
        rounds=ROUNDS,
        min_clients=1 if "asynchronous" in settings else len(images),
        client_settings={"epochs": 2, "learning_rate": 0.05},
        **settings,
    )
    take_part(wires, images, train, ROUNDS * (len(images) if "asynchronous" not in settings else 5))
    return rig.until_session(session, "finished", "failed")


MODES: dict[str, dict[str, Any]] = {
    "synchronous": {},
    "deterministic": {"deterministic": True},
    "asynchronous": {"asynchronous": {"buffer_size": 5}},
    "private": {"privacy": {"clip_norm": 3.0, "noise_multiplier": 0.02, "expected_clients": CLIENTS}},
}


def goes_with(aggregator: str, mode: str) -> bool:
    """Whether a session of this aggregator takes the mode; what it refuses is tested where it is refused."""
    if mode in ("deterministic", "asynchronous") and AGGREGATORS[aggregator].collects:
        return False  # they read updates in order as it is, and compare only such as answer the same model
    least = 1 if mode == "asynchronous" else CLIENTS
    try:
        parse_spec(
            {"seed_model": str(uuid.uuid4()), "min_clients": least, "aggregator": aggregator, **MODES[mode]}
        )
    except StudioError:
        return False
    return True


CASES = [(name, mode) for name in AGGREGATORS for mode in MODES if goes_with(name, mode)]


def test_every_mode_is_taken_by_most_of_the_aggregators() -> None:
    taken = {mode: sum(1 for _, one in CASES if one == mode) for mode in MODES}
    assert taken["synchronous"] == len(AGGREGATORS)
    assert min(taken.values()) >= 7, taken


@pytest.mark.parametrize(("aggregator", "mode"), CASES)
def test_every_aggregator_trains_the_digits_example(
    rig: Rig,
    combiner: CombinerHere,
    worker: WorkerHere,
    train: Callable[..., Any],
    images: tuple[list[Images], Images],
    aggregator: str,
    mode: str,
) -> None:
    own, test = images
    session = trained_session(
        rig, combiner, own, train, aggregator=aggregator,
        aggregator_kwargs=ARGUMENTS.get(aggregator, {}), **MODES[mode],
    )  # fmt: skip
    assert session.status == "finished", session.reason
    before = digits_model.measure(digits_model.seed(), *test)["accuracy"]
    assert before < 0.2
    assert accuracy(rig, session, test) > (0.4 if mode == "asynchronous" else 0.7)
    assert session.trail.count() == ROUNDS
    accepted = Assignment.objects.filter(status="accepted")
    assert all(weight and weight > 0 for weight in accepted.values_list("weight", flat=True))
