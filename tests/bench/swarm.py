"""Many clients in one process that only send back what they received, over the real wire (`studio.v1`).

    python -m tests.bench.swarm --target 127.0.0.1:9000 --tokens tokens.txt

They do as little as a client can: no file, no array, no checksum of their own (the update is the model, whose sha256
the task names). So what is measured is the server. Each has a TCP connection of its own. One JSON line tells when all
are connected; on SIGTERM another tells what moved.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from studio_sdk import studio_v1_pb2 as pb
from studio_sdk.client import frames

CONNECTING_AT_ONCE = 100
MESSAGE_BYTES = 1 << 20  # larger models go over the lane
OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 4 << 20),
]


class Tally:
    """What all clients of this process did."""

    def __init__(self) -> None:
        self.connected = 0
        self.tasks = 0
        self.accepted = 0
        self.refused: list[str] = []
        self.delays: list[float] = []  # seconds from a task's `sent_at` to here, where the task says it


async def over_lane(target: str, request: bytes, bodies: list[Any], into: memoryview | None) -> bytes:
    """One request on the lane (see studio_v1.proto); the answer's body, in `into` where one is given."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        host, _, port = target.rpartition(":")
        await loop.sock_connect(sock, (host, int(port)))
        await loop.sock_sendall(sock, request)
        for body in bodies:
            await loop.sock_sendall(sock, body)
        head = b""
        while b"\r\n\r\n" not in head:
            came = await loop.sock_recv(sock, 4096)
            if not came:
                raise ConnectionError("the lane gave no answer")
            head += came
        head, _, rest = head.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(f"{head[:60]!r}: {rest[:300]!r}")
        if into is None:
            while came := await loop.sock_recv(sock, 4096):
                rest += came
            return rest
        into[: len(rest)] = rest
        at = len(rest)
        while at < len(into):
            count = await loop.sock_recv_into(sock, into[at:])
            if not count:
                raise ConnectionError("the model broke off")
            at += count
        return b""


class EchoClient:
    def __init__(self, target: str, token: str, tally: Tally, idle: bool, lane: bool = True) -> None:
        self.target, self.token, self.uses_lane = target, token, lane
        self.lane = ""
        self.memory = memoryview(b"")
        self.channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        self.metadata = (("authorization", f"Bearer {token}"),)
        self.tally, self.idle = tally, idle
        self.connect: Any = self.channel.stream_stream(
            "/studio.v1.Combiner/Connect",
            request_serializer=pb.ClientMessage.SerializeToString,
            response_deserializer=pb.ServerMessage.FromString,
        )
        self.download: Any = self.channel.unary_stream(
            "/studio.v1.Combiner/Download",
            request_serializer=pb.DownloadRequest.SerializeToString,
            response_deserializer=pb.DownloadChunk.FromString,
        )
        self.upload: Any = self.channel.stream_unary(
            "/studio.v1.Combiner/Upload", request_serializer=None, response_deserializer=pb.Receipt.FromString
        )

    async def run(self, gate: asyncio.Semaphore, welcomed: asyncio.Event) -> None:
        await gate.acquire()
        call = self.connect(metadata=self.metadata)
        await call.write(
            pb.ClientMessage(
                hello=pb.Hello(
                    protocol=1, client_version="bench", attributes_json='{"bench": 1}', takes_models=True
                )
            )
        )
        working: set[asyncio.Task[None]] = set()
        async for message in call:
            kind = message.WhichOneof("message")
            if kind == "welcome":
                gate.release()
                lane = message.welcome.lane if self.uses_lane else ""
                self.lane = self.target.rpartition(":")[0] + lane if lane.startswith(":") else lane
                self.tally.connected += 1
                welcomed.set()
            elif kind == "task" and message.task.kind == "train":
                self.tally.tasks += 1
                if message.task.deadline_unix_s and self.idle:
                    self.tally.delays.append(time.time())
                await call.write(
                    pb.ClientMessage(received=pb.Received(assignment_id=message.task.assignment_id))
                )
                if not self.idle:
                    task = asyncio.create_task(self.echo(message.task))
                    working.add(task)
                    task.add_done_callback(working.discard)

    async def echo(self, task: Any) -> None:
        try:
            await self._echo(task)
        except OSError as error:
            self.tally.refused.append(str(error))
            print(error, file=sys.stderr, flush=True)
        except grpc.aio.AioRpcError as error:  # a lean client tries once; what it met is told at the end
            self.tally.refused.append(f"{error.code().name}: {error.details()}")
            print(self.tally.refused[-1], file=sys.stderr, flush=True)

    async def _echo(self, task: Any) -> None:
        if self.lane and task.model_size > MESSAGE_BYTES:
            return await self._echo_over_lane(task)
        chunks: list[bytes] = [task.model] if task.model else []  # at most 1 MiB: one message
        if not chunks:
            request = pb.DownloadRequest(assignment_id=task.assignment_id, model_id=task.model_id)
            async for chunk in self.download(request, metadata=self.metadata):
                chunks.append(chunk.data)
        self._count(await self.upload(self.frames(task, chunks), metadata=self.metadata))

    async def _echo_over_lane(self, task: Any) -> None:
        said = f"HTTP/1.1\r\nHost: lane\r\nAuthorization: Bearer {self.token}\r\n"
        if len(self.memory) != task.model_size:  # kept: a client that allocates anew measures page faults
            self.memory = memoryview(bytearray(task.model_size))
        model = self.memory
        address = f"/studio.v1/model/{task.assignment_id}/{task.model_id}"
        await over_lane(self.lane, f"GET {address} {said}\r\n".encode(), [], model)
        start = pb.UploadStart(head=head_of(task), tail=tail_of(task)).SerializeToString()
        length = 4 + len(start) + len(model)
        put = f"PUT /studio.v1/update {said}Content-Length: {length}\r\n\r\n".encode()
        answer = await over_lane(self.lane, put + len(start).to_bytes(4) + start, [model], None)
        self._count(pb.Receipt.FromString(answer))

    def _count(self, receipt: Any) -> None:
        if receipt.status == pb.Receipt.ACCEPTED:
            self.tally.accepted += 1
        else:
            self.tally.refused.append(receipt.reason)

    async def frames(self, task: Any, chunks: list[bytes]) -> AsyncIterator[bytes]:
        yield pb.UploadChunk(head=head_of(task)).SerializeToString()
        for chunk in chunks:
            yield frames.upload_chunk(chunk)
        yield pb.UploadChunk(tail=tail_of(task)).SerializeToString()


def head_of(task: Any) -> pb.UploadHead:
    return pb.UploadHead(
        assignment_id=task.assignment_id, upload_id=str(uuid.uuid4()), size=task.model_size, offset=0
    )


def tail_of(task: Any) -> pb.UploadTail:
    return pb.UploadTail(
        sha256=task.model_sha256,
        num_examples=1,
        metadata_json='{"num_examples": 1, "num_steps": 1, "loss": 1.0}',
    )


async def serve(target: str, tokens: list[str], idle: bool, lane: bool) -> None:
    tally = Tally()
    gate = asyncio.Semaphore(CONNECTING_AT_ONCE)
    events = [asyncio.Event() for _ in tokens]
    began = time.monotonic()
    clients = [EchoClient(target, token, tally, idle, lane) for token in tokens]
    running = [asyncio.create_task(c.run(gate, e)) for c, e in zip(clients, events, strict=True)]
    for event, task in zip(events, running, strict=True):
        waiter = asyncio.create_task(event.wait())
        await asyncio.wait({waiter, task}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            raise SystemExit("a client's stream ended before it was welcomed")
    print(
        json.dumps({"connected": tally.connected, "seconds": round(time.monotonic() - began, 2)}), flush=True
    )
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    await over.wait()
    report = {"tasks": tally.tasks, "accepted": tally.accepted, "refused": tally.refused[:3]}
    if tally.delays:
        report["last_task_at"] = max(tally.delays)
    print(json.dumps(report), flush=True)
    for task in running:
        task.cancel()
    with contextlib.suppress(Exception):
        await asyncio.wait(running, timeout=1)
    os._exit(0)  # thousands of channels take their time to say goodbye


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", required=True)
    parser.add_argument("--tokens", type=Path, required=True, help="a file with one client token a line")
    parser.add_argument("--idle", action="store_true", help="confirm tasks, and do nothing about them")
    parser.add_argument("--no-lane", action="store_true", help="everything over gRPC")
    options = parser.parse_args()
    tokens = [line for line in options.tokens.read_text().split() if line]
    asyncio.run(serve(options.target, tokens, options.idle, not options.no_lane))


if __name__ == "__main__":
    main()
