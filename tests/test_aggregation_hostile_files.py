"""No file can make the server run code, allocate what the file only claims, or fail without a sentence."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from federation.aggregation.codecs import (
    detect_format,
    read_npz_header,
    read_safetensors_header,
    to_canonical,
)
from foundation.errors import StudioError

CAP = 1_000_000


def tensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def f32(count: object, begin: object, end: object, **more: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [count], "data_offsets": [begin, end], **more}


def npy(descr: object = "<f4", shape: object = (2,), data: bytes = bytes(8), order: object = False) -> bytes:
    header = repr({"descr": descr, "fortran_order": order, "shape": shape}).encode()
    return npy_raw(header, data)


def npy_raw(header: bytes, data: bytes = b"", version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header + data


def npz(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, data)
    return file.getvalue()


def savez(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{name: np.asarray(array) for name, array in arrays.items()})
    return file.getvalue()


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


def encrypted() -> bytes:
    data = bytearray(npz(("x.npy", npy())))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def directory_that_lies(entries: int, size: int) -> bytes:
    data = npz(("x.npy", npy()))
    return data[:-12] + struct.pack("<HL", entries, size) + data[-6:]


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return (exit, (3,))


DEEP = b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
GOOD = tensors({"x": f32(2, 0, 8)}, bytes(8))

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    # safetensors
    "ten_billion_floats": (lambda: tensors({"x": f32(10**10, 0, 4 * 10**10)}), "claims 40000000000 bytes"),
    "header_beyond_the_file": (
        lambda: tensors({"x": f32(2, 0, 8)}, bytes(8), length=10**6),
        "no format known",
    ),
    "header_of_many_gigabytes": (lambda: b"\xff" * 7 + b"\x7f{" + bytes(50), "no format known"),
    "header_too_long": (lambda: tensors(b'{"x":1' + b" " * (17 << 20) + b"}"), "at most 16777216"),
    "bad_json": (lambda: tensors(b'{"x": nope}'), "not valid JSON"),
    "not_utf8": (lambda: tensors(b'{"\xff": 1}'), "not valid JSON"),
    "deep_json": (lambda: tensors(DEEP), "valid JSON|data_offsets only"),
    "brackets_without_end": (
        lambda: tensors(b'{"x":[' + b"[]," * 500_000 + b"[]]}"),
        "more than 100000 tensors",
    ),
    "too_many_tensors": (
        lambda: tensors({str(n): f32(0, 0, 0) for n in range(100_001)}),
        "100001 tensors; at most 100000",
    ),
    "no_tensors": (lambda: tensors({"__metadata__": {"a": "b"}}), "holds no tensors"),
    "overlap": (lambda: tensors({"a": f32(2, 0, 8), "b": f32(2, 4, 12)}, bytes(12)), "'b' overlaps"),
    "hole": (
        lambda: tensors({"a": f32(1, 0, 4), "b": f32(1, 8, 12)}, bytes(12)),
        "hole of 4 bytes before tensor 'b'",
    ),
    "truncated": (lambda: GOOD[:-1], "cut short"),
    "trailing_bytes": (lambda: GOOD + b"x", "1 bytes that no tensor names"),
    "size_is_not_shape": (
        lambda: tensors({"x": f32(3, 0, 8)}, bytes(8)),
        "has 8 bytes in the file.* make 12",
    ),
    "offsets_reversed": (lambda: tensors({"x": f32(2, 8, 0)}, bytes(8)), "-8 bytes"),
    "offsets_huge": (lambda: tensors({"x": f32(2, 10**30, 10**30 + 8)}, bytes(8)), "data_offsets"),
    "offsets_not_numbers": (lambda: tensors({"x": f32(2, "0", None)}, bytes(8)), "data_offsets"),
    "negative_shape": (lambda: tensors({"x": f32(-2, 0, 8)}, bytes(8)), "whole numbers from 0"),
    "float_shape": (lambda: tensors({"x": f32(2.0, 0, 8)}, bytes(8)), "whole numbers from 0"),
    "shape_that_overflows": (
        lambda: tensors({"x": {"dtype": "F32", "shape": [2**62, 4, 0], "data_offsets": [0, 0]}}),
        "no memory can hold",
    ),
    "forty_dimensions": (
        lambda: tensors({"x": {"dtype": "F32", "shape": [1] * 40, "data_offsets": [0, 4]}}, bytes(4)),
        "40 dimensions; at most 32",
    ),
    "unknown_dtype": (
        lambda: tensors({"x": f32(2, 0, 8, dtype="F8_E4M3")}, bytes(8)),
        "'F8_E4M3'; a model may hold",
    ),
    "dtype_that_is_a_list": (
        lambda: tensors({"x": f32(2, 0, 8, dtype=["F32"])}, bytes(8)),
        "a model may hold",
    ),
    "entry_that_is_a_number": (lambda: tensors({"x": 3}), "needs dtype, shape and data_offsets"),
    "entry_with_more": (
        lambda: tensors({"x": f32(2, 0, 8, code="import os")}, bytes(8)),
        "data_offsets only",
    ),
    "name_twice": (lambda: tensors(b'{"x":1,"y":2,"x":3}'), "names 'x' twice"),
    "name_too_long": (lambda: tensors({"n" * 513: f32(2, 0, 8)}, bytes(8)), "513 characters; at most 512"),
    "name_with_a_newline": (lambda: tensors({"a\nb": f32(2, 0, 8)}, bytes(8)), "control character"),
    "name_of_half_a_character": (lambda: tensors({"\ud800": f32(2, 0, 8)}, bytes(8)), "half a character"),
    # npz
    "npz_ten_billion_floats": (
        lambda: npz(("x.npy", npy(shape=(10**10,)))),
        "claims 40000000000 bytes.* holds 8",
    ),
    "npz_bomb": (
        lambda: npz(("x.npy", npy(shape=(20 << 20,), data=bytes(80 << 20))), method=zipfile.ZIP_DEFLATED),
        "unpacks to 838\\d+ bytes; at most 1000000",
    ),
    "npz_one_byte_over": (
        lambda: npz(("x.npy", npy(descr="|i1", shape=(CAP + 1,), data=bytes(CAP + 1)))),
        "claims 1000001 bytes of arrays; at most 1000000",
    ),
    "npz_bomb_that_denies_it": (
        lambda: patched(
            npz(("x.npy", npy(shape=(1 << 18,), data=bytes(1 << 20))), method=zipfile.ZIP_DEFLATED),
            struct.pack("<L", (1 << 20) + len(npy(shape=(1 << 18,), data=b""))),
            struct.pack("<L", 80),
        ),
        "damaged",
    ),
    "npz_bzip2": (lambda: npz(("x.npy", npy()), method=zipfile.ZIP_BZIP2), "other than deflate"),
    "npz_lzma": (lambda: npz(("x.npy", npy()), method=zipfile.ZIP_LZMA), "other than deflate"),
    "npz_encrypted": (encrypted, "is encrypted"),
    "npz_object_array": (
        lambda: savez(x=np.array([RunsCode()], dtype=object)),
        "Python objects, that is a pickle",
    ),
    "npz_with_a_pickle_member": (lambda: npz(("archive/data.pkl", pickle.dumps([1]))), "holds a pickle"),
    "npz_with_a_pickle_named_npy": (lambda: npz(("x.npy", pickle.dumps(RunsCode()))), "looks like a pickle"),
    "npz_structured": (lambda: savez(x=np.zeros(2, [("a", "f4"), ("b", "i4")])), "structured"),
    "npz_complex": (lambda: savez(x=np.zeros(2, complex)), "complex numbers"),
    "npz_text": (lambda: savez(x=np.array(["a"])), "holds text"),
    "npz_bytes": (lambda: savez(x=np.array([b"a"])), "holds text"),
    "npz_dates": (lambda: savez(x=np.array(["2020-01-01"], dtype="M8[D]")), "holds dates"),
    "npz_longdouble": (lambda: savez(x=np.zeros(1, np.longdouble)), "dtype '<f16'"),
    "npz_bfloat16": (lambda: savez(x=np.zeros(1, ml_dtypes.bfloat16)), "save it as float32"),
    "npz_absolute_name": (lambda: npz(("/etc/passwd.npy", npy())), "is a path"),
    "npz_parent_name": (lambda: npz(("../x.npy", npy())), "is a path"),
    "npz_nested_name": (lambda: npz(("a/b.npy", npy())), "is a path"),
    "npz_drive_name": (lambda: npz(("C:x.npy", npy())), "is a path"),
    "npz_backslash_name": (lambda: npz(("a\\b.npy", npy())), "is a path"),
    "npz_other_file": (lambda: npz(("readme.txt", b"hi")), "no .npy array"),
    "npz_name_twice": (lambda: npz(("x.npy", npy()), ("x.npy", npy())), "'x' twice"),
    "npz_name_too_long": (lambda: npz(("n" * 600 + ".npy", npy())), "longer than 512"),
    "npz_metadata_name": (lambda: npz(("__metadata__.npy", npy())), "safetensors keeps that name"),
    "npz_empty_name": (lambda: npz((".npy", npy())), "has no name"),
    "npz_empty": (npz, "holds no tensors"),
    "npz_truncated": (lambda: npz(("x.npy", npy()))[:-30], "does not end with a plain zip directory"),
    "npz_appended": (lambda: npz(("x.npy", npy())) + b"#!/bin/sh", "does not end with a plain zip directory"),
    "npz_only_magic": (lambda: b"PK\x03\x04", "does not end with a plain zip directory"),
    "npz_wrong_checksum": (
        lambda: patched(npz(("x.npy", npy(data=b"abcdefgh"))), b"abcdefgh", b"abcdefgX"),
        "damaged",
    ),
    "npz_directory_too_large": (lambda: directory_that_lies(1, 2**31), "claims a directory of"),
    "npz_directory_before_the_file": (lambda: directory_that_lies(1, 10_000), "inside the file"),
    "npz_too_many_members": (
        lambda: npz(*[(f"{n}.npy", b"") for n in range(100_001)]),
        "100001 arrays; at most 100000",
    ),
    "npz_member_too_short": (lambda: npz(("x.npy", npy(shape=(3,)))), "claims 12 bytes.* holds 8"),
    "npz_member_too_long": (lambda: npz(("x.npy", npy(shape=(1,)))), "claims 4 bytes.* holds 8"),
    "npy_header_of_4_gigabytes": (
        lambda: npz(("x.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 1000)),
        "header of 4294967295 bytes",
    ),
    "npy_header_with_code": (
        lambda: npz(("x.npy", npy_raw(b"__import__('os').getpid()"))),
        "damaged .npy header",
    ),
    "npy_header_nested": (lambda: npz(("x.npy", npy_raw(b"(" * 9000))), "damaged .npy header"),
    "npy_header_negated": (lambda: npz(("x.npy", npy_raw(b"-" * 9000 + b"1"))), "damaged .npy header"),
    "npy_header_unhashable": (lambda: npz(("x.npy", npy_raw(b"{[]: 1}"))), "damaged .npy header"),
    "npy_header_cut": (lambda: npz(("x.npy", npy()[:20])), "damaged .npy header"),
    "npy_shape_is_a_list": (lambda: npz(("x.npy", npy(shape=[2]))), "damaged .npy header"),
    "npy_shape_negative": (lambda: npz(("x.npy", npy(shape=(-2,)))), "whole numbers from 0"),
    "npy_shape_bool": (lambda: npz(("x.npy", npy(shape=(True, 2)))), "whole numbers from 0"),
    "npy_order_is_text": (lambda: npz(("x.npy", npy(order="yes"))), "damaged .npy header"),
    "npy_version_9": (lambda: npz(("x.npy", npy_raw(b"{}", version=9))), "version 9"),
    "npy_empty_dtype": (lambda: npz(("x.npy", npy(descr=""))), "holds dtype ''"),
    # neither
    "pickle": (lambda: pickle.dumps(RunsCode()), "is a pickle.*accepted as .npz or .safetensors"),
    "old_pickle": (lambda: pickle.dumps({"a": [1]}, protocol=0), "is a pickle"),
    "single_npy": (npy, "single .npy array; models are accepted as"),
    "empty": (lambda: b"", "is empty; models are accepted as"),
    "text": (lambda: b"hello, world, this is no model", "no format known here; models are accepted as"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_with_a_sentence_and_without_allocating_what_it_claims(case, tmp_path):
    build, sentence = HOSTILE[case]
    path = tmp_path / "upload"
    path.write_bytes(build())
    tracemalloc.start()
    try:
        with pytest.raises(StudioError, match=sentence) as refused:
            to_canonical(path, tmp_path / "out", max_bytes=CAP)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.code == "invalid_model"
    assert refused.value.message.endswith(".")
    assert len(refused.value.message) < 400
    assert str(tmp_path) not in refused.value.message
    # The longest of these headers names 100,000 tensors; nothing else may come near.
    assert peak < (
        120_000_000 if "too_many" in case else 40_000_000 if "header_too_long" in case else 8_000_000
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["upload"]


def test_reading_the_header_alone_already_refuses(tmp_path):
    path = tmp_path / "upload"
    for case, read in (("ten_billion_floats", read_safetensors_header), ("npz_bomb", read_npz_header)):
        path.write_bytes(HOSTILE[case][0]())
        with pytest.raises(StudioError, match="at most"):
            read(path, max_bytes=CAP)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_model_is_read_or_refused_but_never_breaks_anything_else(seed, tmp_path):
    rng = random.Random(seed)
    arrays = {"a": np.ones((3, 4), np.float32), "b": np.arange(5), "c": np.array(True)}
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    originals = [
        savez(**arrays),
        packed.getvalue(),
        tensors({"a": f32(2, 0, 8), "b": {"dtype": "BOOL", "shape": [], "data_offsets": [8, 9]}}, bytes(9)),
    ]
    refused = 0
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "upload"
        for _ in range(400):
            data = bytearray(rng.choice(originals))
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(data))
                match rng.randrange(3):
                    case 0:
                        data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
                    case 1:
                        del data[at : at + rng.randint(1, 9)]
                    case 2:
                        data[at:at] = bytes(data[at : at + rng.randint(1, 9)])
                if not data:
                    break
            path.write_bytes(data)
            try:
                detect_format(path)
                to_canonical(path, Path(name) / "out", max_bytes=CAP)
            except StudioError as error:
                assert error.code in ("invalid_model", "not_finite")
                refused += 1
    assert refused > 100
