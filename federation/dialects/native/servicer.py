"""`studio.v1` on the wire, translated to the hub and the intake. Bytes and messages only; no rule lives here."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog

from federation.combiner.calls import STATUS_OF_HTTP, Context, caller_of
from federation.combiner.connection import Cancel, Connection, Farewell, Identity
from federation.combiner.core import CombinerCore
from federation.combiner.intake import Receipt
from federation.combiner.threads import in_files
from federation.combiner.upload import Superseded
from federation.combiner.upload import Upload as Incoming
from federation.dialects.native import reports
from federation.dialects.native import studio_v1_pb2 as wire
from federation.dialects.native.studio_v1_pb2_grpc import CombinerServicer, add_CombinerServicer_to_server
from federation.sessions.assignments import Owed
from foundation.errors import StudioError

log = structlog.get_logger(__name__)

PROTOCOL = 1
OLDEST_PROTOCOL = 1
CHUNK_BYTES = 1 << 20  # the most that a message may hold
SENT_BYTES = 128 << 10  # what we send: as fast, and memory per transfer stays small
CALL_IDLE_S = 120.0  # an upload that sends nothing for so long ends; the client resumes it

STATUS_OF_RECEIPT = {
    "accepted": wire.Receipt.ACCEPTED,
    "rejected": wire.Receipt.REJECTED,
    "refused": wire.Receipt.REFUSED,
}


def register(core: CombinerCore, server: grpc.aio.Server) -> None:
    add_CombinerServicer_to_server(NativeServicer(core), server)


def parse_id(text: str, what: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise StudioError("bad_id", f"{what} must be a UUID.") from None


async def refuse(context: Context, error: StudioError) -> None:
    await context.abort(
        STATUS_OF_HTTP.get(error.status, grpc.StatusCode.INTERNAL),
        error.message,
        trailing_metadata=(("studio-code", error.code),),
    )


class NativeServicer(CombinerServicer):
    def __init__(self, core: CombinerCore) -> None:
        self.core = core

    async def _who(self, context: Context) -> Identity:
        """The caller, proven by the token in the call's metadata."""
        caller = caller_of(context)
        if caller.secret:
            return await self.core.identify(caller.secret, caller.address)
        raise StudioError(
            "no_token", "Send the client's token as `authorization: Bearer …` in the metadata.", 401
        )

    # --- the stream -------------------------------------------------------------------------------------------
    async def Connect(
        self, request_iterator: AsyncIterator[wire.ClientMessage], context: Context
    ) -> AsyncIterator[wire.ServerMessage]:
        try:
            who = await self._who(context)
            hello = await self._hello(request_iterator)
        except StudioError as error:
            await refuse(context, error)
            return
        connection = await self.core.hub.attach(
            who,
            dialect="native",
            version=hello.client_version[:40],
            holds=[parse_id(held, "holds") for held in hello.holds[:1000] if _is_uuid(held)],
            attributes=reports.attributes(hello.attributes_json),
        )
        reader = asyncio.create_task(self._read(request_iterator, connection))
        try:
            yield wire.ServerMessage(
                welcome=wire.Welcome(
                    protocol=min(PROTOCOL, hello.protocol),
                    server_version=self.core.config.version,
                    combiner=self.core.config.name,
                    client_id=str(who.client_id),
                    client_name=who.name,
                )
            )
            while (delivery := await _next_of(connection, reader)) is not None:
                yield to_wire(delivery)
                if isinstance(delivery, Farewell):
                    break
        finally:
            reader.cancel()
            await asyncio.shield(asyncio.ensure_future(self.core.hub.detach(connection)))

    async def _hello(self, messages: AsyncIterator[wire.ClientMessage]) -> wire.Hello:
        try:
            async with asyncio.timeout(15):
                first = await anext(messages)
        except (StopAsyncIteration, TimeoutError):
            raise StudioError("no_hello", "The first message of a stream must be Hello.") from None
        if first.WhichOneof("message") != "hello":
            raise StudioError("no_hello", "The first message of a stream must be Hello.")
        if first.hello.protocol < OLDEST_PROTOCOL:
            raise StudioError(
                "old_protocol",
                f"This client speaks protocol {first.hello.protocol}; this server needs {OLDEST_PROTOCOL} or newer. "
                "Update the client.",
                409,
            )
        return first.hello

    async def _read(self, messages: AsyncIterator[wire.ClientMessage], connection: Connection) -> None:
        async for message in messages:
            try:
                if message.WhichOneof("message") == "bye":
                    return
                answer = await reports.handle(self.core, connection, message)
            except StudioError as error:
                answer = wire.ServerMessage(
                    ack=wire.Ack(
                        assignment_id=reports.assignment_of(message), status="refused", reason=error.message
                    )
                )
            if answer is not None:
                connection.outbox.put_nowait(answer)  # type: ignore[arg-type]  # our own words go as they are

    # --- models up --------------------------------------------------------------------------------------------
    async def UploadStatus(
        self, request: wire.UploadStatusRequest, context: Context
    ) -> wire.UploadStatusReply:
        try:
            who = await self._who(context)
            assignment_id = parse_id(request.assignment_id, "assignment_id")
            found = await self.core.intake.resume_offset(
                who, assignment_id, request.upload_id[:200], request.size
            )
        except StudioError as error:
            await refuse(context, error)
            raise
        if isinstance(found, Receipt):
            self.core.hub.done(who.client_id, assignment_id)
            return wire.UploadStatusReply(receipt=receipt(found))
        return wire.UploadStatusReply(offset=found)

    async def Upload(
        self, request_iterator: AsyncIterator[wire.UploadChunk], context: Context
    ) -> wire.Receipt:
        try:
            who = await self._who(context)
            return receipt(await self._take(who, request_iterator))
        except StudioError as error:
            await refuse(context, error)
        except Superseded:
            await context.abort(grpc.StatusCode.ABORTED, "A newer upload of the same update took over.")
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, "Nothing arrived for too long; resume the upload."
            )
        raise AssertionError("abort raises")

    async def _take(self, who: Identity, chunks: AsyncIterator[wire.UploadChunk]) -> Receipt:
        head = await self._next(chunks)
        if head is None or head.WhichOneof("part") != "head":
            raise StudioError("no_head", "An upload begins with its head.")
        assignment_id = parse_id(head.head.assignment_id, "assignment_id")
        upload = await self.core.intake.begin(
            who, assignment_id, head.head.upload_id[:200], head.head.size, head.head.offset
        )
        if isinstance(upload, Receipt):
            self.core.hub.done(who.client_id, assignment_id)
            return upload
        try:
            answer = await self._fill(who, upload, chunks)
        finally:
            self.core.intake.release(upload)
        self.core.hub.done(who.client_id, assignment_id)
        return answer

    async def _fill(
        self, who: Identity, upload: Incoming, chunks: AsyncIterator[wire.UploadChunk]
    ) -> Receipt:
        while (chunk := await self._next(chunks)) is not None:
            match chunk.WhichOneof("part"):
                case "data":
                    if len(chunk.data) > CHUNK_BYTES:
                        raise StudioError("chunk_too_long", "A chunk holds at most 1 MiB.")
                    await self.core.intake.write(upload, chunk.data)
                case "tail":
                    tail = chunk.tail
                    return await self.core.intake.finish(
                        who, upload, tail.sha256, tail.num_examples, tail.metadata_json
                    )
                case _:
                    raise StudioError("bad_chunk", "After the head an upload holds data and then its tail.")
        raise StudioError("incomplete", "The upload ended before its tail; resume it.", 409)

    @staticmethod
    async def _next(chunks: AsyncIterator[wire.UploadChunk]) -> wire.UploadChunk | None:
        async with asyncio.timeout(CALL_IDLE_S):
            return await anext(chunks, None)

    # --- models down ------------------------------------------------------------------------------------------
    async def Download(
        self, request: wire.DownloadRequest, context: Context
    ) -> AsyncIterator[wire.DownloadChunk]:
        try:
            who = await self._who(context)
            file, grant = await self.core.grant_download(
                who, parse_id(request.assignment_id, "assignment_id"), parse_id(request.model_id, "model_id")
            )
        except StudioError as error:
            await refuse(context, error)
            return
        try:
            size = grant.model_size_bytes
            if request.offset > size:
                await refuse(context, StudioError("bad_offset", f"The model has {size} bytes."))
            offset = request.offset
            while True:
                data = await in_files(os.pread, file, SENT_BYTES, offset)
                yield wire.DownloadChunk(offset=offset, size=size, data=data, sha256=grant.model_sha256)
                offset += len(data)
                if offset >= size or not data:
                    return
        finally:
            os.close(file)


async def _next_of(connection: Connection, reader: asyncio.Task[None]) -> Any:
    """What goes down the stream next; None once the client has nothing more to say and nothing is left."""
    if reader.done() and connection.outbox.empty():
        return None
    getter = asyncio.ensure_future(connection.outbox.get())
    try:
        await asyncio.wait({getter, reader}, return_when=asyncio.FIRST_COMPLETED)
        return getter.result() if getter.done() else None
    finally:
        getter.cancel()


def to_wire(delivery: Any) -> wire.ServerMessage:
    match delivery:
        case Owed():
            return wire.ServerMessage(task=reports.task(delivery))
        case Cancel():
            return wire.ServerMessage(
                cancel=wire.Cancel(assignment_id=str(delivery.assignment_id), reason=delivery.reason)
            )
        case Farewell():
            return wire.ServerMessage(
                goodbye=wire.Goodbye(code=delivery.code, reason=delivery.reason, retry=delivery.retry)
            )
        case _:
            assert isinstance(delivery, wire.ServerMessage)
            return delivery


def receipt(answer: Receipt) -> wire.Receipt:
    return wire.Receipt(status=STATUS_OF_RECEIPT[answer.status], reason=answer.reason)


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
