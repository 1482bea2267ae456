"""A combiner served from a thread of the test, and a worker that is a thread too: for what no process must die for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from federation.combiner.core import CombinerConfig, CombinerCore
from federation.combiner.server import Listeners, build_server, listen
from federation.dialects.native.lane import Lane, tls_context
from federation.sessions import tasks
from federation.sessions.choices import RoundStatus
from federation.sessions.models import Round
from studio.management.commands.combiner import DIALECTS
from tests.rig import Child, Rig


class CombinerHere:
    """Everything that `manage.py combiner` starts, on a loop in a thread."""

    def __init__(self, folder: Path, name: str = "c1") -> None:
        self.folder, self.name = folder, name
        self.address = ""
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(20), "the combiner did not start"

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.core = CombinerCore(self.folder)
        server = build_server(self.core, DIALECTS)
        self.address, _ = listen(server, Listeners("127.0.0.1"))
        self.lane = Lane(self.core)
        self.lane_port = await self.lane.listen("127.0.0.1", 0, None)
        await self.core.start(CombinerConfig(self.name, "test", self.address, lane=f":{self.lane_port}"))
        await self.lane.serve()
        await server.start()
        self._ready.set()
        await self._stop.wait()
        with contextlib.suppress(TimeoutError):
            await self.core.stop()
        self.lane.close()
        await server.stop(grace=0.5)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(15)


@contextlib.contextmanager
def lane_over_tls(combiner: CombinerHere, cert: Path, key: Path) -> Iterator[tuple[Lane, int]]:
    """A second lane of the combiner's, encrypted, and its port."""
    lane = Lane(combiner.core)
    context = tls_context(Listeners(tls_host="127.0.0.1", tls_cert=cert, tls_key=key))

    def here(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, combiner.loop).result(10)

    port = here(lane.listen("127.0.0.1", 0, context))
    here(lane.serve())
    try:
        yield lane, port
    finally:
        combiner.loop.call_soon_threadsafe(lane.close)


class WorkerHere(threading.Thread):
    """Does what the worker does with the rows: ticks, and reduces."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            while not self._over.wait(0.05):
                tasks.tick()
                for pk in list(
                    Round.objects.filter(status=RoundStatus.REDUCING).values_list("pk", flat=True)
                ):
                    tasks.reduce_round(str(pk))
        finally:
            connection.close()

    def stop(self) -> None:
        self._over.set()
        self.join(15)


@contextlib.contextmanager
def frozen(child: Child) -> Iterator[None]:
    child.freeze()
    try:
        yield
    finally:
        child.thaw()


def elapsed(since: float) -> float:
    return time.monotonic() - since


@pytest.fixture
def combiner(rig: Rig) -> Iterator[CombinerHere]:
    """One combiner, in a thread."""
    here = CombinerHere(rig.folder / "combiner-here")
    yield here
    here.stop()


@pytest.fixture
def worker(rig: Rig) -> Iterator[WorkerHere]:
    """One worker, in a thread; `pytestmark` of a file that trains uses it for every test."""
    here = WorkerHere()
    yield here
    here.stop()
