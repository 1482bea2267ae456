"""What must be seen when a client dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clients_app.models import Client
from federation.aggregation.codecs import save_arrays
from federation.sessions.models import Assignment, Round
from tests.rig import ROOT, Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.rounds.rows import assert_same, mean, update
from tests.wire_client import ACCEPTED, WireClient

pytestmark = pytest.mark.django_db(transaction=True)

Combiners = Callable[..., CombinerHere]

# A client in a process of its own: it takes its task, sends the first bytes of its update, and hangs.
HANGS = """
import sys, time, pathlib
import grpc, django
django.setup()
from federation.dialects.native import studio_v1_pb2 as wire
from tests.wire_client import WireClient
address, token, folder, body = sys.argv[1:5]
body = pathlib.Path(body).read_bytes()
client = WireClient(address, token, pathlib.Path(folder))
task = client.next_task()
def chunks():
    yield wire.UploadChunk(head=wire.UploadHead(assignment_id=task.assignment_id, upload_id="mine", size=len(body)))
    yield wire.UploadChunk(data=body[:1 << 20])
    yield wire.UploadChunk(data=body[1 << 20:2 << 20])
    time.sleep(600)
client.stub.Upload(chunks(), metadata=client.metadata)
"""


def test_a_client_killed_while_it_uploads_goes_on_where_it_was(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """client, during upload: resumes at the offset after reconnect."""
    combiner = combiner_here()
    _, token = rig.client("a")
    seed = rig.model({"w": np.zeros(900_000, np.float32)})
    body_file = rig.folder / "body"
    save_arrays({"w": np.arange(900_000, dtype=np.float32)}, body_file)
    child = subprocess.Popen(
        [sys.executable, "-c", HANGS, combiner.address, token, str(rig.folder), str(body_file)],
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "studio.settings"},
    )
    try:
        rig.wait_until(lambda: Client.objects.online().exists(), timeout=40)
        session = rig.session(seed=seed)
        spool = combiner.folder / "spool"
        rig.wait_until(lambda: [p for p in spool.glob("*.part") if p.stat().st_size == 2 << 20], timeout=20)
    finally:
        child.kill()
        child.wait()
    rig.wait_until(lambda: not Client.objects.online().exists())
    wire = rig.connect(combiner, token)
    task = wire.next_task()
    assert wire.upload(task, body_file.read_bytes(), upload_id="mine").status == ACCEPTED
    assert wire.resumed_at == 2 << 20
    rig.until_session(session, "finished")
    assert (rig.arrays_of(session.current_model)["w"] == np.arange(900_000)).all()


def test_a_client_gone_while_it_trains_may_come_back_before_the_deadline(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """client, during train: assignment runs to the deadline; rejoining continues."""
    one, two = combiner_here("c1"), combiner_here("c2")
    tokens = [rig.client(name)[1] for name in "ab"]
    a, b = (rig.connect(one, token) for token in tokens)
    session = rig.session(min_clients=2)
    task_a, task_b = a.next_task(), b.next_task()
    b.close()
    rig.wait_until(lambda: Client.objects.online().count() == 1)
    assert a.upload(task_a, update(1), num_examples=1).status == ACCEPTED
    assert Round.objects.get().status == "training"
    b = rig.connect(two, tokens[1], holds=(task_b.assignment_id,))
    assert b.upload(task_b, update(4), num_examples=3).status == ACCEPTED
    rig.until_session(session, "finished")
    assert_same(rig.arrays_of(session.current_model), mean([(update(1), 1), (update(4), 3)]))


def test_a_client_that_never_comes_back_expires_and_the_round_goes_on_without_it(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """client, during train: else expired."""
    combiner = combiner_here()
    a, b = (rig.connect(combiner, rig.client(name)[1]) for name in "ab")
    session = rig.session(min_clients=2, min_updates=1, round_timeout_s=2)
    task_a, task_b = a.next_task(), b.next_task()
    b.close()
    assert a.upload(task_a, update(1)).status == ACCEPTED
    rig.until_session(session, "finished")
    assert Assignment.objects.get(pk=task_b.assignment_id).status == "expired"


def test_twenty_clients_on_one_database_never_meet_a_lock_that_is_an_error(
    rig: Rig, worker_here: WorkerHere
) -> None:
    """Twenty clients on SQLite never meet "database is locked": a writer waits for its turn."""
    combiner, worker = rig.combiner(), rig.worker()
    worker_here.stop()
    wires = [rig.connect(combiner, rig.client(f"site-{n:02}")[1]) for n in range(20)]
    session = rig.session(rounds=3, min_clients=20, validate=True)
    problems: list[BaseException] = []

    def work(wire: WireClient, value: int) -> None:
        try:
            for _ in range(3):
                task = wire.next_task(timeout=40)
                assert wire.upload(task, update(value), num_examples=value + 1).status == ACCEPTED
                wire.validate(wire.next_task("validate", timeout=40), accuracy=0.5, loss=float(value))
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(wire, n)) for n, wire in enumerate(wires)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(80)
    assert not problems
    rig.until_session(session, "finished")
    assert_same(rig.arrays_of(session.current_model), mean([(update(n), n + 1) for n in range(20)]), 1e-5)
    for child in (combiner, worker):
        log = Path(child.log).read_text()
        assert "locked" not in log and "database.away" not in log and "Traceback" not in log
