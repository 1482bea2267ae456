"""A running combiner: lease, hub, intake, shares and downloads. It knows no wire dialect."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from django.db import DatabaseError

from clients_app import presence
from clients_app.placement import draining_left
from clients_app.selectors import living_registration, registered_with
from clients_app.services import drain_combiner
from federation.combiner.connection import Identity
from federation.combiner.downloads import Downloads, Form
from federation.combiner.hub import Hub
from federation.combiner.intake import Intake
from federation.combiner.load import LoadMeter, Traffic
from federation.combiner.moving import Moving
from federation.combiner.shares import Shares
from federation.combiner.spool import Spool
from federation.combiner.staging import Staging
from federation.combiner.threads import in_lease, in_rows
from federation.sessions import assignments
from federation.sessions.assignments import ModelGrant, WorkGrant
from foundation.errors import StudioError
from foundation.throttles import TOKEN_FAILURES
from projects.actors import OPERATOR
from projects.tokens import tickets
from projects.tokens.choices import TokenKind
from projects.tokens.verify import verify

log = structlog.get_logger(__name__)

RENEW_S = 5.0
DRAIN_LOOK_S = 0.5
TOKEN_TRUST_S = 2.0  # how long a verified token is believed without a query
Proof = tuple[str | None, uuid.UUID | None]  # a token and who it is said to be; no token: a plain channel


@dataclass(frozen=True)
class CombinerConfig:
    """How a combiner is known: addresses as host:port, labels such as region. `lane`: host:port, or :port of the same
    host, where models travel without gRPC, beside the TLS address if `lane_tls`, else beside the plain one."""

    name: str
    version: str
    address: str = ""
    tls_address: str = ""
    labels: dict[str, Any] = field(default_factory=dict)
    lane: str = ""
    lane_tls: bool = False


class CombinerCore:
    """Everything behind the listeners. Start it, hand it to the dialects, and await `over`."""

    hub: Hub
    intake: Intake
    shares: Shares

    config: CombinerConfig

    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder / "spool")
        self.downloads = Downloads(folder / "models")
        self.staging = Staging(folder / "staged")
        self.traffic = Traffic()  # whoever moves a model's bytes says how many
        self._meter = LoadMeter(self.traffic)
        self._tasks: list[asyncio.Task[None]] = []
        self._trusted: dict[Proof, tuple[float, Identity]] = {}
        self._sifted_at = 0.0
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
        self.intake = Intake(
            self.spool,
            combiner_id,
            epoch,
            self.shares.accepted,
            self._superseded,
            self.downloads.open,
            self.hub.grant,
        )
        self.moving = Moving(self.hub, self.intake.uploading)
        for work in (
            self._renew_forever(),
            self.moving.move_forever(),
            self.hub.deliver_forever(),
            self.hub.flush_forever(),
            self.hub.listen_forever(),
            self.intake.acceptance.answer_forever(),
            self.shares.close_forever(),
            self.shares.sweeper.sweep_forever(),
            self.staging.sweep_forever(),
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
            load = self._load()
            if not await in_lease(
                presence.renew_lease, combiner_id=self.lease.combiner_id, epoch=self.lease.epoch, load=load
            ):
                self._superseded()
                return

    def _load(self) -> dict[str, Any]:
        connections = self.hub.connections.values()
        return self._meter.read(
            clients=len(connections),
            uploads=len(self.intake.uploading()),
            queue=self.intake.waiting + sum(connection.outbox.qsize() for connection in connections),
        )

    def _superseded(self) -> None:
        if not self.over.is_set():
            log.error("combiner.superseded", name=self.config.name, epoch=self.lease.epoch)
            self._end(f"A newer combiner named {self.config.name} is running; this one ends.")

    async def drain(self, most_s: float) -> bool:
        """Give all clients away and finish what was accepted before stopping; False: not done in so many seconds, and
        the rest is taken up when this combiner starts again on the same disk."""
        try:
            await in_rows(drain_combiner, self.config.name, actor=OPERATOR, stopping=True)
            await self.moving.stand()
            async with asyncio.timeout(most_s):
                while not self.over.is_set():
                    if (await in_rows(draining_left, self.config.name)).nothing:
                        return True
                    await asyncio.sleep(DRAIN_LOOK_S)
        except TimeoutError:
            log.warning("combiner.still_draining", name=self.config.name)
        except DatabaseError:  # away: nobody can be told, and what is accepted is on the disk
            log.exception("combiner.drain_failed")
        return False

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

    async def identify(self, secret: str, address: str, client_id: uuid.UUID | None = None) -> Identity:
        """The client behind a token; `client_id` is who the call says it is, needed with a token that is good for
        several. Raises StudioError 401; 429 once too many failed from that IP address."""
        if tickets.is_ticket(secret) and (secret, client_id) in self._trusted:
            tickets.read(secret)  # its hour may be over while its row lives on; costs no query
        return await self._believed((secret, client_id), _identify, secret, address, client_id)

    async def identify_registered(self, client_id: uuid.UUID, address: str) -> Identity:
        """A client on a plain channel that can carry no token, believed by its registration; else as `identify`."""
        return await self._believed((None, client_id), _identify_registered, client_id, address)

    async def _believed(self, proof: Proof, look: Callable[..., Identity], *args: Any) -> Identity:
        """A proof is good for two seconds, and as long as the client is attached: the hub's net sees dead tokens."""
        known = self._trusted.get(proof)
        now = time.monotonic()
        if known is not None and self._still_good(known, now):
            return known[1]
        if now - self._sifted_at > TOKEN_TRUST_S:
            self._sifted_at = now
            self._trusted = {
                key: entry for key, entry in self._trusted.items() if self._still_good(entry, now)
            }
        identity = await in_rows(look, *args)
        self._trusted[proof] = (now, identity)
        return identity

    def _still_good(self, known: tuple[float, Identity], now: float) -> bool:
        at, identity = known
        if now - at < TOKEN_TRUST_S:
            return True
        connection = self.hub.connections.get(identity.client_id)
        return connection is not None and connection.identity.token_id == identity.token_id

    def _distrust(self, token_ids: set[uuid.UUID]) -> None:
        self._trusted = {
            proof: known for proof, known in self._trusted.items() if known[1].token_id not in token_ids
        }

    async def grant_download(
        self, who: Identity, assignment_id: uuid.UUID, model_id: uuid.UUID, form: Form | None = None
    ) -> tuple[int, WorkGrant]:
        """An open file of the model that one of the client's own assignments names, in that form; the caller closes
        it. Raises StudioError 404, 503."""
        grant = await self.named_model(who, assignment_id, model_id)
        return await self.downloads.open(grant, form), grant

    async def named_model(self, who: Identity, assignment_id: uuid.UUID, model_id: uuid.UUID) -> WorkGrant:
        """Raises StudioError 404 unless that assignment is the client's own and names that model."""
        grant = self.hub.grant(who.client_id, assignment_id) or await in_rows(
            assignments.work_grant, who.client_id, assignment_id
        )
        if grant is None or grant.model_id != model_id:
            raise StudioError("not_found", "No assignment of this client names that model.", 404)
        return grant

    async def grant_model(
        self, who: Identity, model_id: uuid.UUID, form: Form | None = None
    ) -> tuple[int, ModelGrant]:
        """As `grant_download`, for a client that says only the model: one of its live tasks must name it."""
        grant = await in_rows(assignments.model_grant, who.client_id, model_id)
        if grant is None:
            raise StudioError("not_found", "No open task of this client names that model.", 404)
        return await self.downloads.open(grant, form), grant


def _counted(address: str, look: Callable[[], Identity]) -> Identity:
    try:
        return look()
    except StudioError:
        TOKEN_FAILURES.count(address)
        raise


def _identify(secret: str, address: str, client_id: uuid.UUID | None) -> Identity:
    return _counted(address, lambda: _client_of(secret, client_id))


def _identify_registered(client_id: uuid.UUID, address: str) -> Identity:
    return _counted(address, lambda: _registered(client_id))


def _client_of(secret: str, client_id: uuid.UUID | None) -> Identity:
    token = verify(secret)
    if token.kind == TokenKind.CLIENT and token.client is not None and token.project_id is not None:
        if client_id not in (None, token.client.pk):
            raise StudioError("wrong_token", "This token belongs to another client.", 401)
        return Identity(token.client.pk, token.project_id, token.pk, token.client.name)
    found = registered_with(token.pk, client_id) if client_id is not None else None
    if found is None:
        raise StudioError(
            "wrong_token_kind",
            "A combiner takes the tokens of clients, and others only from a client that registered with them.",
            401,
        )
    return Identity(found.client.pk, found.client.project_id, token.pk, found.client.name)


def _registered(client_id: uuid.UUID) -> Identity:
    found = living_registration(client_id)
    if found is None:
        raise StudioError(
            "not_registered", "No living registration has this client id: register the client again.", 401
        )
    return Identity(found.client.pk, found.client.project_id, found.token_id, found.client.name)
