"""Blocking work off the event loop: rows in one pool, files and numbers in another."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError, close_old_connections, connection

log = structlog.get_logger(__name__)
T = TypeVar("T")

# SQLite has one writer at a time: more threads would only hold more page caches
ROW_THREADS = 2 if "sqlite" in settings.DATABASES["default"]["ENGINE"] else 4
FILE_THREADS = 3
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0

_rows = ThreadPoolExecutor(ROW_THREADS, thread_name_prefix="rows")
_lease = ThreadPoolExecutor(1, thread_name_prefix="lease")
_files = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="files")
_syncs = ThreadPoolExecutor(2, thread_name_prefix="syncs")  # they wait for the disk, not for a core


def _with_connection(work: Callable[[], T]) -> T:
    try:
        return work()
    finally:
        if connection.vendor != "sqlite":  # give a pooled connection back; SQLite's costs nothing to keep
            close_old_connections()


def _drop_connection() -> None:
    connection.close()


async def in_rows(work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run a service or selector in a thread. A database that is away is waited for, with backoff:
    streams stay open, and nothing already acknowledged is refused."""
    return await _patiently(_rows, lambda: work(*args, **kwargs), getattr(work, "__name__", "?"))


async def in_lease(work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """As `in_rows`, in a thread of its own: whatever thousands of clients do at once, the lease is renewed in time."""
    return await _patiently(_lease, lambda: work(*args, **kwargs), getattr(work, "__name__", "?"))


async def _patiently(pool: ThreadPoolExecutor, work: Callable[[], T], name: str) -> T:
    loop = asyncio.get_running_loop()
    wait = FIRST_WAIT_S
    while True:
        try:
            return await loop.run_in_executor(pool, _with_connection, work)
        except (OperationalError, InterfaceError) as error:
            log.warning("database.away", work=name, error=str(error)[:200])
            await loop.run_in_executor(pool, _drop_connection)
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(wait * 2, LONGEST_WAIT_S)


async def in_files(work: Callable[..., T], *args: Any) -> T:
    """Run file or numeric work in a thread."""
    return await asyncio.get_running_loop().run_in_executor(_files, work, *args)


async def in_syncs(work: Callable[..., T], *args: Any) -> T:
    """Run what only waits for the disk in a thread of its own."""
    return await asyncio.get_running_loop().run_in_executor(_syncs, work, *args)
