"""The published wheels, read by code: what they offer, and that our wire contracts are theirs to the last field."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.compat.environments import Environment
from tests.compat.wheels import enumerated, on_the_wire

OURS = {
    "fedn": "federation.dialects.fedn.fedn_pb2",
    "scaleout": "federation.dialects.scaleout.scaleout_pb2",
}


@pytest.fixture(scope="module")
def wheels(
    fedn_environment: Environment, scaleout_environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    home: Path = tmp_path_factory.mktemp("wheels")
    return {name: enumerated(name, home / name) for name in OURS}


def test_every_public_method_command_and_rpc_is_found(wheels: dict[str, dict[str, Any]]) -> None:
    counted = {
        name: {what: len(wheel[what]) for what in ("methods", "commands", "rpcs")}
        for name, wheel in wheels.items()
    }
    assert counted == {
        "fedn": {"methods": 45, "commands": 37, "rpcs": 29},
        "scaleout": {"methods": 59, "commands": 32, "rpcs": 16},
    }
    assert "rounds" in wheels["fedn"]["methods"]["start_session"]
    assert "--aggregator" not in wheels["fedn"]["commands"]["client list"]["options"]
    assert "--id" in wheels["fedn"]["commands"]["model get"]["options"]
    assert wheels["scaleout"]["rpcs"]["/scaleout.CombinerClient/StreamTelemetryRecord"]["client_streams"]


@pytest.mark.parametrize("name", OURS)
def test_our_wire_contract_is_the_published_one(name: str, wheels: dict[str, dict[str, Any]]) -> None:
    ours = on_the_wire(importlib.import_module(OURS[name]).DESCRIPTOR)
    for part in ("messages", "enums"):
        for what, fields in ours[part].items():
            assert fields == wheels[name][part][what], what
    for path, rpc in ours["rpcs"].items():
        assert rpc == wheels[name]["rpcs"][path], path
    assert set(wheels[name]["messages"]) == set(ours["messages"])
    assert set(wheels[name]["rpcs"]) == set(ours["rpcs"])
