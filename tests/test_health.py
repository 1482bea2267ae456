"""`/healthz` and `/readyz` answer truthfully, quickly, and without secrets."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.db import connection
from django.test import Client

from studio import health
from tests.services.fixtures import Bucket

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def fresh_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_readiness", health.Readiness())
    monkeypatch.setattr(health, "_migrated", threading.Event())


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that accepts and never says a word."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield silent.getsockname()[1]


def artifacts(url: str, settings: object) -> None:
    from studio.settings import _storage

    stores = {**settings.STORAGES, "artifacts": _storage(url)}  # type: ignore[attr-defined]
    settings.STORAGES = stores  # type: ignore[attr-defined]


def test_healthz_answers_while_everything_else_is_away(client: Client, settings: object) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:9/0"  # type: ignore[attr-defined]
    assert client.get("/healthz").status_code == 200


def test_readyz_is_200_when_all_four_answer(client: Client) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 200, answer.content
    assert set(answer.json()["checks"]) == {"database", "migrations", "redis", "storage"}
    assert answer["Cache-Control"].startswith("max-age=0")


def test_readyz_names_a_redis_that_is_away_and_no_password(client: Client, settings: object) -> None:
    settings.REDIS_URL = "redis://:hunter2-secret@127.0.0.1:9/0"  # type: ignore[attr-defined]
    answer = client.get("/readyz")
    assert answer.status_code == 503
    checks = answer.json()["checks"]
    assert not checks["redis"]["ok"] and checks["database"]["ok"]
    assert "REDIS_URL" in checks["redis"]["says"]
    assert b"hunter2" not in answer.content and b"127.0.0.1" not in answer.content


def test_readyz_does_not_wait_for_a_redis_that_hangs(
    client: Client, settings: object, silent_port: int
) -> None:
    settings.REDIS_URL = f"redis://127.0.0.1:{silent_port}/0"  # type: ignore[attr-defined]
    start = time.monotonic()
    answer = client.get("/readyz")
    assert time.monotonic() - start < health.WAIT_S + 1
    assert answer.status_code == 503


def test_readyz_counts_pending_migrations(client: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, app, name FROM django_migrations ORDER BY id DESC LIMIT 1")
        row = cursor.fetchone()
        cursor.execute("DELETE FROM django_migrations WHERE id = %s", [row[0]])
    try:
        answer = client.get("/readyz")
    finally:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO django_migrations (id, app, name, applied) VALUES (%s, %s, %s, CURRENT_TIMESTAMP)",
                row,
            )
    assert answer.status_code == 503
    assert answer.json()["checks"]["migrations"]["says"].startswith("1 pending")


def test_readyz_sees_storage_that_cannot_be_written(client: Client, settings: object, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    artifacts(f"file://{tmp_path}/a-file/artifacts", settings)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "STORAGE_URL" in answer.json()["checks"]["storage"]["says"]


@pytest.mark.s3
def test_readyz_writes_to_s3_and_sees_a_refused_signature(
    client: Client,
    settings: object,
    s3_bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[..., object],
) -> None:
    monkeypatch.setattr(health, "KEEP_S", 0.0)
    artifacts(s3_bucket.url, settings)
    # a machine that is busy with other tests may not answer a probe within its second
    wait_until(lambda: client.get("/readyz").status_code == 200, what="storage to answer")
    artifacts(s3_bucket.url.replace(s3_bucket.secret, "wrong"), settings)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert not answer.json()["checks"]["storage"]["ok"]


def test_a_crowd_of_probes_costs_one_look(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setitem(
        health.CHECKS, "redis", lambda: looks.append(os.getpid()) or health.Finding(True, "x")
    )
    for _ in range(5):
        client.get("/readyz")
    assert len(looks) == 1
