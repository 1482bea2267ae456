"""Hints: they shorten the wait, and are never needed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
import redis
from django.conf import settings
from django.db import connection, transaction

from federation.sessions import engine
from foundation import hints
from tests.rounds.rows import Rows


@pytest.fixture
def queue(redis_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url)
    client.flushdb()
    yield client
    client.close()


def waiting(queue: redis.Redis) -> int:
    return sum(int(queue.llen(key)) for key in queue.scan_iter("*default") if queue.type(key) == b"list")


@pytest.fixture
def frozen_redis(redis_url: str) -> Iterator[None]:
    client = redis.Redis.from_url(redis_url)
    pid = client.info("server")["process_id"]
    assert "valkey" in psutil.Process(pid).name() or "redis" in psutil.Process(pid).name()
    hints.enqueue("studio.nothing")  # the pool has an open connection
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
        client.flushdb()
        client.close()


@pytest.mark.django_db(transaction=True)
def test_hints_of_one_session_coalesce_until_it_is_looked_at(live_rows: Rows, queue: redis.Redis) -> None:
    """Hints coalesce through one Redis key per session, deleted *before* looking, so a wake that comes while
    another runs is never lost."""
    session = live_rows.session(start=False)
    for _ in range(50):
        hints.wake_session(str(session.pk))
    assert waiting(queue) == 1
    engine.advance(session.pk)  # looks: from here on a wake counts again
    hints.wake_session(str(session.pk))
    assert waiting(queue) == 2


@pytest.mark.django_db(transaction=True)
def test_a_hint_is_sent_on_commit_and_never_for_what_was_rolled_back(
    live_rows: Rows, queue: redis.Redis
) -> None:
    """One function sends every hint: on commit."""
    session = live_rows.session(start=False)
    with transaction.atomic():
        hints.wake_session(str(session.pk))
        assert waiting(queue) == 0
    assert waiting(queue) == 1
    engine.advance(session.pk)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        hints.wake_session(str(session.pk))
        raise ZeroDivisionError
    assert waiting(queue) == 1


HINTS: dict[str, Callable[[], None]] = {
    "a session's wake": lambda: hints.wake_session("11111111-1111-1111-1111-111111111111"),
    "a combiner's wake": lambda: hints.wake_combiners(["x"]),
    "a task": lambda: hints.enqueue("federation.sessions.tasks.reduce_round", "x", queue="reduce"),
    "a push": lambda: hints.push_events("p", [{"id": 1}]),
    "a look": lambda: hints.looked_at("x"),
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", HINTS)
def test_a_redis_that_does_not_answer_costs_a_hint_a_moment_and_no_error(
    live_rows: Rows, frozen_redis: None, name: str
) -> None:
    """at most 0.2 s, never raising. Redis away costs delay only."""
    started = time.monotonic()
    HINTS[name]()
    assert time.monotonic() - started < 1.0  # 0.2 s to connect, 0.2 s to answer, and a busy machine


@pytest.mark.once
@pytest.mark.skipif(connection.vendor != "sqlite", reason="how SQLite is opened")
def test_sqlite_waits_for_its_turn_and_syncs_at_checkpoints() -> None:
    """SQLite `synchronous=NORMAL` in WAL; no request-wide transactions."""
    options = settings.DATABASES["default"]["OPTIONS"]
    assert options["transaction_mode"] == "IMMEDIATE" and options["timeout"] >= 30
    assert "journal_mode=WAL" in options["init_command"] and "synchronous=NORMAL" in options["init_command"]
    assert not settings.DATABASES["default"].get("ATOMIC_REQUESTS")
