"""Many clients read one model, each at its own speed: what the combiner holds for them, and what they get."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from federation.combiner.encoded import BLOCK_BYTES, KEPT_BYTES, SENT_BYTES, EncodedOnce, Encoding
from tests.rounds.test_order_of_bytes import busy_files

READERS = 200
PLAIN = Encoding("plain", lambda _at, data: bytes(data))
SLACK_BYTES = 8 << 20


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A large file that takes no room."""
    path = tmp_path / "model"
    with path.open("wb") as file:
        file.truncate(400 * BLOCK_BYTES)
    return path


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_two_hundred_readers_that_stand_still_hold_a_message_each(sparse: Path) -> None:
    """The window, and what gRPC has in hand for each: not a block of the model for each."""
    dice = random.Random(1)

    async def held() -> int:
        encoded, readers = EncodedOnce(), []
        for _ in range(READERS):
            reader = encoded.messages(file, PLAIN, dice.randrange(400) * BLOCK_BYTES)
            for _ in range(dice.choice([1, 2, 3])):
                await anext(reader)
            readers.append(reader)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        for reader in readers:
            await reader.aclose()
        return held

    file = os.open(sparse, os.O_RDONLY)
    tracemalloc.start()
    try:
        most = asyncio.run(held())
    finally:
        tracemalloc.stop()
        os.close(file)
    assert most <= KEPT_BYTES + READERS * SENT_BYTES + SLACK_BYTES, f"{most >> 20} MiB are held"


def test_readers_of_all_speeds_that_come_and_vanish_get_the_models_bytes_and_leave_no_file_open(
    tmp_path: Path,
) -> None:
    model = random.Random(2).randbytes(40 * BLOCK_BYTES + 12_345)
    path = tmp_path / "model"
    path.write_bytes(model)
    encoded, dice = EncodedOnce(), random.Random(3)

    async def read(slow: int, offset: int, vanishes: bool) -> None:
        own = os.open(path, os.O_RDONLY)
        at = offset
        try:
            messages: AsyncIterator[bytes] = encoded.messages(own, PLAIN, offset)
            async for message in messages:
                assert message == model[at : at + len(message)] and 0 < len(message) <= SENT_BYTES
                at += len(message)
                if vanishes and at > len(model) // 2:
                    return
                for _ in range(slow):
                    await asyncio.sleep(0)
        finally:
            os.close(own)
        assert at == max(len(model), offset)

    async def all_of_them() -> None:
        offsets = [0, 0, 0, 1, SENT_BYTES + 7, BLOCK_BYTES - 1, len(model) - 1, len(model)]
        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(read(dice.choice([0, 1, 300]), dice.choice(offsets), number % 4 == 0))

    before = open_files()
    asyncio.run(all_of_them())
    assert open_files() == before


@pytest.mark.parametrize("offset", [0, 7])
def test_a_reader_gone_before_its_block_is_read_leaves_no_file_open_and_no_other_files_bytes(
    tmp_path: Path, offset: int
) -> None:
    model, other = tmp_path / "model", tmp_path / "other"
    model.write_bytes(b"m" * SENT_BYTES)
    other.write_bytes(b"o" * SENT_BYTES)
    encoded = EncodedOnce()

    async def gone() -> None:
        file = os.open(model, os.O_RDONLY)
        with busy_files():
            asking = asyncio.ensure_future(anext(encoded.messages(file, PLAIN, offset)))
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait({asking})
            os.close(file)
            taking_its_number = os.open(other, os.O_RDONLY)
        again = os.open(model, os.O_RDONLY)
        assert b"".join([part async for part in encoded.messages(again, PLAIN)]) == b"m" * SENT_BYTES
        os.close(again)
        os.close(taking_its_number)

    before = open_files()
    asyncio.run(gone())
    assert open_files() == before
