"""`/healthz`: this process answers. `/readyz`: it can do its work: database, migrations, Redis and storage.

Both are open to everyone, so they tell what is wrong in our own words and never repeat an address or an error text.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import redis
from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache

WAIT_S = 1.0
# a crowd of probes costs one look a second
KEEP_S = 1.0


@dataclass(frozen=True)
class Finding:
    """One check's result: a word for machines, a sentence for people."""

    ok: bool
    says: str


def _database() -> Finding:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
    finally:
        connection.close()
    return Finding(True, f"{connection.vendor} answers")


_migrated = threading.Event()


def _migrations() -> Finding:
    # what this process knows cannot grow, so once everything is applied it stays so
    if _migrated.is_set():
        return Finding(True, "none is pending")
    try:
        executor = MigrationExecutor(connection)
        pending = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    finally:
        connection.close()
    if pending:
        return Finding(False, f"{pending} pending: run manage.py migrate")
    _migrated.set()
    return Finding(True, "none is pending")


def _redis() -> Finding:
    client = redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=WAIT_S, socket_timeout=WAIT_S)
    try:
        client.ping()
    finally:
        client.close()
    return Finding(True, "answers")


def _storage() -> Finding:
    store = storages["artifacts"]
    name = f"health/{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    written = store.save(name, ContentFile(b"ready"))
    store.delete(written)
    return Finding(True, "a file was written and removed")


CHECKS: dict[str, Callable[[], Finding]] = {
    "database": _database,
    "migrations": _migrations,
    "redis": _redis,
    "storage": _storage,
}
REFUSALS = {
    "database": "the database refuses or cannot be reached: check DATABASE_URL",
    "migrations": "the applied migrations cannot be read from the database",
    "redis": "Redis refuses or cannot be reached: check REDIS_URL",
    "storage": "nothing can be written to the storage: check STORAGE_URL, its rights and its free space",
}


class Readiness:
    """Asks all checks at once, each for at most `WAIT_S`; one that hangs is not asked again until it returns."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=len(CHECKS), thread_name_prefix="readyz")
        self._running: dict[str, Future[Finding]] = {}
        self._lock = threading.Lock()
        self._found: dict[str, Finding] = {}
        self._found_at = float("-inf")

    def look(self) -> dict[str, Finding]:
        """Every check's finding, at most `KEEP_S` old."""
        with self._lock:
            if time.monotonic() - self._found_at > KEEP_S:
                self._found = self._ask(CHECKS)
                self._found_at = time.monotonic()
            return self._found

    def _ask(self, names: Iterable[str]) -> dict[str, Finding]:
        for name in names:
            if name not in self._running or self._running[name].done():
                self._running[name] = self._pool.submit(CHECKS[name])
        deadline = time.monotonic() + WAIT_S
        return {name: self._wait(name, deadline) for name in names}

    def _wait(self, name: str, deadline: float) -> Finding:
        try:
            return self._running[name].result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            return Finding(False, f"no answer within {WAIT_S:g} s")
        except Exception:  # whatever a driver raises may carry an address or a password
            return Finding(False, REFUSALS[name])


_readiness = Readiness()


@never_cache
async def healthz(_request: HttpRequest) -> HttpResponse:
    """200 as long as this process serves; it asks nobody else, so that a restart is only tried when it helps."""
    return HttpResponse("ok\n", content_type="text/plain")


@never_cache
def readyz(_request: HttpRequest) -> JsonResponse:
    """200 when everything this process needs answers, else 503 naming what does not."""
    found = _readiness.look()
    ready = all(finding.ok for finding in found.values())
    checks = {name: {"ok": finding.ok, "says": finding.says} for name, finding in found.items()}
    return JsonResponse({"ready": ready, "checks": checks}, status=200 if ready else 503)
