"""Compressed updates that are wrong: told from the header, or by the scales, in a sentence; nothing stays behind."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studio_sdk import compressed as client

from federation.aggregation import compressed as server
from federation.aggregation.codecs import check_update, save_arrays
from federation.aggregation.layout import Layout
from foundation.errors import StudioError

MODEL: dict[str, Any] = {
    "w": np.linspace(-1, 1, 300, dtype=np.float32).reshape(30, 10),
    "b": np.zeros(10, np.float32),
    "n": np.array(3, np.int64),
    "on": np.array([True, False]),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and an honest int8 update of it."""
    folder = tmp_path_factory.mktemp("base")
    save_arrays(MODEL, folder / "model")
    save_arrays({**MODEL, "w": MODEL["w"] * 2}, folder / "update")
    change = client.Change(folder / "model", folder / "update")
    client.compress(change, "int8", folder / "sent", folder / "owed")
    return folder


def layout_of(folder: Path) -> Layout:
    return save_arrays(MODEL, folder / "again")


def read(base: Path, sent: Path, target: Path, form: str = "int8") -> Any:
    """As the combiner does: decompressed, then checked like any update."""
    layout = layout_of(base)
    with (base / "model").open("rb", buffering=0) as model:
        sha256 = server.decompress(sent, model, target, layout, form)
    return sha256, check_update(target, layout, max_bytes=layout.nbytes)


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def written(path: Path, header: dict[str, Any], data: bytes) -> Path:
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def with_scales(base: Path, target: Path, *values: float) -> Path:
    header, data = parts(base / "sent")
    begin, end = header["scales"]["data_offsets"]
    assert (end - begin) // 8 == len(values)
    return written(target, header, data[:begin] + np.array(values, "<f8").tobytes() + data[end:])


def refusal(base: Path, sent: Path, folder: Path, form: str = "int8") -> str:
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(StudioError) as refused:
        read(base, sent, folder / "plain", form)
    assert refused.value.status == 400, refused.value.message
    left = {path.name for path in folder.iterdir()} - before
    assert left <= {"plain"}, "only the whole file that was then refused, never a part of one"
    return refused.value.message


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, -5e-324])
def test_a_scale_that_is_no_size_is_refused(base: Path, tmp_path: Path, scale: float) -> None:
    said = refusal(base, with_scales(base, tmp_path / "sent", scale, 0.0), tmp_path)
    assert "'w' has the scale" in said and "finite number from 0 up" in said


@pytest.mark.parametrize("scale", [1e300, 1.7e308, 1e38])
def test_a_scale_too_large_for_the_model_is_refused_by_the_tensors_name(
    base: Path, tmp_path: Path, scale: float
) -> None:
    said = refusal(base, with_scales(base, tmp_path / "sent", scale, 0.0), tmp_path)
    assert "'w' holds NaN or infinity" in said


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["float16", "bfloat16"])
def test_numbers_that_are_not_finite_are_refused(
    base: Path, tmp_path: Path, form: str, number: float
) -> None:
    change = client.Change(base / "model", base / "update")
    client.compress(change, form, tmp_path / "sent", tmp_path / "owed")
    header, data = parts(tmp_path / "sent")
    begin, _end = header["w"]["data_offsets"]
    bits = (
        np.array([number], "<f2").tobytes() if form == "float16" else np.array([number], "<f4").tobytes()[2:]
    )
    sent = written(tmp_path / "sent", header, data[:begin] + bits + data[begin + 2 :])
    assert "'w' holds NaN or infinity" in refusal(base, sent, tmp_path, form)


def _renamed(header: dict[str, Any]) -> None:
    header["v"] = header.pop("w")


def _reshaped(header: dict[str, Any]) -> None:
    header["w"]["shape"] = [10, 30]


def _retyped(header: dict[str, Any]) -> None:
    header["w"]["dtype"] = "U8"


def _one_scale(header: dict[str, Any]) -> None:
    header["scales"]["shape"] = [1, 2]


def _no_scales(header: dict[str, Any]) -> None:
    header["skales"] = header.pop("scales")


def _claims_more(header: dict[str, Any]) -> None:
    header["w"]["shape"] = [2**40, 2**20]


def _overlaps(header: dict[str, Any]) -> None:
    begin = header["scales"]["data_offsets"][0]
    header["b"]["data_offsets"] = [begin, begin + 10]


@pytest.mark.parametrize(
    "change", [_renamed, _reshaped, _retyped, _one_scale, _no_scales, _claims_more, _overlaps]
)
def test_a_header_that_does_not_fit_is_refused_before_a_byte_is_decoded(
    base: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    header, data = parts(base / "sent")
    change(header)
    said = refusal(base, written(tmp_path / "sent", header, data), tmp_path)
    assert said.endswith(".") and not (tmp_path / "plain").exists()


@pytest.mark.parametrize("form", sorted(server.FORMS))
def test_a_plain_update_is_no_compressed_one(base: Path, tmp_path: Path, form: str) -> None:
    said = refusal(base, base / "update", tmp_path, form)
    assert not (tmp_path / "plain").exists()
    assert "claims" in said, "it is larger than a compressed one may be"


@pytest.mark.parametrize("sent", ["int8", "float16", "bfloat16"])
@pytest.mark.parametrize("named", ["int8", "float16", "bfloat16"])
def test_a_form_named_wrongly_is_refused(base: Path, tmp_path: Path, sent: str, named: str) -> None:
    change = client.Change(base / "model", base / "update")
    client.compress(change, sent, tmp_path / "sent", tmp_path / "owed")
    if sent == named:
        read(base, tmp_path / "sent", tmp_path / "plain", named)
    else:
        assert refusal(base, tmp_path / "sent", tmp_path, named)


def test_another_model_than_the_assignments_is_the_servers_fault_and_may_pass(
    base: Path, tmp_path: Path
) -> None:
    layout = save_arrays({"other": np.zeros(3)}, tmp_path / "model")
    assert layout
    with (tmp_path / "model").open("rb", buffering=0) as model, pytest.raises(StudioError) as refused:
        server.decompress(base / "sent", model, tmp_path / "plain", layout_of(base), "int8")
    assert refused.value.status == 503


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.integers(0, 3))
def test_any_damaged_file_is_read_or_refused_in_a_sentence(
    base: Path, tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: int
) -> None:
    folder = base / "damaged"
    folder.mkdir(exist_ok=True)
    raw = bytearray((base / "sent").read_bytes())
    raw[at % len(raw)] = byte
    (folder / "sent").write_bytes(raw[: len(raw) - cut])
    try:
        read(base, folder / "sent", folder / "plain")
    except StudioError as refused:
        assert refused.status == 400 and refused.message.endswith(".")


def test_memory_is_a_few_blocks_however_large_the_model(tmp_path: Path) -> None:
    model = {"w": np.zeros((4096, 2048), np.float32)}  # 33 MB
    layout = save_arrays(model, tmp_path / "model")
    model["w"] += np.arange(2048, dtype=np.float32)
    save_arrays(model, tmp_path / "update")
    del model
    tracemalloc.start()
    try:
        change = client.Change(tmp_path / "model", tmp_path / "update")
        client.compress(change, "int8", tmp_path / "sent", tmp_path / "owed")
        compressing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        with (tmp_path / "model").open("rb", buffering=0) as file:
            server.decompress(tmp_path / "sent", file, tmp_path / "plain", layout, "int8")
        decompressing = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "sent").stat().st_size < 8.5e6
    assert max(compressing, decompressing) < 8e6
