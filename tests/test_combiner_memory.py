"""The combiner's memory does not grow with the number of clients."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.rig import Child, Rig
from tests.wire_client import ACCEPTED, WireClient

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.once,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc"),
]
MODEL_BYTES = 20_000_000
SLACK_BYTES = 40 * 2**20


def peak_bytes(child: Child) -> int:
    for line in Path(f"/proc/{child.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def train_together(rig: Rig, clients: int) -> int:
    """One round in which all clients upload at once; the combiner's peak resident bytes."""
    combiner = rig.combiner(f"c{clients}")
    wires = [rig.connect(combiner, rig.client(f"{clients}-{n}")[1]) for n in range(clients)]
    seed = rig.model({str(n): np.zeros(MODEL_BYTES // 16, np.float32) for n in range(4)})
    session = rig.session(seed=seed, min_clients=clients, round_timeout_s=120)
    update = {str(n): np.full(MODEL_BYTES // 16, 1.5, np.float32) for n in range(4)}
    body = wires[0].encode(update)

    def work(wire: WireClient) -> None:
        task = wire.next_task(timeout=60)
        assert len(wire.download(task)) == len(body)
        assert wire.upload(task, body).status == ACCEPTED

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, wires))
    rig.until_session(session, "finished", timeout=60)
    np.testing.assert_allclose(rig.arrays_of(session.current_model)["0"][:5], 1.5)
    peak = peak_bytes(combiner)
    for wire in wires:
        wire.close()
    combiner.stop()
    return peak


def test_twenty_clients_need_hardly_more_memory_than_two(rig: Rig) -> None:
    rig.worker()
    rig.beat()
    few = train_together(rig, 2)
    many = train_together(rig, 20)

    assert many <= few + SLACK_BYTES, f"{few / 2**20:.0f} MiB, then {many / 2**20:.0f} MiB"
