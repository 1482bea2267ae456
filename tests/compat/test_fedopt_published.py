"""A FedOpt session comes to the models of FEDn's published aggregator, which runs in its own environment here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.sessions import engine
from projects.models import Project, User
from tests.compat.environments import Environment
from tests.compat.runners import run_in
from tests.rounds.rows import Rows

pytestmark = [pytest.mark.once, pytest.mark.django_db]

ROUNDS, CLIENTS = 4, 3
EXAMPLES = [[10, 350, 42], [7, 1, 1], [100, 100, 100], [3, 1200, 64]]
SHAPES = {"conv.weight": (4, 3, 3), "conv.bias": (4,), "head/kernel": (36, 10), "scale": (), "wide": (5,)}
WIDTHS = {name: np.float64 if name == "wide" else np.float32 for name in SHAPES}
ARGUMENTS: list[dict[str, Any] | None] = [
    None,  # what it takes by itself
    {"serveropt": "yogi"},
    {"serveropt": "adagrad"},
    {"serveropt": "adam", "learning_rate": 0.05, "beta1": 0.5, "beta2": 0.9, "tau": 0.01},
    {"serveropt": "yogi", "learning_rate": 0.05, "beta1": 0.0, "beta2": 0.7, "tau": 0.01},
    {"serveropt": "adagrad", "learning_rate": 0.05, "beta1": 0.8, "tau": 0.01},
]

# The update handler stands where FEDn's combiner would: it hands out updates and the model they answer.
PUBLISHED = """
import json, queue, sys
from types import SimpleNamespace
import numpy as np
from fedn.network.combiner.aggregators.aggregatorbase import get_aggregator
from fedn.utils.helpers.helpers import get_helper
from fedn.utils.parameters import Parameters

folder, helper = sys.argv[1], get_helper("numpyhelper")
plan = json.load(open(f"{folder}/plan.json"))


class Handler:
    def __init__(self):
        self.model, self.model_updates = helper.load(f"{folder}/seed.npz"), queue.Queue()

    def next_model_update(self):
        return self.model_updates.get()

    def load_model_update(self, update, helper):
        return helper.load(f"{folder}/{update.model_update_id}.npz"), {"num_examples": update.num_examples}

    def load_model(self, helper, model_id):
        return self.model


for number, arguments in enumerate(plan["arguments"]):
    handler = Handler()
    aggregator = get_aggregator("fedopt", handler)
    for round_, examples in enumerate(plan["examples"]):
        for client, count in enumerate(examples):
            handler.model_updates.put(SimpleNamespace(
                model_id="current", model_update_id=f"update-{round_}-{client}", num_examples=count))
        model, data = aggregator.combine_models(
            helper=helper, delete_models=False, parameters=Parameters(arguments) if arguments else None)
        assert data["nr_aggregated_models"] == len(examples)
        handler.model = model
        helper.save(model, f"{folder}/published-{number}-{round_}.npz")
print(json.dumps("done"))
"""


def drawn(seed: int, spread: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.normal(size=shape) * spread).astype(WIDTHS[name])
        for name, shape in SHAPES.items()
    }


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **{str(place): array for place, array in enumerate(arrays.values())})


@pytest.fixture(scope="module")
def published(fedn_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the seed, the updates, and what FEDn made of them, round by round."""
    folder = tmp_path_factory.mktemp("fedopt")
    save(folder / "seed.npz", drawn(0, 1.0))
    for round_ in range(ROUNDS):
        for client in range(CLIENTS):
            save(folder / f"update-{round_}-{client}.npz", update(round_, client))
    (folder / "plan.json").write_text(json.dumps({"examples": EXAMPLES, "arguments": ARGUMENTS}))
    assert run_in("fedn", PUBLISHED, str(folder), home=folder / "home") == "done"
    return folder


def update(round_: int, client: int) -> dict[str, np.ndarray]:
    """Near the seed, and further off with each round: gradients of many sizes, some of them tiny."""
    moved = drawn(1 + round_ * CLIENTS + client, 10.0 ** (round_ - 3))
    return {name: array + moved[name] for name, array in drawn(0, 1.0).items()}


@pytest.mark.parametrize("number", range(len(ARGUMENTS)))
def test_every_round_of_a_fedopt_session_equals_the_published_aggregators(
    number: int, published: Path, project: Project, owner: User, tmp_path: Path, wait_until: Any
) -> None:
    rows = Rows(project, owner, tmp_path, wait_until)
    leases = [rows.lease("c1"), rows.lease("c2")]  # FEDn's has one; ours come to the same with two
    homes = [leases[0], leases[1], leases[1]]
    clients = [rows.online(lease, f"site-{n}")[0] for n, lease in enumerate(homes)]
    session = rows.running(
        seed=rows.model(drawn(0, 1.0)), rounds=ROUNDS, min_clients=CLIENTS,
        aggregator="fedopt", aggregator_kwargs=ARGUMENTS[number],
    )  # fmt: skip
    for round_, examples in enumerate(EXAMPLES):
        for client, (row, lease) in enumerate(zip(clients, homes, strict=True)):
            task = rows.task(session, row)
            (verdict,) = rows.accept(lease, task, arrays=update(round_, client), examples=examples[client])
            assert verdict.accepted
        for lease in leases:
            assert rows.finish_share(lease) == [True]
        rows.reduce(session)
        engine.advance(session.pk)
        session.refresh_from_db()
        assert session.rounds_done == round_ + 1
        found = rows.arrays_of(session.current_model)
        with np.load(published / f"published-{number}-{round_}.npz") as wanted:
            for place, (name, shape) in enumerate(SHAPES.items()):
                assert found[name].shape == shape and found[name].dtype == WIDTHS[name]
                np.testing.assert_allclose(
                    found[name], wanted[str(place)], rtol=1e-6, atol=1e-6, err_msg=name
                )
    assert session.status == "finished"
