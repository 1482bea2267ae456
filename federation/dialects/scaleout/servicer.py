"""Scaleout's gRPC, translated to the hub and the intake. Its clients poll for tasks; no rule lives here."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog

from clients_app.selectors import client_itself
from federation.combiner.calls import Context, caller_of
from federation.combiner.connection import Farewell, Identity
from federation.combiner.core import CombinerCore
from federation.combiner.encoded import Encoding, send_encoded
from federation.combiner.intake import Receipt
from federation.combiner.threads import in_files, in_rows
from federation.combiner.validations import take_validation
from federation.dialects.scaleout import reports
from federation.dialects.scaleout import scaleout_pb2 as wire
from federation.dialects.scaleout.containers import CONTAINER
from federation.dialects.scaleout.polling import TYPE_OF_COMMAND, Polled, Task
from federation.dialects.scaleout.scaleout_pb2_grpc import (
    CombinerClientServicer,
    ModelServiceServicer,
    add_CombinerClientServicer_to_server,
    add_ModelServiceServicer_to_server,
)
from federation.sessions import assignments, commands
from foundation.errors import StudioError

log = structlog.get_logger(__name__)
M = TypeVar("M")

MODELS = wire.DESCRIPTOR.services_by_name["ModelService"].full_name
CHUNK_BYTES = 4 << 20
CALL_IDLE_S = 120.0
RECORD_BATCH = 64
MISSED_POLLS = 3  # a client is gone when it has not polled for as many of its intervals …
SILENCE_S = (15.0, 600.0)  # … within these bounds
POLL_S = 5.0
# A client drops a record or fails a task at these; UNAVAILABLE it tries again, anything else ends it.
STATUS_OF_HTTP = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
}
STATUS_OF_RECEIPT = {
    "rejected": grpc.StatusCode.INVALID_ARGUMENT,
    "refused": grpc.StatusCode.OUT_OF_RANGE,
}


def register(core: CombinerCore, server: grpc.aio.Server) -> None:
    servicer = ScaleoutServicer(core)
    add_CombinerClientServicer_to_server(servicer, server)
    add_ModelServiceServicer_to_server(servicer, server)
    send_encoded(server, MODELS, "Download", servicer.Download, wire.ModelRequest.FromString)


def _chunk(_offset: int, data: bytes) -> bytes:
    return wire.FileChunk(data=data).SerializeToString()


async def refuse(context: Context, error: StudioError) -> None:
    code = STATUS_OF_HTTP.get(error.status, grpc.StatusCode.UNAVAILABLE)
    await context.abort(code, error.message, trailing_metadata=(("studio-code", error.code),))


async def refuse_unforeseen(context: Context, rpc: str) -> None:
    """A fault of ours. The client is told to come back: any other code would end it."""
    log.exception("scaleout.call_failed", rpc=rpc)
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Something went wrong on our side; try again later.")


def unary(rpc: Callable[[Any, Any, Context], Awaitable[M]]) -> Callable[[Any, Any, Context], Awaitable[M]]:
    """A refusal becomes the code that the client understands."""

    @functools.wraps(rpc)
    async def call(self: Any, request: Any, context: Context) -> M:
        try:
            return await rpc(self, request, context)
        except StudioError as error:
            await refuse(context, error)
        except (grpc.RpcError, grpc.aio.AbortError):
            raise
        except Exception:
            await refuse_unforeseen(context, rpc.__name__)
        raise AssertionError("abort raises")

    return call


def streaming(
    rpc: Callable[[Any, Any, Context], AsyncGenerator[M, None]],
) -> Callable[[Any, Any, Context], AsyncGenerator[M, None]]:
    @functools.wraps(rpc)
    async def call(self: Any, request: Any, context: Context) -> AsyncGenerator[M, None]:
        try:
            async with contextlib.aclosing(rpc(self, request, context)) as messages:
                async for message in messages:
                    yield message
        except StudioError as error:
            await refuse(context, error)
        except (grpc.RpcError, grpc.aio.AbortError):
            raise
        except Exception:
            await refuse_unforeseen(context, rpc.__name__)

    return call


class ScaleoutServicer(CombinerClientServicer, ModelServiceServicer):
    def __init__(self, core: CombinerCore) -> None:
        self.core = core
        self._polled: dict[uuid.UUID, Polled] = {}
        self._versions: dict[uuid.UUID, str] = {}  # said once, before the first poll

    async def _who(self, context: Context) -> Identity:
        """The caller, proven by the token in the call's metadata."""
        caller = caller_of(context)
        if not caller.secret:
            raise StudioError("no_token", "Send the client's token in the call's metadata.", 401)
        named = caller.metadata.get("client-id", "")
        client_id = reports.optional_uuid(named)
        if named and client_id is None:
            raise StudioError("bad_id", "client-id must be the UUID that the client registered by.", 401)
        return await self.core.identify(caller.secret, caller.address, client_id)

    # --- presence and tasks -----------------------------------------------------------------------------------
    @unary
    async def Announce(self, request: wire.ClientAnnounceRequest, context: Context) -> wire.Response:
        who = await self._who(context)
        match request.type:
            case "VersionCheck":
                self._polled.pop(who.client_id, None)  # a process begins: it holds nothing
                self._versions[who.client_id] = reports.version_in(request.parameters)
                answer = {"success": True, "version": self.core.config.version}
                return wire.Response(response="welcome", parameters=json.dumps(answer))
            case "Disconnect":
                polled = self._polled.pop(who.client_id, None)
                if polled is not None:
                    await self.core.hub.detach(polled.connection)
            case "Connect":
                self.core.hub.heard(who.client_id)
            case other:
                raise StudioError("unknown_announcement", f"This server does not know “{other[:40]}”.")
        return wire.Response(response="ok")

    @unary
    async def PollAndReportAsync(
        self, request: wire.ClientReport, context: Context
    ) -> wire.CombinerDirective:
        who = await self._who(context)
        held = {
            key for r in request.reports if not r.done and (key := reports.optional_uuid(r.correlation_id))
        }
        polled = await self._present(who, request, held)
        if request.reports:
            await reports.activities(self.core, polled, request.reports)
        tasks, over = polled.next_tasks(held)
        if over is not None:
            await self._end(polled, over)
        if request.skip_polling_tasks:
            tasks = [task for task in tasks if task.status]
        return wire.CombinerDirective(tasks=tasks)

    async def _present(self, who: Identity, request: wire.ClientReport, held: set[uuid.UUID]) -> Polled:
        """The client's connection, begun with its first poll and kept up by each."""
        connection = self.core.hub.heard(who.client_id)
        polled = self._polled.get(who.client_id)
        if polled is not None and polled.connection is connection:
            if connection.identity.token_id != who.token_id:  # a new ticket of the same client
                connection.identity = who
            return polled
        interval_s = request.poll_interval_ms / 1000 if request.HasField("poll_interval_ms") else POLL_S
        named = held | {
            key for r in request.reports if r.done and (key := reports.optional_uuid(r.correlation_id))
        }
        connection = await self.core.hub.attach(
            who,
            dialect="scaleout",
            version=await self._version(who),
            holds=named,
            takes=TYPE_OF_COMMAND,
            silence_s=min(max(MISSED_POLLS * interval_s, SILENCE_S[0]), SILENCE_S[1]),
        )
        polled = self._polled[who.client_id] = Polled(connection)
        if named:  # it goes on with what another combiner, or this one before a restart, gave it
            owed: list[Task] = [
                *await in_rows(assignments.owed, [who.client_id]),
                *await in_rows(commands.ordered, [who.client_id]),
            ]
            polled.given = {task.assignment_id: task for task in owed if task.assignment_id in named}
        self._forget_gone()
        return polled

    async def _version(self, who: Identity) -> str:
        """Said before this connection began, or, to a combiner that has restarted, before that."""
        if (said := self._versions.pop(who.client_id, "")) != "":
            return said
        known = await in_rows(client_itself, who.client_id)
        return known.version if known is not None else ""

    def _forget_gone(self) -> None:
        alive = self.core.hub.connections
        self._polled = {
            key: polled for key, polled in self._polled.items() if alive.get(key) is polled.connection
        }

    async def _end(self, polled: Polled, farewell: Farewell) -> None:
        self._polled.pop(polled.connection.identity.client_id, None)
        await self.core.hub.detach(polled.connection)
        status = 503 if farewell.retry or farewell.code == "replaced" else 401
        raise StudioError(farewell.code, f"The connection is over: {farewell.reason}.", status)

    @streaming
    async def TaskStream(
        self, request: wire.ClientAvailableMessage, context: Context
    ) -> AsyncGenerator[wire.TaskRequest, None]:
        """Pushed instead of polled for; the client says nothing of its tasks but their results."""
        who = await self._who(context)
        connection = await self.core.hub.attach(who, dialect="scaleout", version=await self._version(who))
        polled = self._polled[who.client_id] = Polled(connection)
        told: set[uuid.UUID] = set()
        try:
            while True:
                polled.take(await connection.outbox.get())
                tasks, over = polled.next_tasks(told)
                for task in tasks:
                    told.add(uuid.UUID(task.correlation_id))
                    self.core.hub.received(uuid.UUID(task.correlation_id))
                    yield task
                if over is not None:
                    status = 503 if over.retry else 401
                    raise StudioError(over.code, f"The stream is over: {over.reason}.", status)
        finally:
            await asyncio.shield(asyncio.ensure_future(self.core.hub.detach(connection)))

    @unary
    async def SendHeartbeat(self, request: wire.Heartbeat, context: Context) -> wire.Response:
        self.core.hub.heard((await self._who(context)).client_id)
        return wire.Response(response="ok")

    # --- records ----------------------------------------------------------------------------------------------
    @unary
    async def SendModelUpdate(self, request: wire.ModelUpdate, context: Context) -> wire.Response:
        who = await self._who(context)
        return await _answer(context, await reports.model_update(self.core, who, request))

    @unary
    async def SendModelValidation(self, request: wire.ModelValidation, context: Context) -> wire.Response:
        who = await self._who(context)
        task_id = reports.correlated(request.correlation_id)
        return await _answer(context, await take_validation(self.core.hub, who, task_id, request.data))

    @unary
    async def SendModelMetric(self, request: wire.ModelMetric, context: Context) -> wire.Response:
        who = await self._who(context)
        await reports.metrics(who, self._polled.get(who.client_id), request)
        return wire.Response(response="ok")

    @unary
    async def SendStatus(self, request: wire.Status, context: Context) -> wire.Response:
        await reports.status(await self._who(context), request)
        return wire.Response(response="ok")

    @unary
    async def SendBacklogReport(self, request: wire.BacklogReport, context: Context) -> wire.Response:
        self.core.hub.telemetry(reports.backlog(await self._who(context), request))
        return wire.Response(response="ok")

    @unary
    async def SendTelemetryMessage(self, request: wire.TelemetryMessage, context: Context) -> wire.Response:
        self.core.hub.telemetry(reports.telemetry_message(await self._who(context), request))
        return wire.Response(response="ok")

    @unary
    async def SendAttributeMessage(self, request: wire.AttributeMessage, context: Context) -> wire.Response:
        who = await self._who(context)
        values = {each.key[:60]: each.value for each in request.attributes[: reports.MAX_SERIES] if each.key}
        await reports.attributes(who, values)
        return wire.Response(response="ok")

    @streaming
    async def StreamTelemetryRecord(
        self, records: AsyncIterator[wire.TelemetryRecord], context: Context
    ) -> AsyncGenerator[wire.RecordAck, None]:
        who = await self._who(context)
        async for record in records:
            who = await self._who(context)  # each time: a stream outlives the token that opened it
            self.core.hub.telemetry(reports.telemetry_record(who, record))
            yield wire.RecordAck(record_ids=[record.telemetry_id])

    @streaming
    async def StreamAttributeRecord(
        self, records: AsyncIterator[wire.AttributeRecord], context: Context
    ) -> AsyncGenerator[wire.RecordAck, None]:
        who = await self._who(context)
        async for record in records:
            who = await self._who(context)
            await reports.attributes(who, reports.attribute_record(record))
            yield wire.RecordAck(record_ids=[record.attribute_id])

    @streaming
    async def StreamInferenceResult(
        self, records: AsyncIterator[wire.InferenceResult], context: Context
    ) -> AsyncGenerator[wire.RecordAck, None]:
        who = await self._who(context)
        async for record in records:
            who = await self._who(context)
            await reports.inference(who, record)
            yield wire.RecordAck(record_ids=[record.inference_result_id])

    # --- models -----------------------------------------------------------------------------------------------
    @unary
    async def Upload(self, chunks: AsyncIterator[wire.FileChunk], context: Context) -> wire.ModelResponse:
        """A container, kept under the id in its metadata until an update names it."""
        who = await self._who(context)
        metadata = caller_of(context).metadata
        key = metadata.get("model-id", "")
        if not key or len(key) > 200:
            raise StudioError(
                "no_model_id", "Send the id of the uploaded model as `model-id` in the metadata."
            )
        staged = await self.core.staging.begin(who, key)
        try:
            while (chunk := await _next(chunks)) is not None:
                await in_files(staged.write, chunk.data)
                self.core.traffic.received_bytes += len(chunk.data)
            said = metadata.get("checksum", "")
            if said and said.lower() != staged.sha256:
                raise StudioError(
                    "checksum", "The bytes that arrived do not have the checksum that was named."
                )
            await in_files(staged.whole)
        except TimeoutError:
            raise StudioError("idle", "Nothing arrived for too long; upload it again.", 503) from None
        finally:
            await asyncio.shield(asyncio.ensure_future(in_files(staged.drop)))
        return wire.ModelResponse(status=wire.OK, message="received")

    @streaming
    async def Download(self, request: wire.ModelRequest, context: Context) -> AsyncGenerator[bytes, None]:
        """The model in its container, of which the trailing metadata tells the SHA-256."""
        who = await self._who(context)
        model_id = reports.optional_uuid(request.model_id)
        if model_id is None:
            raise StudioError("bad_id", "model_id must be a UUID.")
        file, _grant = await self.core.grant_model(who, model_id, CONTAINER)
        try:
            async for message in self.core.downloads.encoded.messages(
                file, Encoding(f"scaleout {model_id}", _chunk)
            ):
                self.core.traffic.sent_bytes += len(message)
                yield message
            digest = await self.core.downloads.sha256_of(f"scaleout {model_id}", file)
            context.set_trailing_metadata((("checksum", digest),))
        finally:
            os.close(file)


async def _next(chunks: AsyncIterator[M]) -> M | None:
    async with asyncio.timeout(CALL_IDLE_S):
        return await anext(chunks, None)


async def _answer(context: Context, receipt: Receipt) -> wire.Response:
    if receipt.status in STATUS_OF_RECEIPT:
        await context.abort(STATUS_OF_RECEIPT[receipt.status], f"{receipt.status}: {receipt.reason}")
    return wire.Response(response=receipt.status)
