"""Every public method of Scaleout's Python API, called once against a project in which a published client trained.

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
    try:
        said[method] = getattr(client, method)(*arguments, **named)
    except Exception as error:
        said[method] = {"raised": f"{type(error).__name__}: {error}"}
    return said[method]

def until(condition):
    deadline = time.monotonic() + 40
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)

def outcome(started):
    # a command's own row once it is over, with those of its clients
    found = {}
    def over():
        found.update(client.get_command(id=started["correlation_id"]))
        return found.get("status") not in ("CREATED", "PENDING", "NEW", "RUNNING")
    until(over)
    return [found, client.get_commands(parent_correlation_id=started["correlation_id"])]

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
active = call("get_active_model")["model_id"]
call("get_model", id=active)
call("get_model_trail")
call("download_model", active, given["model"])
call("get_clients", n_max=5)
call("get_clients_count", only_active=True)
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
call("get_validations", session_id=session_id, model_id=active, sender_client_id=client_id, n_max=5)
call("get_validations_count", session_id=session_id)
call("get_validation", id=said["get_validations"]["result"][0]["validation_id"])
until(lambda: client.get_metrics(session_id=session_id, key="training_step")["count"] >= given["rounds"])
call("get_metrics", session_id=session_id, key="training_step", sender_client_id=client_id, n_max=5)
call("get_metrics_count", session_id=session_id)
call("add_attributes", {"key": "charging", "value": "true", "entity_id": client_id})
call("get_current_attributes", [client_id])
call("get_attribute_trail", client_id)
by_hand = {"type": "MODEL_UPDATE", "log_level": "INFO", "status": "by hand", "sender": {"client_id": client_id}}
call("add_status", by_hand)
call("run_custom_command", "echo", synchronous=True, timeout=20, client_ids=[client_id], parameters={"x": 1})
echoed = outcome(said["run_custom_command"])
call("get_commands", n_max=50)
call("get_commands_count")
call("get_commands_roots", n_max=50)
call("get_command", id=said["get_commands"]["result"][0]["correlation_id"])
call("start_validation", session_id, active)
call("stage_model", active, client_ids=[client_id])
call("start_inference", active, synchronous=True, timeout=20, client_ids=[client_id], parameters={"x": 2})
inferred = outcome(said["start_inference"])
call("step_command", said["get_commands"]["result"][0]["correlation_id"])
call("stop_command", said["get_commands"]["result"][0]["correlation_id"])
call("step_current_command")
call("continue_session", session_id, rounds=50, round_timeout=30)
call("stop_current_command")
until(lambda: client.get_session_status(session_id) not in ("Started", "Created"))
call("set_public_hostname", said["get_combiners"]["result"][0]["combiner_id"], "gate.example.org")
renamed = client.get_combiners()
stopped = client.get_session_status(session_id)
result = {"said": said, "echoed": echoed, "inferred": inferred, "renamed": renamed, "stopped": stopped}
"""


@pytest.fixture(scope="module")
def site(scaleout_environment: Environment, world: World) -> Site:
    return world.site("Scaleout methods")


@pytest.fixture(scope="module")
def said(site: Site) -> dict[str, Any]:
    """What every method answered."""
    set_up: dict[str, Any] = site.scaleout_api(
        SET_UP, package=str(site.archive("importer")), seed=str(site.seed_file())
    )
    site.scaleout_client("north", STEP, EXAMPLES)
    site.until_online("north")
    called: dict[str, Any] = site.scaleout_api(
        CALLS, rounds=ROUNDS, model=str(site.folder / "model.npz"), target=str(site.folder / "package.back"),
        timeout=110,
    )  # fmt: skip
    return {"__init__": {}, **set_up, **called.pop("said"), **called}


Check = Callable[[Any, dict[str, Any], Site], object]
CHECKS: dict[str, Check] = {}


def check(*methods: str) -> Callable[[Check], Check]:
    def keep(function: Check) -> Check:
        CHECKS.update(dict.fromkeys(methods, function))
        return function

    return keep


@check("__init__")
def _constructed(found: Any, said: dict[str, Any], site: Site) -> None:
    assert len(said) > 50, "it was made, or nothing else had been said"


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
    assert (found["name"], found["status"], config["rounds"]) == ("first", "Finished", ROUNDS)


@check("get_sessions", "get_rounds", "get_models", "get_clients", "get_active_clients", "get_combiners",
       "get_packages", "get_statuses", "get_validations", "get_metrics", "get_commands", "get_commands_roots",
       "get_attribute_trail")  # fmt: skip
def _lists(found: Any, said: dict[str, Any], site: Site) -> None:
    assert list(found)[:2] == ["count", "result"], found
    assert found["count"] >= 1
    assert found["result"]


@check("get_sessions_count", "get_rounds_count", "get_models_count", "get_clients_count", "get_combiners_count",
       "get_packages_count", "get_statuses_count", "get_validations_count", "get_metrics_count",
       "get_commands_count")  # fmt: skip
def _counts(found: Any, said: dict[str, Any], site: Site) -> None:
    assert isinstance(found, int)
    assert found >= 1


@check("get_round", "get_model", "get_client", "get_combiner", "get_package", "get_status", "get_validation",
       "get_command")  # fmt: skip
def _one(found: Any, said: dict[str, Any], site: Site) -> None:
    [method] = [name for name in CHECKS if said.get(name) is found]
    noun = method.removeprefix("get_")
    plural = {"status": "get_statuses", "model": "get_models"}.get(noun, f"get_{noun}s")
    identity = {"command": "correlation_id"}.get(noun, f"{noun}_id")
    assert found[identity] == said[plural]["result"][0][identity]


@check("get_active_model")
def _active_model(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found["model_id"] == said["get_model"]["model_id"]


@check("get_model_trail")
def _trail(found: Any, said: dict[str, Any], site: Site) -> None:
    assert len(found) == ROUNDS + 1
    assert found[0]["model_id"] == said["get_session"]["seed_model_id"]


@check("download_model")
def _model_taken(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == {"success": True, "message": "Model downloaded successfully."}
    assert_equal_layers(layers_in(site.folder / "model.npz"), expected(ROUNDS, (STEP, EXAMPLES)))


@check("get_client_config")
def _client_config(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found["network_id"] == site.slug
    assert found["checksum"] == said["get_package_checksum"]["checksum"]


@check("get_controller_status")
def _controller(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == {"state": "idle"}


@check("get_active_package")
def _active_package(found: Any, said: dict[str, Any], site: Site) -> None:
    assert (found["name"], found["description"], found["active"]) == ("mine", "d", True)


@check("get_package_checksum")
def _checksum(found: Any, said: dict[str, Any], site: Site) -> None:
    sent = hashlib.sha256((site.folder / "package.back").read_bytes()).hexdigest()
    assert found["checksum"] == sent


@check("download_package")
def _package_taken(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == {"success": True, "message": "Package downloaded successfully."}
    [sent] = site.folder.glob("importer-*.tar.gz")
    assert (site.folder / "package.back").read_bytes() == sent.read_bytes()


@check("add_attributes")
def _attribute(found: Any, said: dict[str, Any], site: Site) -> None:
    assert (found["key"], found["value"]) == ("charging", "true")


@check("get_current_attributes")
def _attributes(found: Any, said: dict[str, Any], site: Site) -> None:
    held = found[said["get_client"]["client_id"]]
    assert (held["charging"], held["step"]) == ("true", str(STEP))


@check("add_status")
def _status_kept(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found["status"] == "by hand"


@check("run_custom_command")
def _echoed(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found["message"] == "Command started"
    assert _within(said["echoed"], "echo") == {"x": 1}, said["echoed"]


@check("start_inference")
def _inferred(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found["message"] == "Inference started"
    command = said["inferred"][0]
    assert (command["status"], command["done"]) == ("COMPLETED", True)
    [event] = [row for row in site.api.events(site.slug) if row["kind"] == "inference.result"]
    total = float(sum(layer.sum() for layer in expected(ROUNDS, (STEP, EXAMPLES))))
    assert _within(event, "prediction") == pytest.approx(total)
    assert _within(event, "parameters") == {"x": 2}


def _within(answer: Any, key: str) -> Any:
    """The value of a key, however deep it lies; JSON in strings is opened."""
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except ValueError:
            return None
    if isinstance(answer, dict):
        if key in answer:
            return answer[key]
        answer = list(answer.values())
    if isinstance(answer, list):
        return next((found for part in answer if (found := _within(part, key)) is not None), None)
    return None


@check("start_validation", "stage_model", "step_command", "stop_command", "step_current_command")
def _said_so(found: Any, said: dict[str, Any], site: Site) -> None:
    assert "raised" not in found
    assert found["message"]


@check("stop_current_command")
def _stopped(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found["message"]
    assert said["stopped"] == "Terminated"


@check("continue_session")
def _continued(found: Any, said: dict[str, Any], site: Site) -> None:
    assert found == {"message": "Session started"}


@check("set_public_hostname")
def _hostname(found: Any, said: dict[str, Any], site: Site) -> None:
    assert "raised" not in found, found
    assert "gate.example.org" in json.dumps(said["renamed"])


def test_every_method_of_the_wheel_has_a_check(scaleout_environment: Environment, tmp_path: Path) -> None:
    methods = set(enumerated("scaleout", tmp_path)["methods"])
    assert methods == set(CHECKS), f"without a check: {sorted(methods - set(CHECKS))}"


@pytest.mark.parametrize("method", CHECKS)
def test_method(method: str, said: dict[str, Any], site: Site, outcomes: Outcomes) -> None:
    CHECKS[method](said[method], said, site)
    outcomes.answered("scaleout", "methods", method, said[method])
