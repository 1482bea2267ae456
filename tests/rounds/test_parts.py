"""A large reduction is spread over workers: the same bytes with any number of them, whoever dies."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from django.db import connection

from federation.aggregation import model_files
from federation.aggregation.aggregators import AGGREGATORS
from federation.aggregation.aggregators.collecting import Collecting
from federation.sessions import committing, parts, reduction, tasks
from federation.sessions.inputs import Inputs
from federation.sessions.models import ReductionPart, Round, Session
from federation.sessions.parts import COMBINE, Attempt
from foundation import storage
from tests.rounds.rows import Rows, again, ago
from tests.rounds.test_deaths_worker import killed_at_statement
from tests.services.fixtures import Bucket
from tests.test_storage_s3 import use

pytestmark = pytest.mark.django_db(transaction=True)

CLIENTS = 7
COLLECTING = [name for name, aggregator in AGGREGATORS.items() if isinstance(aggregator, Collecting)]
RANGES = 6


def numbers(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(0, 1, (30, 40)).astype(np.float32),
        "b": rng.normal(0, 1, 333),
        "half": rng.normal(0, 1, 67).astype(np.float16),
        "count": rng.integers(0, 50, 40),
        "mask": rng.integers(0, 2, 9).astype(np.bool_),
    }


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: Any) -> None:
    """Six ranges of a model of some kilobytes; what they cut is no tensor's beginning."""
    monkeypatch.setattr(model_files, "MIN_PART_ELEMENTS", 300)
    monkeypatch.setattr(model_files, "PART_BYTES", 1)


def to_reduce(rows: Rows, aggregator: str) -> Session:
    """A session whose round is to be reduced; each time the same updates, of the same clients."""
    lease = rows.lease()
    clients = rows.online(lease, *[f"site-{place}" for place in range(CLIENTS)])
    session = rows.running(min_clients=CLIENTS, aggregator=aggregator, seed=rows.model(numbers(99)))
    for place, client in enumerate(clients):
        task = rows.task(session, client)
        assert rows.accept(lease, task, arrays=numbers(place), examples=1 + place)[0].accepted
    assert rows.finish_share(lease) == [True]
    return session


def model_of(session: Session) -> str:
    assert again(session).status == "finished", session.reason
    return session.current_model.sha256


@pytest.fixture
def spread(settings: Any) -> Iterator[Any]:
    """`spread(False)`: one worker does it all in turn."""

    def choose(on: bool = True) -> None:
        settings.REDUCTION_SPREAD_BYTES = 0 if on else 1 << 40

    yield choose


def in_turn(rows: Rows, aggregator: str, spread: Any) -> str:
    """What one worker makes of the updates by itself."""
    spread(False)
    session = to_reduce(rows, aggregator)
    reduction.reduce_round(rows.round(session).pk)
    assert not ReductionPart.objects.exists()
    spread(True)
    return model_of(session)


class Helpers:
    """Workers that were asked to help, each in a thread: they look for an attempt, and do what is left of it."""

    def __init__(self, round_: Round, count: int) -> None:
        self.done: list[int] = []
        self._round, self._over = round_, threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                owner = Round.objects.values_list("reduce_owner", flat=True).get(pk=self._round.pk)
                self.done.append(parts.help_reduce(self._round.pk, owner) if owner else 0)
                time.sleep(0.005)
        finally:
            connection.close()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)


@contextlib.contextmanager
def helping(round_: Round, count: int) -> Iterator[Helpers]:
    helpers = Helpers(round_, count)
    try:
        yield helpers
    finally:
        helpers.stop()


def nothing_left_of(round_: Round) -> None:
    assert not ReductionPart.objects.filter(round=round_).exists()
    top = Path(storage.artifacts().path(f"parts/{round_.pk}"))
    assert not [path for path in top.rglob("*") if path.is_file()]


@pytest.mark.parametrize("aggregator", COLLECTING)
def test_one_worker_two_or_three_make_the_bytes_that_one_makes_in_turn(
    live_rows: Rows, spread: Any, aggregator: str
) -> None:
    wanted = in_turn(live_rows, aggregator, spread)
    for helpers in (0, 1, 2):
        session = to_reduce(live_rows, aggregator)
        round_ = live_rows.round(session)
        with helping(round_, helpers):
            reduction.reduce_round(round_.pk)
        assert model_of(session) == wanted, helpers
        nothing_left_of(round_)


def test_other_workers_are_asked_to_help_once_for_every_range_beyond_the_first(
    live_rows: Rows, spread: Any, redis_url: str
) -> None:
    client = redis.Redis.from_url(redis_url)
    spread()
    session = to_reduce(live_rows, "fedmedian")
    client.flushdb()
    reduction.reduce_round(live_rows.round(session).pk)
    lists = [key for key in client.scan_iter("*reduce") if client.type(key) == b"list"]
    asked = [task for key in lists for task in client.lrange(key, 0, -1) if b"help_reduce" in task]
    client.close()
    assert len(asked) == RANGES - 1
    assert tasks.help_reduce.name == parts.HELP_TASK
    model_of(session)


def test_what_a_helper_died_with_is_taken_over_when_its_lease_runs_out(
    live_rows: Rows, spread: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(parts, "LEASE_S", 0.4)
    wanted = in_turn(live_rows, "multikrum", spread)
    session = to_reduce(live_rows, "multikrum")
    round_ = live_rows.round(session)
    held: list[ReductionPart] = []

    def claim_and_die() -> None:
        """One range of each phase is claimed as soon as there is one, and never heard of again."""
        try:
            with contextlib.ExitStack() as stack:
                for phase in (parts.MEASURE, COMBINE):
                    part = None
                    while part is None:
                        row = Round.objects.select_related("input_model", "session").get(pk=round_.pk)
                        if row.reduce_owner is not None:
                            part = attempt(row, row.reduce_owner, stack)._claim(phase)
                    held.append(part)
        finally:
            connection.close()

    thread = threading.Thread(target=claim_and_die, daemon=True)
    thread.start()
    reduction.reduce_round(round_.pk)
    thread.join(30)
    assert model_of(session) == wanted
    assert len(held) == 2


def attempt(
    round_: Round, owner: uuid.UUID, stack: contextlib.ExitStack, kind: type[Attempt] = Attempt
) -> Attempt:
    """Another worker at the attempt `owner`."""
    inputs = Inputs(round_, stack)
    aggregator = inputs.aggregator
    assert isinstance(aggregator, Collecting)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return kind(inputs, aggregator, owner, uuid.uuid4(), folder)


def claimed(rows: Rows, session: Session) -> tuple[Round, uuid.UUID]:
    """The round, claimed by an attempt."""
    owner = uuid.uuid4()
    assert committing.claim_reduction(rows.round(session).pk, owner, 30)
    round_ = Round.objects.select_related("input_model", "session").get(pk=rows.round(session).pk)
    return round_, owner


def test_a_helper_that_thaws_after_its_range_was_taken_over_changes_nothing(
    live_rows: Rows, spread: Any
) -> None:
    spread()
    session = to_reduce(live_rows, "fedmedian")
    round_, owner = claimed(live_rows, session)
    with contextlib.ExitStack() as stack:
        mine, helper = attempt(round_, owner, stack), attempt(round_, owner, stack)
        mine._put(f"{mine.top}/plan.json", lambda path: path.write_text('{"arguments": {}}'))
        ReductionPart.objects.create(round=round_, owner=owner, phase=COMBINE, begin=0, end=300)
        frozen = helper._claim(COMBINE)
        assert frozen is not None and mine._claim(COMBINE) is None
        ReductionPart.objects.update(until=ago(1))
        assert mine.work(COMBINE) == 1
        key = ReductionPart.objects.get().key
        helper._do(frozen)
        assert ReductionPart.objects.get().key == key
        there = [path.name for path in Path(storage.artifacts().path(mine.top)).iterdir()]
        assert sorted(there) == sorted([key.rpartition("/")[2], "plan.json"])


def test_a_helper_that_meets_an_error_gives_its_range_back_at_once(live_rows: Rows, spread: Any) -> None:
    spread()
    session = to_reduce(live_rows, "fedmedian")
    round_, owner = claimed(live_rows, session)
    ReductionPart.objects.create(round=round_, owner=owner, phase=COMBINE, begin=0, end=300)
    assert parts.help_reduce(round_.pk, owner) == 0  # there is no plan yet
    part = ReductionPart.objects.get()
    assert part.worker is None and part.until is None and not part.key


def test_an_attempt_killed_anywhere_leaves_the_round_to_the_next(live_rows: Rows, spread: Any) -> None:
    """One model, and nothing left of either attempt."""
    spread()
    for number in range(1, 400, 7):
        session = to_reduce(live_rows, "krum")
        round_ = live_rows.round(session)
        died = killed_at_statement(number, lambda: reduction.reduce_round(round_.pk))  # noqa: B023
        Round.objects.update(reduce_until=None)
        reduction.reduce_round(round_.pk)
        model_of(session)
        assert session.trail.count() == 1
        nothing_left_of(round_)
        if not died:
            assert number > 30, "it should have been killed in the middle"
            return


def test_what_an_attempt_whose_process_died_left_behind_goes_with_the_next(
    live_rows: Rows, spread: Any
) -> None:
    """SIGKILL runs no cleaning up: its rows and results are there, and a helper may still hold one."""
    wanted = in_turn(live_rows, "bulyan", spread)
    session = to_reduce(live_rows, "bulyan")
    round_, owner = claimed(live_rows, session)
    for phase in (parts.MEASURE, COMBINE):
        ReductionPart.objects.create(round=round_, owner=owner, phase=phase, begin=0, end=300)
    with contextlib.ExitStack() as stack:
        helper = attempt(round_, owner, stack)
        assert helper.work(parts.MEASURE) == 1
        held = helper._claim(COMBINE)
        Round.objects.update(reduce_until=None)
        reduction.reduce_round(round_.pk)
        assert held is not None
        with pytest.raises(FileNotFoundError):  # the plan it would go by is gone
            helper._do(held)
    assert model_of(session) == wanted
    nothing_left_of(round_)


class Overtaken(Attempt):
    """While it works, another attempt takes the round over."""

    def work(self, phase: str) -> int:
        with contextlib.ExitStack() as stack:
            attempt(self.inputs.round, uuid.uuid4(), stack)._clear()
        return super().work(phase)


def test_an_attempt_that_was_overtaken_gives_up_rather_than_wait(live_rows: Rows, spread: Any) -> None:
    spread()
    session = to_reduce(live_rows, "fedmedian")
    round_, owner = claimed(live_rows, session)
    with contextlib.ExitStack() as stack:
        overtaken = attempt(round_, owner, stack, Overtaken)
        with pytest.raises(parts.Superseded):
            overtaken.reduce(overtaken.folder / "model")


def test_a_helper_that_comes_when_all_is_done_does_nothing(live_rows: Rows, spread: Any) -> None:
    spread()
    session = to_reduce(live_rows, "fedmedian")
    round_ = live_rows.round(session)
    reduction.reduce_round(round_.pk)
    assert parts.help_reduce(round_.pk, uuid.uuid4()) == 0
    tasks.help_reduce(str(round_.pk), str(uuid.uuid4()))
    model_of(session)


@pytest.mark.s3
@pytest.mark.once
def test_of_updates_in_a_bucket_each_worker_fetches_its_ranges_only(
    live_rows: Rows, spread: Any, s3_bucket: Bucket
) -> None:
    wanted = in_turn(live_rows, "krum", spread)
    with use(s3_bucket.url):
        session = to_reduce(live_rows, "krum")
        round_ = live_rows.round(session)
        with contextlib.ExitStack() as stack:
            inputs = Inputs(Round.objects.select_related("input_model", "session").get(pk=round_.pk), stack)
            with inputs.collected_range(0, 300) as paths:
                assert len(paths) == CLIENTS
                holes = [path.stat().st_blocks * 512 < path.stat().st_size for path in paths]
                assert all(path.stat().st_size > 5000 for path in paths) and any(holes)
        with helping(round_, 1):
            tasks.reduce_round(str(round_.pk))
        assert model_of(session) == wanted
        assert storage.artifacts().listdir(f"updates/{round_.pk}") == ([], [])


@pytest.mark.s3
@pytest.mark.once
def test_a_deterministic_session_comes_to_the_same_bytes_from_a_bucket(
    live_rows: Rows, s3_bucket: Bucket
) -> None:
    def trained() -> str:
        lease = live_rows.lease()
        clients = live_rows.online(lease, "a", "b", "c")
        session = live_rows.running(min_clients=3, deterministic=True, seed=live_rows.model(numbers(99)))
        for place, client in enumerate(clients):
            live_rows.accept(
                lease, live_rows.task(session, client), arrays=numbers(place), examples=place + 1
            )
        assert live_rows.finish_share(lease) == [True]
        live_rows.reduce(session)
        return model_of(session)

    here = trained()
    with use(s3_bucket.url):
        assert trained() == here
