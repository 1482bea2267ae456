"""How fast this machine could go: TCP and gRPC over loopback, memory, checksums, disk. `python -m tests.bench.limits`.

Each figure is measured now, in 10^6 bytes a second, by the plainest program that does only that; `for_round` says how
long a round would last if only its bytes had to move.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import tempfile
import threading
import time
from typing import Any

import numpy as np

PIECE = 256 << 10
TOTAL = 256 << 20


def tcp() -> float:
    """One connection over loopback, one sender, one reader."""
    server = socket.create_server(("127.0.0.1", 0))
    body = memoryview(bytes(PIECE))

    def send() -> None:
        with socket.create_connection(server.getsockname()) as out:
            for _ in range(TOTAL // PIECE):
                out.sendall(body)

    sender = threading.Thread(target=send)
    begin = time.perf_counter()
    sender.start()
    peer, _ = server.accept()
    buffer = bytearray(PIECE)
    with peer:
        while peer.recv_into(buffer):
            pass
    sender.join()
    server.close()
    return TOTAL / (time.perf_counter() - begin) / 1e6


def grpc_asyncio() -> float:
    """grpc.aio, raw bytes up one stream, server and client in processes of their own."""
    import multiprocessing

    ready: Any = multiprocessing.get_context("spawn").SimpleQueue()
    server = multiprocessing.get_context("spawn").Process(target=_serve_grpc, args=(ready,), daemon=True)
    server.start()
    try:
        return asyncio.run(_send_grpc(ready.get()))
    finally:
        server.terminate()
        server.join()


def _serve_grpc(ready: Any) -> None:
    import grpc

    async def take(requests: Any, _context: Any) -> bytes:
        size = 0
        async for piece in requests:
            size += len(piece)
        return str(size).encode()

    async def main() -> None:
        server = grpc.aio.server()
        handler = grpc.stream_unary_rpc_method_handler(take)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("bench.Limits", {"Up": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready.put(port)
        await server.wait_for_termination()

    asyncio.run(main())


async def _send_grpc(port: int) -> float:
    import grpc

    body = bytes(PIECE)

    async def pieces() -> Any:
        for _ in range(TOTAL // PIECE):
            yield body

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        up = channel.stream_unary("/bench.Limits/Up")
        await up(iter([body]))
        begin = time.perf_counter()
        await up(pieces())
        return TOTAL / (time.perf_counter() - begin) / 1e6


def memory() -> float:
    """Copying from one large array into another, one thread."""
    source, target = np.ones(TOTAL // 8), np.zeros(TOTAL // 8)
    return _rate(lambda: np.copyto(target, source))


def sha256() -> float:
    body = bytes(TOTAL)
    return _rate(lambda: hashlib.sha256(body).digest())


def disk() -> float:
    """Writing a file and having it synced."""
    body = bytes(PIECE)
    with tempfile.TemporaryFile() as file:

        def write() -> None:
            file.seek(0)
            for _ in range(TOTAL // PIECE):
                file.write(body)
            file.flush()
            os.fsync(file.fileno())

        return _rate(write)


def _rate(work: Any, passes: int = 2) -> float:
    times = []
    for _ in range(passes):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return TOTAL / min(times) / 1e6


def measured() -> dict[str, float]:
    return {
        f"{name}_mb_per_s": round(work(), 1)
        for name, work in (
            ("tcp", tcp), ("grpc_aio", grpc_asyncio), ("memory_copy", memory), ("sha256", sha256), ("disk", disk),
        )
    }  # fmt: skip


def for_round(result: dict[str, Any]) -> dict[str, float]:
    """What the bytes of a round would take alone, and how much of that speed the round reached (1.0: all of it)."""
    speeds = measured()
    moved, took = result["moved_mb"], result["round_s"]["median"]
    return speeds | {
        name: round(moved / speeds[f"{key}_mb_per_s"] / took, 3)
        for name, key in (
            ("share_of_tcp", "tcp"),
            ("share_of_grpc", "grpc_aio"),
            ("share_of_memory", "memory_copy"),
        )
    }


if __name__ == "__main__":
    print(json.dumps(measured()))
