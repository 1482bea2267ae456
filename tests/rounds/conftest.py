"""Fixtures of the rounds: sessions on rows, and combiners and workers in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from projects.models import Project, User
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.rounds.proxy import Proxy
from tests.rounds.rows import Rows


@pytest.fixture
def rows(db: None, project: Project, owner: User, tmp_path: Path, wait_until: Any) -> Rows:
    return Rows(project, owner, tmp_path, wait_until)


@pytest.fixture
def live_rows(transactional_db: None, project: Project, owner: User, tmp_path: Path, wait_until: Any) -> Rows:
    """Rows that other threads see."""
    return Rows(project, owner, tmp_path, wait_until)


@pytest.fixture
def combiner_here(rig: Rig) -> Iterator[Callable[..., CombinerHere]]:
    """`combiner_here(name)`: a combiner in a thread."""
    started: list[CombinerHere] = []

    def start(name: str = "c1", folder: Path | None = None) -> CombinerHere:
        started.append(CombinerHere(folder or rig.folder / f"here-{name}", name))
        return started[-1]

    yield start
    for wire in rig.wires:
        wire.close()
    rig.wires.clear()
    for one in started:
        one.stop()


@pytest.fixture
def worker_here(rig: Rig) -> Iterator[WorkerHere]:
    worker = WorkerHere()
    yield worker
    worker.stop()


@pytest.fixture
def proxy() -> Iterator[Callable[[str], Proxy]]:
    """`proxy("127.0.0.1:9000")`: a wire to there that the test may cut."""
    made: list[Proxy] = []

    def start(target: str) -> Proxy:
        made.append(Proxy(target))
        return made[-1]

    yield start
    for one in made:
        one.close()
