"""Compressed updates: what a client changed in the model that it was given, in fewer bits, and back.

The file is safetensors like any update, so that names, dtypes, shapes and sizes are checked from its header before a
byte is decoded. A float tensor that gets smaller by it holds its *change* (update minus model) divided by a scale of
its own, in the form's dtype under its own name; every other tensor (integers, booleans, a float or two, floats as
narrow as the form) holds its values as in a plain update. The scales are one vector of float64, in the order of the
model's layout.

| form | dtype | scale of a tensor whose largest change is m | largest error of a change x |
|---|---|---|---|
| float16 | F16 | a power of two: m comes to lie between 2^14 and 2^15 | 2^-11 abs(x), or 2^-39 m |
| bfloat16 | BF16 | the same | 2^-8 abs(x) |
| int8 | I8 | m / 127 | half a step of m / 127 |

The client adds to a change what earlier roundings kept back (error feedback: Seide et al., Interspeech 2014, section
2.1; Karimireddy et al., ICML 2019, arXiv 1901.09847, algorithm 2). The server knows nothing of that.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO

import numpy as np

from foundation.errors import StudioError

from .blocks import BLOCK_ELEMENTS, BlockReader, Float64s, Narrower
from .layout import DTYPES, FLOATS, Layout, TensorSpec, shown
from .safetensors_file import (
    ModelSink,
    StrPath,
    canonical_header,
    canonical_offsets,
    new_file,
    read_safetensors_header,
    storage_order,
)

FORMS = {"float16": "F16", "bfloat16": "BF16", "int8": "I8"}
SCALE_BYTES = 8


def is_narrowed(spec: TensorSpec, form: str) -> bool:
    """Whether the tensor travels as its change: it holds floats, and is smaller for it, its scale included."""
    narrow = spec.count * DTYPES[FORMS[form]].itemsize + SCALE_BYTES
    return spec.dtype in FLOATS and narrow < spec.nbytes


def scales_name(layout: Layout) -> str:
    """What the vector of scales is called: a name that no tensor of the model has."""
    name = "scales"
    while name in layout.by_name:
        name = f"_{name}"
    return name


def compressed_layout(layout: Layout, form: str) -> Layout:
    """The layout of the file that a compressed update of a model with this layout is.

    Raises KeyError for a form that is none.
    """
    specs = [
        TensorSpec(spec.name, FORMS[form], spec.shape) if is_narrowed(spec, form) else spec
        for spec in layout.tensors
    ]
    narrowed = sum(is_narrowed(spec, form) for spec in layout.tensors)
    if narrowed:
        specs.append(TensorSpec(scales_name(layout), "F64", (narrowed,)))
    return Layout(tuple(specs))


def decompress(source: StrPath, model: IO[bytes], target: StrPath, layout: Layout, form: str) -> str:
    """Write the plain canonical update that a compressed one stands for, synced to disk; its sha256.

    `model` is the canonical file of the model it answers, open and unbuffered, and `layout` that model's. A change is
    multiplied by its scale and added to the model in float64, and rounded once to the model's dtype; whether every
    number is finite is for `check_update` to see. Memory: a few blocks, whatever the model's size.

    Raises StudioError `invalid_model`, `layout_mismatch` (one sentence on the first tensor that differs),
    `bad_scale`; 503 `model_damaged` when `model` is not that model.
    """
    wanted = compressed_layout(layout, form)
    found, data_start, offsets = read_safetensors_header(source, max_bytes=wanted.nbytes)
    difference = wanted.difference(found)
    if difference is not None:
        raise StudioError(
            "layout_mismatch", f"The update does not fit the model, compressed to {form}. {difference}"
        )
    header = canonical_header(layout)
    model.seek(0)
    if model.read(len(header)) != header:
        raise StudioError("model_damaged", "The model of this assignment cannot be read; try again.", 503)
    model_offsets = canonical_offsets(layout)
    change, base = np.empty(BLOCK_ELEMENTS), np.empty(BLOCK_ELEMENTS)
    readers, narrower = (BlockReader(), BlockReader()), Narrower()
    with Path(source).open("rb", buffering=0) as file, new_file(target, fsync=True) as out:
        scales = _scales(file, data_start, offsets, layout, form)
        sink = ModelSink(out)
        sink.write(header)
        for spec in storage_order(layout):
            file.seek(data_start + offsets[spec.name][0])
            scale = scales.get(spec.name)
            if scale is not None:
                model.seek(len(header) + model_offsets[spec.name][0])
            for at in range(0, spec.count, BLOCK_ELEMENTS):
                count = min(BLOCK_ELEMENTS, spec.count - at)
                if scale is None:
                    sink.write(readers[0].read(file, spec.dtype, count).view(np.uint8).data)
                    continue
                values: Float64s = change[:count]
                np.copyto(values, readers[0].read(file, FORMS[form], count))
                np.copyto(base[:count], readers[1].read(model, spec.dtype, count))
                # what the file holds may be infinite or overflow here: the check of every update names the tensor
                with np.errstate(over="ignore", invalid="ignore"):
                    values *= scale
                    values += base[:count]
                    sink.write(narrower.cast(values, spec.dtype).view(np.uint8).data)
        return sink.sha256


def _scales(
    file: IO[bytes], data_start: int, offsets: dict[str, tuple[int, int]], layout: Layout, form: str
) -> dict[str, float]:
    """Each narrowed tensor's scale, by name."""
    names = [spec.name for spec in layout.tensors if is_narrowed(spec, form)]
    reader, values = BlockReader(), []
    if names:
        file.seek(data_start + offsets[scales_name(layout)][0])
        for at in range(0, len(names), BLOCK_ELEMENTS):
            values += reader.read(file, "F64", min(BLOCK_ELEMENTS, len(names) - at)).tolist()
    for name, value in zip(names, values, strict=True):
        if not (math.isfinite(value) and value >= 0):
            raise StudioError(
                "bad_scale",
                f"Tensor {shown(name)} has the scale {value}; it must be a finite number from 0 up.",
            )
    return dict(zip(names, values, strict=True))
