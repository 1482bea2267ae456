"""The SDK's client in sessions with compression: real gRPC, a combiner in this process, clients in threads."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studio_sdk import ClientConfig, FederatedClient, compressed, tensors
from studio_sdk.client.compression import debt_name
from studio_sdk.client.link import Link
from studio_sdk.client.store import Store

from federation.dialects.native import servicer
from federation.dialects.native.servicer import NativeServicer
from federation.sessions.config.session import COMPRESSIONS
from federation.sessions.models import Assignment, Session
from foundation.errors import StudioError
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.sdk_site import Running, Wire
from tests.wire_client import ACCEPTED

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker")]

SEED: dict[str, Any] = {
    "w": np.zeros(3000, np.float32),
    "b": np.zeros(10, np.float32),
    "n": np.array(1, np.int64),
}
# changes of very different sizes: the small ones are less than half a step of int8
STEPS = np.geomspace(1e-4, 1.0, 3000)

Train = Callable[[dict[str, Any], dict[str, Any]], Any]


def add_steps(arrays: dict[str, Any], _settings: dict[str, Any]) -> Any:
    made = {name: array.copy() for name, array in arrays.items()}
    made["w"] = (made["w"] + STEPS).astype(np.float32)
    return made, {"num_examples": 1}


@pytest.fixture
def start(rig: Rig) -> Iterator[Callable[..., Running]]:
    """`start(address, token, train)`: a client of the SDK, connected."""
    with ExitStack() as exits:

        def started(
            address: str, token: str, train: Train = add_steps, folder: Path | None = None
        ) -> Running:
            lines: list[str] = []
            config = ClientConfig("c", "c", "http://127.0.0.1:1", token, combiner=address)
            client = FederatedClient(config, work_dir=folder or rig.folder / token[-8:], say=lines.append)
            running = Running(client.set_train(train), lines).start()
            exits.callback(running.end)
            rig.wait_until(lambda: running.said("^connected to"), what="the client to connect")
            return running

        yield started


def sent(session: Session) -> list[Assignment]:
    return list(Assignment.objects.filter(round__session=session).order_by("round__number", "client_id"))


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS))
def test_a_session_trains_with_every_compression_and_forgets_no_small_change(
    rig: Rig, combiner: CombinerHere, start: Callable[..., Running], compression: str
) -> None:
    running = [start(combiner.address, rig.client(name)[1]) for name in "ab"]
    rounds = 12
    session = rig.session(
        seed=rig.model(SEED), min_clients=2, rounds=rounds, compression=compression, round_timeout_s=60
    )
    rig.until_session(session, "finished")
    rows = sent(session)
    assert len(rows) == 2 * rounds
    expected = "" if compression == "none" else compression
    assert {row.encoding for row in rows} == {expected}
    share = {"none": 1.0, "float16": 0.53, "bfloat16": 0.53, "int8": 0.28}[compression]
    assert all(row.sent_bytes and row.size_bytes and row.sent_bytes <= share * row.size_bytes for row in rows)
    said = running[0].said("uploaded .* accepted")
    assert len(said) == rounds and (f"as {compression}" in said[0]) == bool(expected)

    model = rig.arrays_of(session.current_model)["w"].astype(np.float64)
    true = rounds * STEPS
    step = {"none": 0.0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 0.5 / 127}[compression]
    # whatever a client has not sent yet is one rounding, not one for every round
    assert np.abs(model - true).max() <= 1.1 * step + 1e-5 * true.max()


def test_an_older_combiner_gets_the_update_as_it_is(
    rig: Rig, combiner: CombinerHere, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "FORMS", ())  # what the first release says in its Welcome
    start(combiner.address, rig.client("a")[1])
    session = rig.session(seed=rig.model(SEED), min_clients=1, compression="int8")
    rig.until_session(session, "finished")
    (row,) = sent(session)
    assert (row.encoding, row.sent_bytes) == ("", row.size_bytes)
    np.testing.assert_array_equal(rig.arrays_of(session.current_model)["w"], STEPS.astype(np.float32))


def test_a_compressed_upload_that_broke_off_goes_on_at_its_offset(
    rig: Rig, combiner: CombinerHere, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, lane = Wire(combiner.address), Wire(f"127.0.0.1:{combiner.lane_port}")
    lane_of = Link._lane
    monkeypatch.setattr(Link, "_lane", lambda link, _named: lane_of(link, lane.address))
    seed = {"w": np.zeros(8_000_000, np.float32)}

    def train(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
        lane.cut_after = 4_000_000
        return {"w": arrays["w"] + np.float32(1)}, {"num_examples": 1}

    running = start(wire.address, rig.client("a")[1], train)
    session = rig.session(seed=rig.model(seed), min_clients=1, compression="int8")
    rig.until_session(session, "finished")
    wire.close()
    lane.close()
    resumed = running.said("upload goes on at")
    assert resumed and float(resumed[-1].split()[4]) > 1
    (row,) = sent(session)
    assert row.encoding == "int8" and row.sent_bytes is not None and row.sent_bytes < 8_100_000
    np.testing.assert_allclose(rig.arrays_of(session.current_model)["w"][:9], 1, rtol=1e-6)


def test_a_client_whose_round_went_on_without_it_owes_what_it_owed_before(
    rig: Rig, combiner: CombinerHere, start: Callable[..., Running]
) -> None:
    """Round 1 counts; in round 2 the other client is enough, and this one is told to stop; round 3 counts again."""
    rounds, go_on = itertools.count(1), threading.Event()

    def slow_in_the_second(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
        if next(rounds) == 2:
            go_on.wait(30)
        return add_steps(arrays, settings)

    folder = rig.folder / "slow"
    slow_row, token = rig.client("slow")
    slow = start(combiner.address, token, slow_in_the_second, folder)
    other = rig.connect(combiner, rig.client("other")[1])
    session = rig.session(
        seed=rig.model(SEED), min_clients=2, min_updates=1, goal=1, rounds=3, compression="int8"
    )

    def debt() -> bytes:
        return b"".join(path.read_bytes() for path in (folder / "debts").iterdir())

    other.next_task()
    rig.wait_until(debt, what="the first update to be accepted")
    before = debt()
    task = other.next_task()
    assert task.round == 2
    assert other.upload(task, other.arrays(task)).status == ACCEPTED
    go_on.set()
    rig.wait_until(lambda: slow.said("round 2: (stopped|uploaded .* refused)"), what="its round to be over")
    assert debt() == before
    rig.until_session(session, "finished")
    assert debt() != before
    encodings = [row.encoding for row in sent(session) if row.client_id == slow_row.pk]
    assert encodings == ["int8", "", "int8"]


@pytest.fixture
def after_accepting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """`after_accepting(then)`: the next answer "accepted" never reaches its client; `then` happens instead."""
    answers = NativeServicer._take

    def lost(then: Callable[[], None]) -> None:
        async def take(*args: Any) -> Any:
            found = await answers(*args)
            monkeypatch.setattr(NativeServicer, "_take", answers)
            await asyncio.to_thread(then)
            raise StudioError("busy", "The connection broke.", 503) if found.status == "accepted" else found

        monkeypatch.setattr(NativeServicer, "_take", take)

    return lost


def owed_in(folder: Path) -> np.ndarray[Any, Any]:
    """What the client in this folder owes for `w`."""
    found = [np.frombuffer(path.read_bytes(), "<f4")[:3000] for path in (folder / "debts").iterdir()]
    return found[0] if found else np.zeros(3000, np.float32)


def test_a_client_that_was_moved_to_an_older_combiner_and_back_loses_and_doubles_nothing(
    rig: Rig, combiner: CombinerHere, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain update holds its own change and nothing of the debt: that is owed still, and sent with the next one."""
    wire, rounds, folder = Wire(combiner.address), itertools.count(1), rig.folder / "moved"
    clients: list[Running] = []

    def moved(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
        number = next(rounds)
        if number > 1:
            monkeypatch.setattr(servicer, "FORMS", () if number == 2 else tuple(compressed.FORMS))
            wire.cut()
            rig.wait_until(lambda: len(clients[0].said("^connected to")) == number, what="it to come back")
        return add_steps(arrays, settings)

    clients.append(start(wire.address, rig.client("a")[1], moved, folder))
    session = rig.session(seed=rig.model(SEED), min_clients=1, rounds=3, compression="int8")
    rig.until_session(session, "finished")
    wire.close()
    assert [row.encoding for row in sent(session)] == ["int8", "", "int8"]
    seen = rig.arrays_of(session.current_model)["w"].astype(np.float64)
    np.testing.assert_allclose(seen + owed_in(folder), 3 * STEPS, atol=3e-6)


def test_an_update_that_was_sent_in_both_ways_and_accepted_in_one_ends_the_debt(
    rig: Rig,
    combiner: CombinerHere,
    start: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
    after_accepting: Any,
) -> None:
    """Round 2's compressed update is accepted just after the older combiner, where its client is now, said that it
    has nothing of it: the client sends the plain one, hears "accepted", and cannot know of which."""
    wire, rounds, folder = Wire(combiner.address), itertools.count(1), rig.folder / "both"

    async def nothing_yet(*_args: Any) -> int:
        return 0

    def move() -> None:
        monkeypatch.setattr(combiner.core.intake, "resume_offset", nothing_yet)
        monkeypatch.setattr(servicer, "FORMS", ())
        wire.cut()

    def train(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
        if next(rounds) == 2:
            assert owed_in(folder).any()
            after_accepting(move)
        return add_steps(arrays, settings)

    start(wire.address, rig.client("a")[1], train, folder)
    session = rig.session(seed=rig.model(SEED), min_clients=1, rounds=2, compression="int8")
    rig.until_session(session, "finished")
    rig.wait_until(lambda: not list((folder / "updates").iterdir()), what="the client to hear of it")
    wire.close()
    assert [row.encoding for row in sent(session)] == ["int8", "int8"]
    assert not owed_in(folder).any(), "the server has it already: sent again it would count twice"


def test_a_client_killed_before_it_knew_that_its_plain_update_was_accepted_owes_nothing_for_it(
    rig: Rig,
    combiner: CombinerHere,
    start: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
    after_accepting: Any,
) -> None:
    folder = rig.folder / "killed"
    _row, token = rig.client("a")
    monkeypatch.setattr(servicer, "FORMS", ())
    before = start(combiner.address, token, add_steps, folder)
    after_accepting(before.client.stop)
    session = rig.session(seed=rig.model(SEED), min_clients=1, rounds=2, compression="int8")
    before.code()
    assert list((folder / "updates").glob("*.compressed.json")), "it was made, and not sent"

    monkeypatch.setattr(servicer, "FORMS", tuple(compressed.FORMS))
    start(combiner.address, token, add_steps, folder)
    rig.until_session(session, "finished")
    rig.wait_until(lambda: not list((folder / "updates").iterdir()), what="the client to hear of it")
    assert [row.encoding for row in sent(session)] == ["", "int8"]
    seen = rig.arrays_of(session.current_model)["w"].astype(np.float64)
    np.testing.assert_allclose(seen + owed_in(folder), 2 * STEPS, atol=2e-6)


@pytest.mark.parametrize("database_away", [False, True])
def test_a_receipt_lost_with_the_process_is_asked_for_before_the_debt_is_used(
    rig: Rig,
    combiner: CombinerHere,
    start: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
    database_away: bool,
) -> None:
    """Killed after its first update was accepted and before it knew: what is owed after that update is what counts,
    also where the combiner cannot say at once."""
    folder = rig.folder / "killed"
    _row, token = rig.client("a")
    wire = rig.connect(combiner, token)
    session = rig.session(seed=rig.model(SEED), min_clients=1, rounds=2, compression="int8")
    task = wire.next_task()
    # what the process had on its disk when it was killed
    store = Store("c", folder)
    model = store.model(task.model_sha256)
    model.write_bytes(wire.download(task))
    made, _ = add_steps(tensors.read_file(model), {})
    plain = store.keep_update(
        task.assignment_id, tensors.write_file(store.update_file(task.assignment_id), made), {}
    )
    target, owed = store.compressed_file(task.assignment_id), store.new_debt_file(task.assignment_id)
    change = compressed.Change(model, store.update_file(task.assignment_id))
    sha256 = compressed.compress(change, "int8", target, owed)
    debt = debt_name(task.session_id, "int8", tensors.read_specs(model))
    store.keep_update(task.assignment_id, sha256, plain.metadata, "int8", debt)
    promised = np.frombuffer(owed.read_bytes(), "<f4")[:3000]
    assert np.abs(promised).max() > 1e-3
    assert wire.upload(task, target.read_bytes(), form="int8").status == ACCEPTED
    wire.close()
    store.close()
    if database_away:
        answers = combiner.core.intake.resume_offset

        async def away(*_args: Any) -> Any:
            monkeypatch.setattr(combiner.core.intake, "resume_offset", answers)
            raise StudioError("busy", "The database is away; try again.", 503)

        monkeypatch.setattr(combiner.core.intake, "resume_offset", away)

    start(combiner.address, token, add_steps, folder)
    rig.until_session(session, "finished")
    after = np.frombuffer(next((folder / "debts").iterdir()).read_bytes(), "<f4")[:3000]
    seen = rig.arrays_of(session.current_model)["w"].astype(np.float64)
    np.testing.assert_allclose(seen + after, 2 * STEPS, atol=2e-6)
    assert not list((folder / "updates").iterdir())


def add_one(arrays: dict[str, Any], _settings: dict[str, Any]) -> Any:
    """A change that int8 sends exactly: the same in every number."""
    return {
        name: array + array.dtype.type(1) if array.dtype.kind == "f" else array
        for name, array in arrays.items()
    }, {"num_examples": 1, "num_steps": 1, "loss": 1.0}


@pytest.mark.parametrize(
    ("settings", "moved"),
    [
        ({"aggregator": "fedmedian"}, 2.0),
        ({"aggregator": "krum", "aggregator_kwargs": {"byzantine": 0}}, 2.0),
        ({"deterministic": True}, 2.0),
        ({"aggregator": "fednova"}, 2.0),
        ({"aggregator": "normclip", "aggregator_kwargs": {"max_norm": 3010**0.5 / 2}}, 1.0),
        ({"asynchronous": {"buffer_size": 3, "staleness_exponent": 0.0}}, 2.0),
        (
            {"privacy": {"clip_norm": 3010**0.5 / 2, "noise_multiplier": 1e-3, "expected_clients": 3}},
            1.0,
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_whoever_measures_or_aggregates_sees_the_plain_update(
    rig: Rig, combiner: CombinerHere, start: Callable[..., Running], settings: dict[str, Any], moved: float
) -> None:
    for name in "abc":
        start(combiner.address, rig.client(name)[1], add_one)
    asked: dict[str, Any] = {} if "asynchronous" in settings else {"requested_clients": 3}
    session = rig.session(
        seed=rig.model(SEED), min_clients=3, rounds=2, compression="int8", **asked, **settings
    )
    rig.until_session(session, "finished")
    assert {row.encoding for row in sent(session) if row.status == "accepted"} == {"int8"}
    model = rig.arrays_of(session.current_model)
    noise = 6 * 2**0.5 * 1e-3 * 3010**0.5 / 2 / 3 if "privacy" in settings else 0
    np.testing.assert_allclose(model["w"], moved, atol=0.001 + noise)
    np.testing.assert_allclose(model["b"], moved, atol=0.001 + noise)
