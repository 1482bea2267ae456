"""A running combiner: lease, hub, intake, shares and downloads. It knows no wire dialect."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from clients_app import presence
from federation.combiner.connection import Identity
from federation.combiner.downloads import Downloads
from federation.combiner.hub import Hub
from federation.combiner.intake import Intake
from federation.combiner.shares import Shares
from federation.combiner.spool import Spool
from federation.combiner.threads import in_rows
from federation.sessions import assignments
from foundation.errors import StudioError
from foundation.throttles import TOKEN_FAILURES
from projects.tokens.choices import TokenKind
from projects.tokens.verify import verify

log = structlog.get_logger(__name__)

RENEW_S = 5.0
TOKEN_TRUST_S = 2.0  # how long a verified token is believed without a query


@dataclass(frozen=True)
class CombinerConfig:
    """How a combiner is known: addresses as host:port, labels such as region."""

    name: str
    version: str
    address: str = ""
    tls_address: str = ""
    labels: dict[str, Any] = field(default_factory=dict)


class CombinerCore:
    """Everything behind the listeners. Start it, hand it to the dialects, and await `over`."""

    hub: Hub
    intake: Intake
    shares: Shares

    config: CombinerConfig

    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder / "spool")
        self.downloads = Downloads(folder / "models")
        self._tasks: list[asyncio.Task[None]] = []
        self._trusted: dict[str, tuple[float, Identity]] = {}
        self.over = asyncio.Event()
        self.why = ""

    async def start(self, config: CombinerConfig) -> None:
        """Take the lease (a new epoch), own up to a lost disk, and begin to work."""
        self.config = config
        self.lease = await in_rows(
            presence.start_combiner,
            name=config.name,
            spool_id=self.spool.spool_id,
            address=config.address,
            tls_address=config.tls_address,
            labels=config.labels,
            version=config.version,
        )
        if self.lease.lost_spool:
            await in_rows(assignments.lose_disk, self.lease.combiner_id)
        combiner_id, epoch = self.lease.combiner_id, self.lease.epoch
        self.shares = Shares(self.spool, combiner_id, epoch)
        self.hub = Hub(self.lease, on_wake=self.shares.look.set, on_dead_tokens=self._distrust)
        self.intake = Intake(self.spool, combiner_id, epoch, self.shares.accepted, self._superseded)
        for work in (
            self._renew_forever(),
            self.hub.deliver_forever(),
            self.hub.flush_forever(),
            self.hub.listen_forever(),
            self.intake.accept_forever(),
            self.shares.close_forever(),
            self.shares.sweep_forever(),
        ):
            self._tasks.append(asyncio.create_task(self._kept_alive(work)))
        log.info("combiner.started", name=config.name, epoch=epoch)

    async def _kept_alive(self, work: Coroutine[Any, Any, None]) -> None:
        """A fault in one of the loops ends the combiner: it is started again with everything in the rows."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException:
            log.exception("combiner.loop_failed")
            self._end("One of the combiner's loops failed; the log says how.")

    def _end(self, why: str) -> None:
        self.why = why
        self.over.set()

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            load = {"clients": len(self.hub.connections)}
            if not await in_rows(
                presence.renew_lease, combiner_id=self.lease.combiner_id, epoch=self.lease.epoch, load=load
            ):
                self._superseded()
                return

    def _superseded(self) -> None:
        if not self.over.is_set():
            log.error("combiner.superseded", name=self.config.name, epoch=self.lease.epoch)
            self._end(f"A newer combiner named {self.config.name} is running; this one ends.")

    async def stop(self) -> None:
        """Bid the clients farewell, end the lease, let go of the spool."""
        self.hub.farewell("combiner_stopping", "this combiner is stopping; connect again")
        await asyncio.sleep(0.2)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self.over.is_set():
            async with asyncio.timeout(3):
                await self.hub.flush()
                await in_rows(presence.end_lease, combiner_id=self.lease.combiner_id, epoch=self.lease.epoch)
        self.spool.close()

    async def identify(self, secret: str, address: str) -> Identity:
        """The client behind a token. Raises StudioError 401; 429 once too many failed from that IP address."""
        known = self._trusted.get(secret)
        now = time.monotonic()
        if known is not None and now - known[0] < TOKEN_TRUST_S:
            return known[1]
        self._trusted = {key: entry for key, entry in self._trusted.items() if now - entry[0] < TOKEN_TRUST_S}
        identity = await in_rows(_identify, secret, address)
        self._trusted[secret] = (now, identity)
        return identity

    def _distrust(self, token_ids: set[uuid.UUID]) -> None:
        self._trusted = {
            secret: known for secret, known in self._trusted.items() if known[1].token_id not in token_ids
        }

    async def grant_download(
        self, who: Identity, assignment_id: uuid.UUID, model_id: uuid.UUID
    ) -> tuple[int, Any]:
        """An open file of the model that one of the client's own assignments names."""
        grant = await in_rows(assignments.work_grant, who.client_id, assignment_id)
        if grant is None or grant.model_id != model_id:
            raise StudioError("not_found", "No assignment of this client names that model.", 404)
        return await self.downloads.open(grant), grant


def _identify(secret: str, address: str) -> Identity:
    try:
        return _client_of(secret)
    except StudioError:
        TOKEN_FAILURES.count(address)
        raise


def _client_of(secret: str) -> Identity:
    token = verify(secret)
    if token.kind != TokenKind.CLIENT or token.client is None or token.project_id is None:
        raise StudioError(
            "wrong_token_kind", "A combiner takes client tokens only; create a client for this one.", 401
        )
    return Identity(token.client.pk, token.project_id, token.pk, token.client.name)
