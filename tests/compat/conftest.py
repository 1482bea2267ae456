"""The world of the compat tests: one Studio for all, a person per file, and devices with the published packages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat import environments
from tests.compat.outcomes import Outcomes
from tests.compat.runners import Devices
from tests.compat.world import World
from tests.sdk_site import new_person
from tests.services.environment import run_dir
from tests.services.stack import Stack

HERE = Path(__file__).parent
CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


BUILDING_MAY_TAKE_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test comes first on a new machine waits until the environments are built."""
    for item in items:
        if item.path.is_relative_to(HERE) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(BUILDING_MAY_TAKE_S))


def needs(name: str) -> environments.Environment:
    """That package's environment; where it cannot be built the test says so loudly, and under CI=true fails."""
    try:
        return environments.environment(name)
    except environments.Unavailable as reason:
        if CI:
            pytest.fail(str(reason))
        pytest.skip(f"NOT RUN: {reason}")


@pytest.fixture(scope="session")
def fedn_environment() -> environments.Environment:
    """Where `fedn` is installed."""
    return needs("fedn")


@pytest.fixture(scope="session")
def scaleout_environment() -> environments.Environment:
    """Where `scaleout` is installed; needs a Python 3.12 or newer on this machine."""
    return needs("scaleout")


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devices]:
    """Starts clients; all of them end with the module."""
    made = Devices(tmp_path_factory.mktemp("devices"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def world(shared_stack: Stack, devices: Devices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A Studio with one person on it, and the devices. `world.site()` makes a project."""
    with new_person(shared_stack.web) as api:
        yield World(shared_stack, api, devices, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    """Where a file writes down what worked; `python -m tests.compat.table` reads it after the run."""
    made = Outcomes()
    yield made
    made.write(run_dir() / "compat" / f"{request.path.stem}.json")
