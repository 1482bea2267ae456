"""The messages that carry models are made and read by hand, and stay exactly protobuf."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from studio_sdk import studio_v1_pb2 as pb
from studio_sdk.client import frames as client_frames

from federation.dialects.native import frames as server_frames
from federation.dialects.native import studio_v1_pb2 as wire

numbers = st.integers(0, 2**63) | st.sampled_from([0, 1, 127, 128, 2**14, 2**21 - 1, 2**28, 2**35])
data = st.binary(max_size=300)
hex_digests = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(numbers, numbers, data, hex_digests | st.text(max_size=70))
def test_what_the_combiner_sends_is_the_message_of_the_protocol(
    offset: int, size: int, body: bytes, sha256: str
) -> None:
    raw = server_frames.download_chunk(offset, size, body, sha256.encode())
    assert wire.DownloadChunk.FromString(raw) == wire.DownloadChunk(
        offset=offset, size=size, data=body, sha256=sha256
    )


@given(numbers, numbers, data, hex_digests | st.text(max_size=70))
def test_the_client_reads_every_such_message_whoever_made_it(
    offset: int, size: int, body: bytes, sha256: str
) -> None:
    raw = pb.DownloadChunk(offset=offset, size=size, data=body, sha256=sha256).SerializeToString()
    assert client_frames.download_chunk(raw) == (offset, body)


@given(data)
def test_what_the_client_sends_is_the_message_of_the_protocol_and_read_as_such(body: bytes) -> None:
    raw = client_frames.upload_chunk(body)
    assert wire.UploadChunk.FromString(raw) == wire.UploadChunk(data=body)
    read = server_frames.upload_chunk(raw)
    assert (read.data if isinstance(read, wire.UploadChunk) else bytes(read)) == body


@given(st.text(max_size=40), st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=4))
def test_a_task_with_its_model_is_the_message_of_the_protocol(name: str, pieces: list[bytes]) -> None:
    task = wire.Task(assignment_id="a", kind="train", session_name=name, round=3, deadline_unix_s=1.5)
    raw = server_frames.task_with_model(task, pieces)
    task.model = b"".join(pieces)
    assert wire.ServerMessage.FromString(raw) == wire.ServerMessage(task=task)


def test_heads_and_tails_are_messages_at_both_ends() -> None:
    for part in (
        pb.UploadChunk(head=pb.UploadHead(assignment_id="a", size=3)),
        pb.UploadChunk(tail=pb.UploadTail(sha256="b", num_examples=2.0, metadata_json="{}")),
    ):
        read = server_frames.upload_chunk(client_frames.upload_chunk(part))
        assert isinstance(read, wire.UploadChunk)
        assert read.SerializeToString() == part.SerializeToString()


@given(st.binary(max_size=80))
def test_bytes_that_are_no_message_are_read_as_protobuf_reads_them(raw: bytes) -> None:
    """Never more, never less: what generated code refuses is refused, what it reads is read the same."""
    for mine, theirs in (
        (server_frames.upload_chunk, wire.UploadChunk.FromString),
        (client_frames.download_chunk, pb.DownloadChunk.FromString),
    ):
        try:
            expected = theirs(raw)
        except DecodeError:
            with pytest.raises(DecodeError):
                mine(raw)
            continue
        found = mine(raw)
        if isinstance(found, client_frames.Piece):
            assert found == (expected.offset, expected.data)
        elif isinstance(found, memoryview):
            assert bytes(found) == expected.data
        else:
            assert found == expected
