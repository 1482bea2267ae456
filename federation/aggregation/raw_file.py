"""Bare numbers without any header, as FEDn's helpers write `.bin`: binaryhelper float64, androidhelper float32, both
little-endian. Names and shapes are lost in them, so such a model is one flat tensor called "0"."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from .blocks import BLOCK_ELEMENTS, BlockReader, FiniteNorm, Narrower
from .layout import DTYPES, Layout, TensorSpec, invalid_model, not_finite
from .safetensors_file import StrPath, canonical_header, new_file, read_safetensors_header

RawDtype = Literal["F64", "F32"]


def raw_to_canonical(
    src_path: StrPath,
    dst_path: StrPath,
    *,
    dtype: RawDtype,
    max_bytes: int,
    require_finite: bool = True,
    fsync: bool = False,
) -> Layout:
    """Rewrite bare numbers as canonical safetensors: one tensor "0" of shape (n,). Returns its layout.

    Raises StudioError `invalid_model` for an empty file, one of more than `max_bytes` or of a length that is no
    multiple of the number's; `not_finite` when `require_finite`. On any error `dst_path` is left as it was.
    """
    size, width = Path(src_path).stat().st_size, DTYPES[dtype].itemsize
    if size > max_bytes:
        raise invalid_model(f"The model claims {size} bytes of numbers; at most {max_bytes} are allowed.")
    if size == 0 or size % width:
        raise invalid_model(
            f"The file has {size} bytes; bare numbers of {dtype} need a multiple of {width}, and at least one."
        )
    spec = TensorSpec("0", dtype, (size // width,))
    layout = Layout((spec,))
    reader, norm = BlockReader(), FiniteNorm()
    with Path(src_path).open("rb", buffering=0) as source, new_file(dst_path, fsync=fsync) as file:
        file.write(canonical_header(layout))
        for at in range(0, spec.count, BLOCK_ELEMENTS):
            block = reader.read(source, dtype, min(BLOCK_ELEMENTS, spec.count - at))
            if require_finite and not norm.add(block):
                raise not_finite(spec.name)
            file.write(block.view(np.uint8).data)
    return layout


def to_raw(src_safetensors_path: StrPath, dst_path: StrPath, *, dtype: RawDtype) -> None:
    """Write all numbers of a safetensors model, tensor by tensor in layout order, as `dtype` and nothing else.

    Raises StudioError `not_finite` naming the tensor that holds a number too large for `dtype`.
    """
    size = Path(src_safetensors_path).stat().st_size
    layout, data_start, offsets = read_safetensors_header(src_safetensors_path, max_bytes=size)
    reader, narrower = BlockReader(), Narrower()
    with Path(src_safetensors_path).open("rb", buffering=0) as source, new_file(dst_path) as file:
        for spec in layout.tensors:
            source.seek(data_start + offsets[spec.name][0])
            for at in range(0, spec.count, BLOCK_ELEMENTS):
                block = reader.read(source, spec.dtype, min(BLOCK_ELEMENTS, spec.count - at))
                if spec.dtype != dtype:
                    block = narrower.cast(block.astype(np.float64), dtype)
                    if not narrower.finite(block):
                        raise not_finite(spec.name, f"a number too large for {dtype}")
                file.write(block.view(np.uint8).data)
