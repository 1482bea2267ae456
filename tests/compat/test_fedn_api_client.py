"""Every public method of the published `APIClient`, called once against a project in which a published client trained.

The methods are enumerated from the wheel: one without a check here fails.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compat.environments import Environment
from tests.compat.outcomes import Outcomes
from tests.compat.wheels import enumerated
from tests.compat.world import Site, World, assert_equal_layers, expected, layers_in

pytestmark = [pytest.mark.once, pytest.mark.slow]

ROUNDS = 2
STEP, EXAMPLES = 2.0, 5

SET_UP = """
result = {
    "set_active_package": client.set_active_package(
        given["package"], helper="numpyhelper", name="mine", description="d"
    ),
    "set_active_model": client.set_active_model(given["seed"]),
}
"""

CALLS = """
import time

said = {}

def call(method, *arguments, **named):
    said[method] = getattr(client, method)(*arguments, **named)
    return said[method]

def until(condition):
    deadline = time.monotonic() + 40
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)

session_id = call("start_session", name="first", rounds=given["rounds"], round_timeout=30)["session_id"]
until(lambda: call("session_is_finished", session_id))
call("get_session_status", session_id)
until(lambda: client.get_validations(session_id=session_id)["count"] >= given["rounds"])
call("get_session", id=session_id)
call("get_sessions", n_max=5, name="first")
call("get_sessions_count")
call("get_rounds", n_max=5)
call("get_rounds_count")
call("get_round", id=said["get_rounds"]["result"][0]["round_id"])
call("get_models", session_id=session_id)
call("get_models_count")
call("get_active_model")
active = said["get_active_model"]["model_id"]
call("get_model", id=active)
call("get_model_trail")
call("download_model", active, given["model"])
call("get_clients", n_max=5)
call("get_clients_count")
call("get_active_clients", n_max=5)
client_id = said["get_clients"]["result"][0]["client_id"]
call("get_client", id=client_id)
call("get_client_config", checksum=True)
call("get_combiners", n_max=5)
call("get_combiners_count")
call("get_combiner", id=said["get_combiners"]["result"][0]["combiner_id"])
call("get_controller_status")
call("get_packages", n_max=5)
call("get_packages_count")
call("get_package", id=said["get_packages"]["result"][0]["package_id"])
call("get_active_package")
call("get_package_checksum")
call("download_package", given["target"])
call("get_statuses", session_id=session_id, n_max=100)
call("get_statuses_count")
call("get_status", id=said["get_statuses"]["result"][0]["status_id"])
call("get_validations", session_id=session_id, model_id=active, sender_name=given["name"], sender_role="CLIENT",
     receiver_role="COMBINER", n_max=5)
call("get_validations_count")
call("get_validation", id=said["get_validations"]["result"][0]["validation_id"])
attribute = {"key": "charging", "value": "true", "sender": {"name": "", "role": "", "client_id": client_id}}
call("add_attributes", attribute)
call("get_current_attributes", [client_id])
call("start_predictions", prediction_id="p1", model_id=active)
until(lambda: client.get_predictions(model_id=active)["count"] >= 1)
call("get_predictions", model_id=active, sender_name=given["name"], n_max=5)
call("start_splitlearning_session", name="split", model_id=active)
call("continue_session", session_id, rounds=1, round_timeout=30)
result = said
"""


@pytest.fixture(scope="module")
def site(fedn_environment: Environment, world: World) -> Site:
    return world.site("Methods")


@pytest.fixture(scope="module")
def package(site: Site) -> Path:
    return site.archive()


@pytest.fixture(scope="module")
def said(site: Site, package: Path) -> dict[str, Any]:
    """What every method answered."""
    set_up: dict[str, Any] = site.api_client(SET_UP, package=str(package), seed=str(site.seed_file()))
    site.fedn_client("north", STEP, EXAMPLES)
    site.until_online("north")
    target = site.folder
    called: dict[str, Any] = site.api_client(
        CALLS, rounds=ROUNDS, name="north", model=str(target / "model.npz"), target=str(target / "package.back"),
        timeout=90,
    )  # fmt: skip
    return {"__init__": True, **set_up, **called}


Check = Callable[[Any, dict[str, Any], Site], object]
CHECKS: dict[str, Check] = {}


def check(*methods: str) -> Callable[[Check], Check]:
    def keep(function: Check) -> Check:
        CHECKS.update(dict.fromkeys(methods, function))
        return function

    return keep


def same_as_listed(method: str, found: Any, said: dict[str, Any]) -> None:
    """An object got by its id is the one that the list holds, but for what time changes."""
    plural = {"get_status": "get_statuses"}.get(method, f"{method}s")
    changing = ("last_seen", "updated_at", "active_clients")
    listed = {key: value for key, value in said[plural]["result"][0].items() if key not in changing}
    assert {key: value for key, value in found.items() if key not in changing} == listed


@check("__init__")
def _constructed(found: Any, said: dict[str, Any], site: Site) -> None:
    assert len(said) > 40, "it was made, or nothing else had been said"


@check("set_active_package")
def _package_set(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == {"message": "Package uploaded"}


@check("set_active_model")
def _model_set(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == {"success": True, "message": "Model added successfully"}


@check("start_session")
def _started(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == {"message": "Session started", "session_id": said["get_session"]["session_id"]}


@check("session_is_finished")
def _finished(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found is True


@check("get_session_status")
def _status(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == "Finished"


@check("get_session")
def _session(found: Any, said: dict[str, Any], site: Site) -> None:
    config = found["session_config"]
    assert (found["name"], found["status"], config["rounds"], config["round_timeout"]) == (
        "first",
        "Finished",
        ROUNDS,
        30,
    )
    assert (config["aggregator"], config["helper_type"], config["requested_clients"]) == (
        "fedavg",
        "numpyhelper",
        8,
    )
    assert found["seed_model_id"] == config["model_id"]


@check("get_sessions")
def _sessions(found: Any, said: dict[str, Any], site: Site) -> None:
    assert (found["count"], found["result"]) == (1, [said["get_session"]])


@check("get_rounds")
def _rounds(found: Any, said: dict[str, Any], site: Site) -> None:
    assert [row["round_id"] for row in found["result"]] == ["2", "1"]
    for row in found["result"]:
        assert row["status"] == "Finished"
        [combiner] = row["combiners"]
        assert combiner["status"] == "Success"
        assert combiner["data"]["aggregation_time"]["nr_aggregated_models"] == 1
        assert row["round_config"]["session_id"] == said["get_session"]["session_id"]
        assert row["round_data"]["reduce"].keys() == {
            "time_fetch_model",
            "time_load_model",
            "time_aggregate_model",
        }


@check("get_models")
def _models(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found["count"] == len(found["result"]) == ROUNDS, "the session's own, without its seed"
    for row in found["result"]:
        assert row["model"] == row["model_id"]
        assert row["session_id"] == said["get_session"]["session_id"]


@check("get_active_model")
def _active_model(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == said["get_models"]["result"][0]


@check("get_model")
def _model(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == said["get_active_model"]


@check("get_model_trail")
def _trail(found: Any, said: dict[str, Any], site: Site) -> None:
    assert len(found) == ROUNDS + 1
    assert found[0]["model_id"] == said["get_session"]["seed_model_id"]
    assert [row["parent_model"] for row in found] == [None, *(row["model_id"] for row in found[:-1])]


@check("download_model")
def _model_taken(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == {"success": True, "message": "Model downloaded successfully."}
    assert_equal_layers(layers_in(site.folder / "model.npz"), expected(ROUNDS, (STEP, EXAMPLES)))


@check("get_clients", "get_active_clients")
def _clients(found: Any, said: dict[str, Any], site: Site) -> None:
    [row] = found["result"]
    assert (found["count"], row["name"], row["status"]) == (1, "north", "online")
    assert row["combiner"] == said["get_combiners"]["result"][0]["name"]
    assert row["last_seen"].endswith("GMT")


@check("get_client", "get_combiner", "get_package", "get_status", "get_validation", "get_round")
def _got(found: Any, said: dict[str, Any], site: Site) -> None:
    method = next(name for name in CHECKS if name.startswith("get_") and said.get(name) is found)
    same_as_listed(method, found, said)


@check("get_client_config")
def _client_config(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found["network_id"] == site.slug
    assert found["discover_host"] == f"{site.url}/{site.reducer}"
    assert found["checksum"] == said["get_package_checksum"]["checksum"]


@check("get_combiners")
def _combiners(found: Any, said: dict[str, Any], site: Site) -> None:
    [row] = found["result"]
    assert (row["address"], row["fqdn"], row["active_clients"]) == ("127.0.0.1", "", 1)
    assert isinstance(row["port"], int)


@check("get_controller_status")
def _controller(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == {"state": "idle"}


@check("get_packages")
def _packages(found: Any, said: dict[str, Any], site: Site) -> None:
    [row] = found["result"]
    assert (row["name"], row["description"], row["helper"], row["active"]) == (
        "mine",
        "d",
        "numpyhelper",
        True,
    )


@check("get_active_package")
def _active_package(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == said["get_packages"]["result"][0]


@check("get_package_checksum")
def _checksum(found: Any, said: dict[str, Any], site: Site) -> None:
    sent = hashlib.sha256((site.folder / "package.back").read_bytes()).hexdigest()
    assert found == {"message": "Checksum created.", "checksum": sent}


@check("download_package")
def _package_taken(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == {"success": True, "message": "Package downloaded successfully."}
    sent = [path.read_bytes() for path in site.folder.glob("command-*.tgz")]
    assert (site.folder / "package.back").read_bytes() in sent


@check("get_statuses")
def _statuses(found: Any, said: dict[str, Any], site: Site) -> None:
    assert {row["session_id"] for row in found["result"]} == {said["get_session"]["session_id"]}
    assert {"MODEL_UPDATE_REQUEST", "MODEL_UPDATE", "LOG"} <= {row["type"] for row in found["result"]}
    assert all(row["log_level"] in ("DEBUG", "INFO", "WARNING", "ERROR") for row in found["result"])
    assert all(isinstance(json.loads(row["data"]), dict) for row in found["result"])


@check("get_validations")
def _validations(found: Any, said: dict[str, Any], site: Site) -> None:
    [row] = found["result"]
    assert row["model_id"] == said["get_active_model"]["model_id"]
    assert row["sender"]["name"] == "north"
    assert json.loads(row["data"])["step"] == STEP


@check(*(f"get_{noun}_count" for noun in
         ("clients", "combiners", "models", "packages", "rounds", "sessions", "statuses", "validations")))  # fmt: skip
def _counts(found: Any, said: dict[str, Any], site: Site) -> None:
    assert isinstance(found, int)
    assert found >= 1


@check("add_attributes")
def _attribute(found: Any, said: dict[str, Any], site: Site) -> None:
    assert (found["key"], found["value"], found["sender"]["name"]) == ("charging", "true", "north")


@check("get_current_attributes")
def _attributes(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found[said["get_client"]["client_id"]]["charging"] == "true"


@check("start_predictions")
def _predict(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == {"message": "Prediction session started"}


@check("get_predictions")
def _predictions(found: Any, said: dict[str, Any], site: Site) -> None:
    [row] = found["result"]
    assert (found["count"], row["prediction_id"], row["sender"]["name"]) == (1, "p1", "north")
    assert row["model_id"] == said["get_active_model"]["model_id"]
    total = float(sum(layer.sum() for layer in expected(ROUNDS, (STEP, EXAMPLES))))
    assert json.loads(row["data"])["prediction"] == pytest.approx(total, rel=1e-5)


@check("start_splitlearning_session")
def _split(found: Any, said: dict[str, Any], site: Site) -> None:
    assert "not offered" in found["message"]
    kept = site.api.session(site.slug, found["session_id"])
    assert (kept["name"], kept["status"]) == ("split", "created")


@check("continue_session")
def _continued(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == {"message": "Session started"}
    session = site.until_session(said["start_session"]["session_id"])
    assert (session["status"], session["rounds_done"]) == ("finished", ROUNDS + 1)


def test_every_method_of_the_wheel_has_a_check(fedn_environment: Environment, tmp_path: Path) -> None:
    methods = set(enumerated("fedn", tmp_path)["methods"])
    assert methods == set(CHECKS), f"without a check: {sorted(methods - set(CHECKS))}"


@pytest.mark.parametrize("method", CHECKS)
def test_method(method: str, said: dict[str, Any], site: Site, outcomes: Outcomes) -> None:
    CHECKS[method](said[method], said, site)
    outcomes.answered("fedn", "methods", method, said[method])


def test_the_counts_are_those_of_the_lists(said: dict[str, Any]) -> None:
    for noun in ("clients", "combiners", "packages", "rounds", "sessions"):
        assert said[f"get_{noun}_count"] == said[f"get_{noun}"]["count"], noun
    assert said["get_models_count"] == len(said["get_model_trail"])
