"""FEDn's gRPC, translated to the hub and the intake.

A FEDn client dies of every status but UNAVAILABLE, CANCELLED and OK. So a refusal answers OK and leaves an event,
"later" is UNAVAILABLE, and only a client that is not, or no longer, welcome gets UNAUTHENTICATED.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import uuid
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

import grpc
import structlog

from federation.combiner.attributes import take_attributes
from federation.combiner.calls import Context, caller_of
from federation.combiner.connection import Cancel, Farewell, Identity
from federation.combiner.core import CombinerCore
from federation.combiner.encoded import Encoding, send_encoded
from federation.combiner.intake import Receipt
from federation.combiner.reported import (
    MAX_LOG_CHARS,
    MAX_NAME_CHARS,
    MAX_VALIDATION_BYTES,
    finite_series,
    json_object,
    telemetry_samples,
)
from federation.combiner.threads import in_files, in_rows
from federation.combiner.validations import take_validation
from federation.dialects.fedn import fedn_pb2 as wire
from federation.dialects.fedn import fedn_pb2_grpc as rpc
from federation.dialects.fedn import formats, tasks
from federation.events.services import publish
from federation.models.selectors import helper_in
from federation.sessions import assignments, commands
from federation.sessions.assignments import Owed
from federation.sessions.choices import OrderStatus
from federation.sessions.commands import Ordered
from foundation.errors import StudioError

log = structlog.get_logger(__name__)
T = TypeVar("T")

MODELS = wire.DESCRIPTOR.services_by_name["ModelService"].full_name
MAX_CHUNK_BYTES = 2 << 20  # clients send 1 MiB
CALL_IDLE_S = 120.0
MAX_ATTRIBUTES = 50
LEVELS = {wire.DEBUG: "debug", wire.WARNING: "warning", wire.ERROR: "error"}


def register(core: CombinerCore, server: grpc.aio.Server) -> None:
    models = FednModels(core)
    rpc.add_CombinerServicer_to_server(FednCombiner(core), server)
    rpc.add_ConnectorServicer_to_server(FednConnector(core), server)
    rpc.add_ModelServiceServicer_to_server(models, server)
    send_encoded(server, MODELS, "Download", models.Download, wire.ModelRequest.FromString)


def _chunk(model_id: str, _offset: int, data: bytes) -> bytes:
    return wire.ModelResponse(data=data, id=model_id, status=wire.IN_PROGRESS).SerializeToString()


class _Service:
    """Who calls. Over TLS a token proves it; a plain channel carries none, and the client's registration must do."""

    def __init__(self, core: CombinerCore) -> None:
        self.core = core

    async def _who(self, context: Context) -> Identity:
        caller = caller_of(context)
        client_id = tasks.as_id(caller.metadata.get("client"))
        if client_id is None:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "The call names no client id that is a UUID."
            )
        if not caller.secret and caller.tls:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "Over TLS a token is required. FEDn sends it on port 443 only; for an authority of your own set "
                "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH instead of FEDN_GRPC_ROOT_CERT_PATH.",
            )
        assert client_id is not None
        if caller.secret:
            return await _or_abort(
                context, self.core.identify(caller.secret, caller.address, client_id=client_id)
            )
        return await _or_abort(context, self.core.identify_registered(client_id, caller.address))

    def _said(self, text: str = "") -> wire.Response:
        return wire.Response(
            sender=wire.Client(role=wire.COMBINER, name=self.core.config.name), response=text[:1000]
        )

    async def _note(
        self, who: Identity, kind: str, message: str, level: str = "warning", **data: str
    ) -> None:
        await in_rows(
            publish, project_id=who.project_id, client_id=who.client_id, kind=kind, message=message, level=level, **data
        )  # fmt: skip


def said_of(receipt: Receipt) -> str:
    return f"{receipt.status}: {receipt.reason}" if receipt.reason else receipt.status


async def _or_abort(context: Context, work: Awaitable[T]) -> T:
    """The result, or the status that this client understands."""
    try:
        return await work
    except StudioError as error:
        unwelcome = error.status == 401
        code = grpc.StatusCode.UNAUTHENTICATED if unwelcome else grpc.StatusCode.UNAVAILABLE
        await context.abort(code, error.message)
        raise AssertionError("abort raises") from None


class FednCombiner(_Service, rpc.CombinerServicer):
    async def TaskStream(
        self, request: wire.ClientAvailableMessage, context: Context
    ) -> AsyncIterator[wire.TaskRequest]:
        """Open as long as the client is welcome: one that ends normally ends the client's process."""
        who = await self._who(context)
        connection = await _or_abort(
            context, self.core.hub.attach(who, dialect="fedn", version="", takes=tasks.TYPE_OF_COMMAND)
        )
        try:
            await context.send_initial_metadata((("studio-combiner", self.core.config.name),))
            while True:
                match await connection.outbox.get():
                    case (Owed() | Ordered()) as task:
                        yield tasks.task_request(task, self.core.config.name)
                    case Cancel():
                        pass  # FEDn knows no way to stop a client; its update will be refused
                    case Farewell() as farewell:
                        await context.abort(
                            grpc.StatusCode.UNAVAILABLE
                            if farewell.retry
                            else grpc.StatusCode.UNAUTHENTICATED,
                            farewell.reason,
                        )
        finally:
            await asyncio.shield(self.core.hub.detach(connection))

    async def SendModelUpdate(self, request: wire.ModelUpdate, context: Context) -> wire.Response:
        who = await self._who(context)
        answer = tasks.answer_of(request)
        if answer.assignment_id is None:
            await self._note(who, "update.refused", f"An update of {who.name} named no assignment.")
            return self._said("refused: the update names no assignment")
        said = await _or_abort(
            context, self._take(who, answer.assignment_id, request.model_update_id, answer)
        )
        self.core.hub.done(who.client_id, answer.assignment_id)
        return self._said(said)

    async def _take(
        self, who: Identity, assignment_id: uuid.UUID, update_id: str, answer: tasks.Answer
    ) -> str:
        file = await self.core.staging.find(who, update_id)
        try:
            if file is None:
                return await self._not_there(who, assignment_id)
            receipt = await self.core.intake.adopt(
                who,
                assignment_id,
                file,
                num_examples=answer.num_examples,
                metadata_json=json.dumps(answer.metadata),
                unwrap=formats.unwrapping(await in_rows(helper_in, who.project_id)),
            )
        except StudioError as error:
            if error.status == 503:
                raise
            await self._note(who, "update.refused", f"An update of {who.name} was refused: {error.message}")
            return f"refused: {error.message}"
        await self.core.staging.discard(file)
        return said_of(receipt)

    async def _not_there(self, who: Identity, assignment_id: uuid.UUID) -> str:
        """A second copy has its answer; else the file was too large, or came more than ten minutes before its name."""
        found = await self.core.intake.look(who, assignment_id, now=True)
        if not isinstance(found, assignments.WorkGrant):
            return found.status
        reason = "the file of this update did not arrive, was too large, or was sent too long ago"
        await self.core.intake.reject(who, found, reason)
        return f"rejected: {reason}"

    async def SendModelValidation(self, request: wire.ModelValidation, context: Context) -> wire.Response:
        who = await self._who(context)
        assignment_id = tasks.as_id(request.correlation_id)
        if assignment_id is None:
            await self._note(who, "validation.refused", f"A validation of {who.name} named no assignment.")
            return self._said("refused: the validation names no assignment")
        receipt = await take_validation(self.core.hub, who, assignment_id, request.data)
        return self._said(said_of(receipt))

    async def SendModelPrediction(self, request: wire.ModelPrediction, context: Context) -> wire.Response:
        """`prediction_id` is the command, `correlation_id` the order of this client."""
        who = await self._who(context)
        order_id = tasks.as_id(request.correlation_id)
        try:
            data = json_object(request.data, "A prediction", MAX_VALIDATION_BYTES)
            status, reason = OrderStatus.COMPLETED, ""
        except StudioError as error:
            data, status, reason = {}, OrderStatus.FAILED, error.message
        ended = order_id is not None and await in_rows(
            commands.end_order,
            client_id=who.client_id,
            order_id=order_id,
            status=status,
            response=data,
            reason=reason,
        )
        if order_id is not None:
            self.core.hub.done(who.client_id, order_id)
        return self._said(
            "accepted" if ended else "refused: this prediction was not asked for, or came before"
        )

    async def SendModelMetric(self, request: wire.ModelMetric, context: Context) -> wire.Response:
        who = await self._who(context)
        model_id = tasks.as_id(request.model_id)
        values = finite_series((metric.key, metric.value) for metric in request.metrics)
        if model_id is not None and values:
            assignment_id = await in_rows(assignments.newest_on_model, who.client_id, model_id)
            if assignment_id is not None:
                await in_rows(
                    assignments.log_metrics,
                    client_id=who.client_id,
                    assignment_id=assignment_id,
                    values=values,
                    step=request.step.value,
                )
        return self._said()

    async def SendAttributeMessage(self, request: wire.AttributeMessage, context: Context) -> wire.Response:
        who = await self._who(context)
        said = {
            a.key[:MAX_NAME_CHARS]: a.value[:200] for a in list(request.attributes)[:MAX_ATTRIBUTES] if a.key
        }
        if said:
            await take_attributes(who, said, whole=False)
        return self._said()

    async def SendTelemetryMessage(self, request: wire.TelemetryMessage, context: Context) -> wire.Response:
        who = await self._who(context)
        self.core.hub.telemetry(telemetry_samples(who, ((t.key, t.value) for t in request.telemetries)))
        return self._said()


class FednConnector(_Service, rpc.ConnectorServicer):
    async def SendHeartbeat(self, request: wire.Heartbeat, context: Context) -> wire.Response:
        """Presence is the open TaskStream; a heartbeat only learns whether the client is still welcome."""
        await self._who(context)
        return self._said()

    async def SendStatus(self, request: wire.Status, context: Context) -> wire.Response:
        who = await self._who(context)
        assignment_id = tasks.receipt_of(request)
        connection = self.core.hub.connections.get(who.client_id)
        if assignment_id is not None and connection is not None and assignment_id in connection.given:
            self.core.hub.received(assignment_id)
        await self._note(
            who,
            "client.status",
            request.status[:MAX_LOG_CHARS] or "(no text)",
            LEVELS.get(request.log_level, "info"),
            log_level=wire.LogLevel.Name(request.log_level) if request.log_level in wire.LogLevel.values() else "NONE",
            type=wire.StatusType.Name(request.type) if request.type in wire.StatusType.values() else "LOG",
            correlation_id=str(assignment_id or ""),
        )  # fmt: skip
        return self._said()

    async def AcceptingClients(
        self, request: wire.ConnectionRequest, context: Context
    ) -> wire.ConnectionResponse:
        return wire.ConnectionResponse(status=wire.ACCEPTING)


class FednModels(_Service, rpc.ModelServiceServicer):
    async def Download(
        self, request: wire.ModelRequest, context: Context
    ) -> AsyncIterator[wire.ModelResponse | bytes]:
        who = await self._who(context)
        model_id = tasks.as_id(request.id)
        try:
            if model_id is None:
                raise StudioError("bad_id", "A model id is a UUID.")
            form = formats.form_for(await in_rows(helper_in, who.project_id))
            file, grant = await self.core.grant_model(who, model_id, form)
        except StudioError as error:
            if error.status == 503:
                await context.abort(grpc.StatusCode.UNAVAILABLE, error.message)
            yield wire.ModelResponse(id=request.id, status=wire.FAILED, message=error.message)
            return
        try:
            self.core.hub.received(grant.task_id)
            encoding = Encoding(
                f"fedn {request.id} {form and form.name}", functools.partial(_chunk, request.id)
            )
            async for message in self.core.downloads.encoded.messages(file, encoding):
                self.core.traffic.sent_bytes += len(message)
                yield message
            yield wire.ModelResponse(id=request.id, status=wire.OK)
        finally:
            os.close(file)

    async def Upload(
        self, request_iterator: AsyncIterator[wire.ModelRequest], context: Context
    ) -> wire.ModelResponse:
        """The file waits under the client's own id until SendModelUpdate says what it is."""
        who = await self._who(context)
        return await _or_abort(context, self._receive(who, request_iterator))

    async def _receive(self, who: Identity, chunks: AsyncIterator[wire.ModelRequest]) -> wire.ModelResponse:
        first = await _next(chunks)
        if first is None or not first.id:
            return wire.ModelResponse(
                status=wire.FAILED, message="An upload begins with the id of the model."
            )
        try:
            staged = await self.core.staging.begin(who, first.id[:200])
        except StudioError as error:
            # no event: SendModelUpdate follows, and says which round it was too late for
            return await self._drain(chunks, first.id, error.message)
        try:
            chunk: wire.ModelRequest | None = first
            while chunk is not None and chunk.status != wire.OK:
                await in_files(staged.write, chunk.data)
                self.core.traffic.received_bytes += len(chunk.data)
                chunk = await _next(chunks)
            if chunk is None:
                raise StudioError("incomplete", "The upload ended before its end; send it again.", 503)
            await in_files(staged.whole)
        except StudioError as error:
            if error.status == 503:
                raise
            await self._note(who, "update.refused", f"An upload of {who.name} was refused: {error.message}")
            return await self._drain(chunks, first.id, error.message)
        except OSError as error:
            log.error("staging.refused", error=str(error))
            raise StudioError("try_again_later", "This combiner's disk takes nothing now.", 503) from error
        finally:
            await asyncio.shield(in_files(staged.drop))
        return wire.ModelResponse(id=first.id, status=wire.OK)

    async def _drain(
        self, chunks: AsyncIterator[wire.ModelRequest], name: str, reason: str
    ) -> wire.ModelResponse:
        """Refused, in the one way that leaves the client alive: it may send all of it, into nothing."""
        while await _next(chunks) is not None:
            pass
        return wire.ModelResponse(id=name[:200], status=wire.OK, message=reason)


async def _next(chunks: AsyncIterator[wire.ModelRequest]) -> wire.ModelRequest | None:
    try:
        async with asyncio.timeout(CALL_IDLE_S):
            return await anext(chunks, None)
    except TimeoutError:
        raise StudioError("idle", "Nothing came for two minutes.", 503) from None
