"""What a combiner leaves on its disk when it dies, or when clients end their calls: all of it goes."""

from __future__ import annotations

import os
import queue
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from federation.combiner import accumulators, sweeper
from federation.combiner.spool import Spool
from federation.combiner.staging import PER_CLIENT, Staged
from federation.dialects.fedn import fedn_pb2 as fedn
from federation.sessions import assignments, sweeping
from federation.sessions.models import Round
from federation.sessions.services import stop_session
from foundation import storage
from tests.fedn_wire import FednWire, enrolment, npz, registered
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.rounds.test_compression_intake import compress
from tests.wire_client import ACCEPTED, WireClient

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker_here")]

ELEMENTS = 1_500_000
LASTING = {"id", "lock"}
DAYS_S = 2 * 24 * 3600


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()} - LASTING


@pytest.mark.once
def test_a_combiner_killed_at_any_moment_leaves_nothing_for_ever(rig: Rig) -> None:
    """Killed while bytes arrive, while they are checked, while it closes: two days later only the lock is there."""
    folder = rig.folder / "killed"
    seed = rig.model({"w": np.zeros(ELEMENTS, np.float32)})
    session = rig.session(seed=seed, min_clients=1, rounds=50)
    token = rig.client("a")[1]
    combiner = rig.combiner("c1", spool=folder)
    for attempt, delay in enumerate((0.01, 0.02, 0.04, 0.06, 0.1)):
        wire = rig.connect(combiner, token)
        task = wire.next_task(timeout=30)
        body, form = packed(wire, task, attempt)
        timer = threading.Timer(delay, combiner.kill)
        timer.start()
        try:
            wire.upload(task, body, form=form)
        except grpc.RpcError:
            pass
        timer.join()
        wire.close()
        combiner = rig.combiner("c1", spool=folder)
    stop_session(actor=rig.actor, session=session)
    rig.until_session(session, "stopped")
    combiner.kill()
    assert leftovers(folder), "no death left anything: this test shows nothing"
    long_ago = time.time() - DAYS_S
    for path in folder.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    again = CombinerHere(folder)
    try:
        again.core.staging._sweep()
        rig.wait_until(lambda: not leftovers(folder), what=f"{leftovers(folder)} to go")
    finally:
        again.stop()


def packed(wire: WireClient, task: Any, attempt: int) -> tuple[bytes, str]:
    """An update: every other one compressed, so that a plain one is made of it in the spool."""
    arrays = {"w": np.full(ELEMENTS, attempt, np.float32)}
    return (wire.encode(arrays), "") if attempt % 2 else (compress(wire, task, arrays, "float16"), "float16")


def test_an_update_that_is_kept_while_the_sweeper_looks_around_is_spared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of files take a while to list; an update that comes in that time is not accepted yet."""
    spool = Spool(tmp_path / "spool")
    old, new = uuid.uuid4().hex, uuid.uuid4().hex
    for name in (old, new):
        spool.part(name).write_bytes(b"update")
    decided = spool.keep(old)
    spool.pending.discard(decided)
    listed, kept = Path.glob, []

    def while_it_lists(folder: Path, pattern: str) -> Any:
        if pattern == "*.update" and not kept:
            kept.append(spool.keep(new))
        return listed(folder, pattern)

    monkeypatch.setattr(Path, "glob", while_it_lists)
    assert spool.decided() == {decided} and spool.update(kept[0]).exists()


@pytest.mark.parametrize("aggregator", ["fedavg", "fedadam", "fedmedian"])
def test_the_updates_of_a_round_that_brought_much_go_as_soon_as_it_has_ended(
    rig: Rig, combiner: CombinerHere, monkeypatch: pytest.MonkeyPatch, aggregator: str
) -> None:
    """Not at the next sweep in half a minute: their place, on the disk and in memory, is the next round's."""
    monkeypatch.setattr(sweeper, "SWEEP_AFTER_BYTES", 1000)
    wire = rig.connect(combiner, rig.client("a")[1])
    seed = rig.model({"w": np.zeros(300, np.float32)})
    session = rig.session(min_clients=1, rounds=3, seed=seed, aggregator=aggregator)
    for _ in range(2):
        assert wire.upload(wire.next_task(), {"w": np.ones(300, np.float32)}).status == ACCEPTED
    wire.next_task()  # the third round trains
    spool = combiner.core.spool.folder
    rig.wait_until(lambda: not list(spool.glob("*.update")), timeout=10, what="the updates to go")
    assert Round.objects.filter(session=session, status="finished").count() == 2


def test_memory_need_not_hold_a_model_that_has_a_successor(
    rig: Rig, combiner: CombinerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next model is written into its place. Clients of the new round read the new one."""
    let_go: list[str] = []
    monkeypatch.setattr(storage, "COOLED_FROM_BYTES", 1)
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *_: let_go.append(_target(Path(f"/dev/fd/{file}"))))
    wire = rig.connect(combiner, rig.client("a")[1])
    seed = rig.model({"w": np.zeros(300, np.float32)})
    session = rig.session(min_clients=1, rounds=2, seed=seed)
    keys = [seed.key]
    for number in (1, 2):
        assert wire.upload(wire.next_task(), {"w": np.ones(300, np.float32)}).status == ACCEPTED
        rig.wait_until(lambda number=number: len(session.trail.all()) == number, what="the model")
        keys.append(session.trail.get(round_number=number).key)
    assert let_go == [storage.artifacts().path(key) for key in keys[:-1]]


def test_a_sum_that_begins_while_the_sweeper_reads_the_rows_goes_on(
    rig: Rig, combiner: CombinerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head start that is thrown away is made again when the round closes, where everybody waits for it."""
    sums, read = combiner.core.shares._sums, assignments.unfinished_shares
    reading, go_on = threading.Event(), threading.Event()
    passes: list[None] = []

    def slowly(*args: Any) -> Any:
        found = read(*args)
        passes.append(None)
        reading.set()
        go_on.wait(60)
        return found

    monkeypatch.setattr(assignments, "unfinished_shares", slowly)
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "ab"]
    seed, one = rig.model({"w": np.zeros(8, np.float32)}), {"w": np.ones(8, np.float32)}
    sessions = [rig.session(min_clients=2, seed=seed) for _ in range(2)]
    tasks = [[wire.next_task(), wire.next_task()] for wire in wires]

    def upload(wire: int, task: int) -> None:
        assert wires[wire].upload(tasks[wire][task], one).status == ACCEPTED
        rig.wait_until(lambda: any(s.folded for s in sums._of.values()), what="the update in a sum")

    def look() -> None:
        combiner.loop.call_soon_threadsafe(combiner.core.shares.sweeper._worth_it.set)

    upload(0, 0)
    first = set(sums.shares())
    look()
    assert reading.wait(20)
    upload(0, 1)
    rig.wait_until(lambda: len(sums.shares()) == 2, what="the sum of the second session")
    begun = sums.get(*(sums.shares() - first))
    looked = len(passes)
    look()
    go_on.set()
    rig.wait_until(lambda: len(passes) > looked, what="another look of the sweeper")
    assert begun in sums._of.values()
    upload(1, 0)
    upload(1, 1)
    for session in sessions:
        rig.until_session(session, "finished")


def test_the_memory_of_a_sum_is_given_back_once_no_round_has_come_to_use_it(
    rig: Rig, combiner: CombinerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is twice the model: kept for the next round, and not for ever."""
    sums = combiner.core.shares._sums
    wire = rig.connect(combiner, rig.client("a")[1])
    session = rig.session(min_clients=1, rounds=1, seed=rig.model({"w": np.zeros(300, np.float32)}))
    assert wire.upload(wire.next_task(), {"w": np.ones(300, np.float32)}).status == ACCEPTED
    rig.until_session(session, "finished")
    rig.wait_until(lambda: sums._spare is not None, what="the sum to be done with")
    monkeypatch.setattr(accumulators, "SPARED_S", 0.0)
    combiner.loop.call_soon_threadsafe(combiner.core.shares.sweeper._worth_it.set)
    rig.wait_until(lambda: sums._spare is None, timeout=10, what="its memory to be given back")


@pytest.mark.parametrize("names", ["same", "other"])
def test_uploads_that_a_client_never_ends_take_the_place_of_two(
    rig: Rig, combiner: CombinerHere, names: str
) -> None:
    token, _ = enrolment(rig)
    client = FednWire(combiner.address, registered(token, "a").pk).open()
    rig.session(min_clients=1, seed=rig.model({"0": np.zeros(1000, np.float32)}))
    task = client.next_task()
    folder = combiner.folder / "staged"
    ends, answers = [], []
    for number in range(8):
        name = "same" if names == "same" else str(number)
        out: queue.Queue[fedn.ModelRequest | None] = queue.Queue()
        out.put(fedn.ModelRequest(data=b"x" * 1000, id=name, status=fedn.IN_PROGRESS))
        counted = combiner.core.traffic.received_bytes
        answers.append(client.models.Upload.future(iter(out.get, None), metadata=client.metadata))
        ends.append(out)
        rig.wait_until(
            lambda: combiner.core.traffic.received_bytes > counted,  # noqa: B023
            what="a chunk to arrive",
        )
        open_files = [f for f in Path("/proc/self/fd").iterdir() if str(folder) in _target(f)]
        most = 1 if names == "same" else PER_CLIENT
        assert len(leftovers(folder)) <= most and len(open_files) <= most
    assert client.update(task, client.upload(npz([np.ones(1000, np.float32)]))).startswith("accepted")
    for out, answer in zip(ends, answers, strict=True):
        out.put(None)
        answer.cancel()
    rig.wait_until(lambda: not leftovers(folder), what="the staged files to go")
    client.close()


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def test_a_call_that_ends_while_a_thread_still_writes_lets_it_write_to_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a closed file is soon another's."""
    staged = Staged(tmp_path / "one.staged", 1 << 20)
    write, writing, go_on = os.write, threading.Event(), threading.Event()

    def late(file: int, data: Any) -> int:
        writing.set()
        assert go_on.wait(20)
        return write(file, data)

    monkeypatch.setattr(os, "write", late)
    writer = threading.Thread(target=staged.write, args=(b"of another client",), daemon=True)
    writer.start()
    assert writing.wait(20)
    dropping = threading.Thread(target=staged.drop, daemon=True)
    dropping.start()
    dropping.join(0.3)  # at once, or not before the writer is done
    others = [os.open(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(3)]
    go_on.set()
    writer.join(20)
    dropping.join(20)
    assert [os.pread(file, 100, 0) for file in others] == [b"", b"", b""]
    for file in others:
        os.close(file)
    assert not leftovers(tmp_path) - {"0", "1", "2"}


def test_a_copy_of_an_update_that_no_row_came_to_name_is_swept_from_storage(rig: Rig, tmp_path: Path) -> None:
    """A combiner that died between copying an accepted update and saying so copies it again, under another key."""
    source = tmp_path / "update"
    source.write_bytes(b"x")
    key = f"updates/{uuid.uuid4()}/{uuid.uuid4()}.safetensors"
    storage.put(key, source)
    path = Path(storage.artifacts().path(key))
    draft = path.with_name(f".{path.name}.4711")  # and one that died before it had its name
    draft.write_bytes(b"x")
    long_ago = time.time() - DAYS_S
    for one in (path, draft):
        os.utime(one, (long_ago, long_ago))
    sweeping.sweep()
    assert not path.exists() and not draft.exists()


def test_sums_that_a_dead_combiner_had_written_in_part_or_whole_go_when_the_next_starts(
    tmp_path: Path,
) -> None:
    sums = [tmp_path / "9f.partial", tmp_path / ".9f.part"]
    part = tmp_path / "9f.part"  # an upload is gone on with
    for path in (*sums, part):
        path.write_bytes(b"bytes")
    Spool(tmp_path).close()
    assert part.exists() and not any(path.exists() for path in sums)
