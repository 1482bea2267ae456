"""Redis: any, and flushed. Nothing lost; at most the tick's delay."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from federation.sessions.models import Session
from tests.rig import Rig
from tests.rounds.rows import assert_same, mean, update
from tests.services import valkey
from tests.services.environment import free_port
from tests.wire_client import ACCEPTED, WireClient

pytestmark = pytest.mark.django_db(transaction=True)


class OwnRedis:
    """A Redis that the test may kill; the processes that it starts use it, the test itself does not."""

    def __init__(self, folder: Path) -> None:
        self.url = f"redis://:{secrets.token_hex(8)}@127.0.0.1:{free_port()}/0"
        self._log = folder / "own-valkey.log"
        self._child: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._child = valkey.start(self.url, self._log)

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def flush(self) -> None:
        client = redis.Redis.from_url(self.url)
        client.flushall()
        client.close()


@pytest.fixture
def own_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnRedis]:
    made = OwnRedis(tmp_path)
    monkeypatch.setenv("REDIS_URL", made.url)
    yield made
    made.kill()


def play(wires: list[WireClient], number: int) -> None:
    for wire, value, examples in zip(wires, (number, number + 4), (1, 3), strict=True):
        task = wire.next_task(timeout=30)
        assert task.round == number
        assert wire.upload(task, update(value), num_examples=examples).status == ACCEPTED


def federation(rig: Rig, rounds: int) -> tuple[Session, list[WireClient]]:
    combiner = rig.combiner()
    rig.supervised(rig.worker)
    rig.supervised(rig.beat)
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "ab"]
    return rig.session(rounds=rounds, min_clients=2), wires


def ends_well(rig: Rig, session: Session, wires: list[WireClient], rounds: int) -> None:
    rig.until_session(session, "finished")
    assert list(session.trail.order_by("id").values_list("round_number", flat=True)) == list(
        range(1, rounds + 1)
    )
    assert_same(rig.arrays_of(session.current_model), mean([(update(rounds), 1), (update(rounds + 4), 3)]))
    assert not any(wire.over.is_set() for wire in wires)  # no stream was dropped


def test_a_redis_that_is_flushed_killed_and_started_again_loses_nothing(
    rig: Rig, own_redis: OwnRedis
) -> None:
    """Redis, any, and flushed: nothing lost; at most the tick's delay. Updates are accepted while it is away, and
    the rounds go on when it is back."""
    session, wires = federation(rig, 4)
    play(wires, 1)
    own_redis.flush()
    play(wires, 2)
    tasks = [wire.next_task(timeout=30) for wire in wires]
    own_redis.kill()
    for wire, task, value in zip(wires, tasks, (3, 7), strict=True):
        assert wire.upload(task, update(value), num_examples=value).status == ACCEPTED
    own_redis.start()
    play(wires, 4)
    ends_well(rig, session, wires, 4)
