"""`studio.v1` on the wire, translated to the hub and the intake. Bytes and messages only; no rule lives here."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog

from federation.aggregation.compressed import FORMS
from federation.combiner.calls import STATUS_OF_HTTP, Context, caller_of
from federation.combiner.connection import Cancel, Connection, Farewell, Identity
from federation.combiner.core import CombinerCore
from federation.combiner.encoded import Encoding, as_bytes
from federation.combiner.intake import Receipt
from federation.combiner.upload import Piece, Superseded
from federation.combiner.upload import Upload as Incoming
from federation.dialects.native import frames, reports
from federation.dialects.native import studio_v1_pb2 as wire
from federation.dialects.native.enclosed import Enclosed
from federation.sessions.assignments import Owed
from foundation.errors import StudioError

log = structlog.get_logger(__name__)

SERVICE = wire.DESCRIPTOR.services_by_name["Combiner"].full_name
PROTOCOL = 1
OLDEST_PROTOCOL = 1
CHUNK_BYTES = 1 << 20  # the most that a message may hold
MOST_UNREAD = 200  # answers that wait for one client; its next report is read once it took some
CALL_IDLE_S = 120.0  # an upload that sends nothing for so long ends; the client resumes it

STATUS_OF_RECEIPT = {
    "accepted": wire.Receipt.ACCEPTED,
    "rejected": wire.Receipt.REJECTED,
    "refused": wire.Receipt.REFUSED,
}


Chunk = memoryview | wire.UploadChunk


def register(core: CombinerCore, server: grpc.aio.Server) -> None:
    servicer = NativeServicer(core)
    handlers = {
        "Connect": grpc.stream_stream_rpc_method_handler(
            servicer.Connect, wire.ClientMessage.FromString, as_bytes
        ),
        "UploadStatus": grpc.unary_unary_rpc_method_handler(
            servicer.UploadStatus,
            wire.UploadStatusRequest.FromString,
            wire.UploadStatusReply.SerializeToString,
        ),
        # models travel as bytes that are made and read by hand
        "Upload": grpc.stream_unary_rpc_method_handler(
            servicer.Upload, frames.upload_chunk, wire.Receipt.SerializeToString
        ),
        "Download": grpc.unary_stream_rpc_method_handler(
            servicer.Download, wire.DownloadRequest.FromString, None
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


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


class NativeServicer:
    def __init__(self, core: CombinerCore) -> None:
        self.core = core
        self.enclosed = Enclosed(core.downloads)

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
    ) -> AsyncIterator[wire.ServerMessage | bytes]:
        try:
            who = await self._who(context)
            hello = await self._hello(request_iterator)
            connection = await self.core.hub.attach(
                who,
                dialect="native",
                version=hello.client_version[:40],
                holds=[parse_id(held, "holds") for held in hello.holds[:1000] if _is_uuid(held)],
                attributes=reports.attributes(hello.attributes_json),
            )
        except StudioError as error:
            await refuse(context, error)
            return
        config, unread = self.core.config, asyncio.Semaphore(MOST_UNREAD)
        reader = asyncio.create_task(self._read(request_iterator, connection, unread))
        try:
            yield wire.ServerMessage(
                welcome=wire.Welcome(
                    protocol=min(PROTOCOL, hello.protocol),
                    server_version=config.version,
                    combiner=config.name,
                    client_id=str(who.client_id),
                    client_name=who.name,
                    upload_forms=FORMS,
                    lane=config.lane if config.lane_tls == caller_of(context).tls else "",
                )
            )
            while (delivery := await _next_of(connection, reader)) is not None:
                if (
                    isinstance(delivery, Owed)
                    and hello.takes_models
                    and self.enclosed.begin(connection, delivery)
                ):
                    message = await self.enclosed.message(delivery)
                    self.core.traffic.sent_bytes += delivery.model_size_bytes if message else 0
                    yield message or to_wire(delivery)
                else:
                    yield to_wire(delivery)
                if isinstance(delivery, wire.ServerMessage):
                    unread.release()
                if isinstance(delivery, Farewell):
                    break
        finally:
            reader.cancel()
            self.enclosed.forget(connection)
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

    async def _read(
        self, messages: AsyncIterator[wire.ClientMessage], connection: Connection, unread: asyncio.Semaphore
    ) -> None:
        async for message in messages:
            try:
                if message.WhichOneof("message") == "bye":
                    return
                if message.WhichOneof("message") == "received":
                    self.enclosed.arrived(connection, message.received.assignment_id)
                answer = await reports.handle(self.core, connection, message)
            except StudioError as error:
                answer = wire.ServerMessage(
                    ack=wire.Ack(
                        assignment_id=reports.assignment_of(message), status="refused", reason=error.message
                    )
                )
            except Exception:  # the stream ends with it, and the client comes back
                log.exception("report.failed", client=str(connection.identity.client_id))
                raise
            if answer is not None:
                await unread.acquire()
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

    async def Upload(self, request_iterator: AsyncIterator[Chunk], context: Context) -> wire.Receipt:
        try:
            who = await self._who(context)
            async with asyncio.timeout(CALL_IDLE_S) as idle:
                return receipt(await self._take(who, request_iterator, idle))
        except StudioError as error:
            await refuse(context, error)
        except Superseded:
            await context.abort(grpc.StatusCode.ABORTED, "A newer upload of the same update took over.")
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, "Nothing arrived for too long; resume the upload."
            )
        raise AssertionError("abort raises")

    async def _take(self, who: Identity, chunks: AsyncIterator[Chunk], idle: asyncio.Timeout) -> Receipt:
        head = await anext(chunks, None)
        if not isinstance(head, wire.UploadChunk) or head.WhichOneof("part") != "head":
            raise StudioError("no_head", "An upload begins with its head.")
        assignment_id = parse_id(head.head.assignment_id, "assignment_id")
        upload = await self.core.intake.begin(
            who,
            assignment_id,
            head.head.upload_id[:200],
            head.head.size,
            head.head.offset,
            head.head.form[:20],
        )
        if isinstance(upload, Receipt):
            self.core.hub.done(who.client_id, assignment_id)
            return upload
        try:
            answer = await self._fill(who, upload, chunks, idle)
        finally:
            self.core.intake.release(upload)
        self.core.hub.done(who.client_id, assignment_id)
        return answer

    async def _fill(
        self, who: Identity, upload: Incoming, chunks: AsyncIterator[Chunk], idle: asyncio.Timeout
    ) -> Receipt:
        loop = asyncio.get_running_loop()
        async for chunk in chunks:
            idle.reschedule(loop.time() + CALL_IDLE_S)
            if isinstance(chunk, memoryview):
                await self._write(upload, chunk)
                continue
            match chunk.WhichOneof("part"):
                case "data":  # empty, or with fields of a newer protocol
                    await self._write(upload, chunk.data)
                case "tail":
                    tail = chunk.tail
                    idle.reschedule(None)  # all has come: checking and accepting take what they take
                    return await self.core.intake.finish(
                        who, upload, tail.sha256, tail.num_examples, tail.metadata_json
                    )
                case _:
                    raise StudioError("bad_chunk", "After the head an upload holds data and then its tail.")
        await self.core.intake.settle(upload)
        raise StudioError("incomplete", "The upload ended before its tail; resume it.", 409)

    async def _write(self, upload: Incoming, data: Piece) -> None:
        if len(data) > CHUNK_BYTES:
            raise StudioError("chunk_too_long", "A chunk holds at most 1 MiB.")
        self.core.traffic.received_bytes += len(data)
        await self.core.intake.write(upload, data)

    # --- models down ------------------------------------------------------------------------------------------
    async def Download(self, request: wire.DownloadRequest, context: Context) -> AsyncIterator[bytes]:
        try:
            who = await self._who(context)
            file, grant = await self.core.grant_download(
                who, parse_id(request.assignment_id, "assignment_id"), parse_id(request.model_id, "model_id")
            )
        except StudioError as error:
            await refuse(context, error)
            return
        try:
            size, sha256 = grant.model_size_bytes, grant.model_sha256.encode()
            if request.offset >= size:
                if request.offset > size:
                    await refuse(context, StudioError("bad_offset", f"The model has {size} bytes."))
                yield frames.download_chunk(size, size, b"", sha256)
                return
            encoding = Encoding(
                f"native {grant.model_id}", lambda at, data: frames.download_chunk(at, size, data, sha256)
            )
            async for message in self.core.downloads.encoded.messages(file, encoding, request.offset):
                self.core.traffic.sent_bytes += len(message)
                yield message
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
