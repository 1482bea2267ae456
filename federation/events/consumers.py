"""The live socket of a project: first what was missed, then each event as it happens."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs

from channels.auth import get_user
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.http import HttpRequest

from federation.events.selectors import missed
from federation.events.wire import as_wire, rendered
from foundation.errors import StudioError
from foundation.hints import live_group
from foundation.throttles import TOKEN_FAILURES, address_of
from projects.actors import ANONYMOUS, Actor
from projects.models import Project
from projects.selectors import project_by_slug
from projects.tokens.verify import actor_for, verify

log = logging.getLogger(__name__)

CLOSE_NOT_LOGGED_IN = 4401
CLOSE_NOT_YOURS = 4404
CLOSE_TOO_SLOW = 4408  # reconnect and catch up
MAX_CATCH_UP = 1000
MAX_BACKLOG = 2000
RECHECK_S = 5.0


class ProjectEvents(AsyncWebsocketConsumer):  # type: ignore[misc]
    """`/ws/projects/<slug>/events/?after=<event id>`. Nothing that the browser sends is read.

    The right to listen is asked again every 5 s, with a look for events whose push was lost. A browser that does not
    read is cut off once its backlog is full.
    """

    async def connect(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.known: OrderedDict[int, None] = OrderedDict()
        self.backlog: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_BACKLOG)
        self.too_slow = False
        self.newest = _after(self.scope)
        self.project: Project | None = None
        await self.accept()  # a close code is only seen on an open socket
        self.project = await self._admitted()
        if self.project is None:
            return
        # joined before looking: what happens meanwhile waits in this consumer's queue
        await self.channel_layer.group_add(live_group(str(self.project.pk)), self.channel_name)
        await self._catch_up()
        self.tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._watch())]

    async def disconnect(self, code: int) -> None:
        for task in self.tasks:
            task.cancel()
        if self.project is not None:
            await self.channel_layer.group_discard(live_group(str(self.project.pk)), self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """The socket speaks in one direction."""

    async def live_event(self, message: dict[str, Any]) -> None:
        """A push from `foundation.hints.push_events`."""
        await self._offer(message["event"])

    async def live_events(self, message: dict[str, Any]) -> None:
        """Several that happened together."""
        for event in message["events"]:
            await self._offer(event)

    async def _admitted(self) -> Project | None:
        """The project, if the caller is somebody who may see it; else the socket closes."""
        try:
            actor = await self._actor()
        except StudioError:
            actor = ANONYMOUS
        if actor.is_anonymous:
            await self.close(CLOSE_NOT_LOGGED_IN)
            return None
        try:
            slug = self.scope["url_route"]["kwargs"]["slug"]
            project: Project = await _in_thread(project_by_slug)(actor, slug)
            return project
        except StudioError:
            await self.close(CLOSE_NOT_YOURS)
            return None

    async def _actor(self) -> Actor:
        """Who holds the socket, asked of the database each time. Raises StudioError for a bad token."""
        headers = dict(self.scope["headers"])
        shown = headers.get(b"authorization", b"").decode("latin-1")
        if shown:
            actor: Actor = await _in_thread(_bearer)(shown, (self.scope.get("client") or ("", 0))[0])
            return actor
        session = self.scope.get("session")
        if session is None or not session.session_key:
            return ANONYMOUS
        store = import_module(settings.SESSION_ENGINE).SessionStore(session.session_key)
        return Actor.of_user(await get_user({"session": store}))

    async def _watch(self) -> None:
        """Ask again for the right, and for events whose push was lost."""
        while True:
            await asyncio.sleep(RECHECK_S * random.uniform(0.8, 1.0))
            if self.too_slow:
                return
            try:
                if await self._admitted() is None:
                    return
                await self._catch_up()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # the database is away: keep the socket, ask again
                log.warning("live.recheck_failed %s", type(error).__name__)

    async def _catch_up(self) -> None:
        assert self.project is not None
        rows = await _in_thread(missed)(self.project.pk, after=self.newest, at_most=MAX_CATCH_UP)
        for row in rows:
            await self._offer(as_wire(row))

    async def _offer(self, event: dict[str, Any]) -> None:
        """Queue an event that this socket has not had yet."""
        number = int(event["id"])
        if number in self.known:
            return
        if self.backlog.full():
            await self._cut_off()
            return
        self.known[number] = None
        if len(self.known) > MAX_CATCH_UP + MAX_BACKLOG:
            self.known.popitem(last=False)
        self.newest = max(self.newest, number)
        self.backlog.put_nowait(event)

    async def _cut_off(self) -> None:
        """Leave the group first: the close itself waits until the browser reads, or the keepalive gives it up."""
        if self.too_slow or self.project is None:
            return
        self.too_slow = True
        await self.channel_layer.group_discard(live_group(str(self.project.pk)), self.channel_name)
        self.tasks.append(asyncio.create_task(self.close(CLOSE_TOO_SLOW)))

    async def _write(self) -> None:
        while True:
            await self.send(text_data=rendered(await self.backlog.get()))


def _in_thread(function: Any) -> Any:
    """Sockets ask the database on threads of their own, not on the one that pages queue for."""
    return database_sync_to_async(function, thread_sensitive=False)


def _bearer(shown: str, address: str) -> Actor:
    scheme, _, secret = shown.partition(" ")
    try:
        if scheme.lower() != "bearer":
            raise StudioError("invalid_token", "Show a token as: Authorization: Bearer stu_…", 401)
        return actor_for(verify(secret.strip()))
    except StudioError:
        request = HttpRequest()
        request.META["REMOTE_ADDR"] = address
        TOKEN_FAILURES.count(address_of(request))
        raise


def _after(scope: dict[str, Any]) -> int:
    """The last event id that the page has."""
    given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("after", ["0"])[0]
    return min(int(given), 2**62) if given.isascii() and given.isdecimal() and len(given) < 20 else 0
