"""Hints: the one door for every wake-up, tick and push.

Rows are the truth, hints only shorten the wait: sent after commit, at most 0.2 s, never raising.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import uuid
from collections.abc import Coroutine
from typing import Any

import redis
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import transaction

log = logging.getLogger(__name__)

COMBINER_CHANNEL = "studio-wake-combiners"
PROCESS = uuid.uuid4().hex  # who says it: nobody is woken by what it said itself
_TIMEOUT_S = 0.2
_PUSH_TIMEOUT_S = 2.0  # nobody waits for a push: it has a loop of its own
_local = threading.local()


def _client() -> redis.Redis:
    client: redis.Redis | None = getattr(_local, "client", None)
    if client is None:
        client = redis.Redis.from_url(
            settings.REDIS_URL, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=None
        )
        _local.client = client
    return client


def _publish(channel: str, payload: dict[str, Any]) -> None:
    try:
        _client().publish(channel, json.dumps(payload))
    except (redis.RedisError, OSError) as error:
        log.warning("hint.lost channel=%s error=%s", channel, type(error).__name__)


def wake_combiners(client_ids: list[str], *, revoked: bool = False, ourselves: bool = False) -> None:
    """After commit: tell combiners that these clients' assignments changed, or that shares begin to close (no clients;
    the combiner of this process is told by its caller, unless `ourselves`), or that these clients' tokens were
    `revoked`."""
    said: dict[str, Any] = {"clients": client_ids} | ({"revoked": True} if revoked else {})
    if not client_ids and not ourselves:
        said["from"] = PROCESS
    transaction.on_commit(lambda: _publish(COMBINER_CHANNEL, said), robust=True)


def live_group(project_id: str) -> str:
    return f"live-{project_id}"


def push_events(project_id: str, events: list[dict[str, Any]]) -> None:
    """After commit: push event rows to the project's open pages, through the channel layer."""
    message = (
        {"type": "live.event", "event": events[0]}
        if len(events) == 1
        else {"type": "live.events", "events": events}
    )
    transaction.on_commit(lambda: _in_background(_group_send(live_group(project_id), message)), robust=True)


async def _group_send(group: str, message: dict[str, Any]) -> None:
    try:
        async with asyncio.timeout(_PUSH_TIMEOUT_S):
            await get_channel_layer().group_send(group, message)
    except Exception as error:  # whatever the layer raises, a hint never fails the deed
        log.warning("hint.lost group=%s error=%s", group, type(error).__name__)


_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()


def _in_background(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` on this process's one hint loop, which keeps the layer's connection open."""
    global _loop
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="hints", daemon=True).start()
    asyncio.run_coroutine_threadsafe(work, _loop)


def wake_session(session_id: str) -> None:
    """After commit: have a worker look at the session. Hints for one session coalesce until it is looked at."""
    transaction.on_commit(lambda: _enqueue_once(session_id), robust=True)


def _wake_key(session_id: str) -> str:
    return f"studio-woken:{session_id}"


def _enqueue_once(session_id: str) -> None:
    try:
        if not _client().set(_wake_key(session_id), "1", nx=True, ex=5):
            return
    except (redis.RedisError, OSError) as error:
        log.warning("hint.lost session=%s error=%s", session_id, type(error).__name__)
        return
    _send("federation.sessions.tasks.advance_session", session_id)


def looked_at(session_id: str) -> None:
    """Called before looking, so that a wake that comes meanwhile is never lost."""
    try:
        _client().delete(_wake_key(session_id))
    except (redis.RedisError, OSError):
        pass


def enqueue(task: str, *args: Any, queue: str | None = None) -> None:
    """Send a Celery task by name. Lost when the broker is away; the tick finds the work."""
    try:
        _client().ping()  # the transport would wait for seconds on a broker that does not answer
    except (redis.RedisError, OSError) as error:
        log.warning("hint.lost task=%s error=%s", task, type(error).__name__)
        return
    _send(task, *args, queue=queue)


def _send(task: str, *args: Any, queue: str | None = None) -> None:
    """To a broker that has just answered."""
    from celery import current_app

    try:
        current_app.send_task(task, args=args, **({"queue": queue} if queue else {}), retry=False)
    except Exception as error:  # whatever the transport raises, a hint never fails the deed
        log.warning("hint.lost task=%s error=%s", task, type(error).__name__)
