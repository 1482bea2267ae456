"""Fixtures of every test: servers, a live stack, and waiting for a condition. The people are in cast.py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.services import swift, valkey
from tests.services.environment import run_dir, wants_postgres, worker_id

pytest_plugins = [
    "tests.services.fixtures",
    "tests.cast",
    "tests.controller_cast",
    "tests.rig",
    "tests.rounds.here",
]

# No test judges by seconds, hypothesis included: a busy machine is not a finding.
settings.register_profile("studio", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("studio")

DATABASE_FIXTURES = {
    "db",
    "transactional_db",
    "live_server",
    "live_stack",
    "shared_stack",
    "start_stack",
    "django_db_setup",
}


def pytest_configure(config: pytest.Config) -> None:
    """Start this process's Redis before any test imports what wants one; the xdist controller needs none."""
    is_controller = bool(getattr(config.option, "numprocesses", None)) and worker_id() == "main"
    if is_controller or os.environ.get("TEST_REDIS_URL") or config.option.collectonly:
        return
    child = valkey.start(os.environ["REDIS_URL"], run_dir() / worker_id() / "valkey.log")
    config.add_cleanup(lambda: valkey.stop(child))


def pytest_unconfigure(config: pytest.Config) -> None:
    """The run's S3 server outlives the workers; whoever started the run ends it."""
    if worker_id() == "main" and "STUDIO_TEST_KEEP_SERVERS" not in os.environ:
        swift.stop_shared()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The Postgres run leaves out what the SQLite run has already shown; the SQLite run what needs row locks."""
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        uses_rows = item.get_closest_marker("django_db") or DATABASE_FIXTURES & set(
            getattr(item, "fixturenames", ())
        )
        if wants_postgres():
            runs = (uses_rows or item.get_closest_marker("postgres")) and not item.get_closest_marker("once")
        else:
            runs = not item.get_closest_marker("postgres")
        (kept if runs else dropped).append(item)
    # naming a file or test by hand on the wrong database should say so, not run nothing in silence
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """Every worker already has a database name of its own (tests/settings.py)."""


@pytest.fixture(scope="session")
def redis_url() -> str:
    """This worker's private Redis; emptied by `empty_redis`."""
    return os.environ["REDIS_URL"]


@pytest.fixture
def wait_until() -> Callable[..., object]:
    """`wait_until(cond, timeout=10, what="…")`: the first true value of `cond()`, or a failure at the deadline."""

    def wait(cond: Callable[[], object], timeout: float = 10.0, what: str = "") -> object:
        deadline = time.monotonic() + timeout
        while True:
            value = cond()
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"waited {timeout:g} s in vain for {what or cond}; last value: {value!r}"
                )
            time.sleep(0.02)

    return wait


@pytest.fixture
def tmp_data(tmp_path: Path) -> Iterator[Path]:
    """An empty Studio data directory with a path short enough for Unix sockets."""
    yield tmp_path / "data"
