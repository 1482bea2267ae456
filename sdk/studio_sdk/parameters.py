"""Helper functions for compute packages: the files an entry point reads and writes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import tensors
from .names import METRICS_FD
from .plain_json import dumps
from .tensors import Arrays

StrPath = str | os.PathLike[str]


def load_parameters(path: StrPath) -> Arrays:
    """The model's arrays by name, from `.npz` or `.safetensors`; the content decides, not the file's name.

    Arrays of a safetensors file are read-only views of the file: `array.copy()` before changing one in place.
    Raises ValueError when the file is neither, or when it holds pickled objects.
    """
    file = Path(path)
    with file.open("rb") as opened:
        # as a safetensors header length this prefix would mean 67 MB, which no reader allows
        is_zip = opened.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    if not is_zip:
        return tensors.read_file(file)
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in tensors.numbered_first(archive.files)}


def save_parameters(parameters: Mapping[str, Any] | Sequence[Any], path: StrPath) -> None:
    """Write arrays (by name, or a list, named `0` to `n-1`) to `path`: as `.npz` if it ends so, else
    safetensors."""
    named = parameters if isinstance(parameters, Mapping) else {str(i): a for i, a in enumerate(parameters)}
    target = Path(path)
    if target.suffix == ".npz":
        with target.open("wb") as file:
            # the file object keeps numpy from adding a second suffix
            np.savez(file, allow_pickle=False, **{name: np.asarray(array) for name, array in named.items()})
    else:
        tensors.write_file(target, {name: np.asarray(array) for name, array in named.items()})


def load_settings(model_path: StrPath) -> dict[str, Any]:
    """The session's client settings that came with the model `model_path` (its `-metadata` file); {} without
    one."""
    file = Path(f"{os.fspath(model_path)}-metadata")
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def save_metadata(metadata: Mapping[str, Any], model_path: StrPath) -> None:
    """Write the training's metadata beside the update `model_path`. `num_examples` (number of training
    examples, the update's weight in the average) is required."""
    if "num_examples" not in metadata:
        raise ValueError("The metadata needs num_examples: how many examples the update was trained on.")
    Path(f"{os.fspath(model_path)}-metadata").write_text(dumps(metadata), encoding="utf-8")


def save_metrics(metrics: Mapping[str, Any], path: StrPath) -> None:
    """Write a validation's result as JSON; every number in it becomes a metric of the model."""
    Path(path).write_text(dumps(metrics), encoding="utf-8")


def log_metric(name: str, value: float, step: int = 0) -> None:
    """Send one number while training; it appears on the session's page. Outside a Studio client nothing
    happens."""
    descriptor = os.environ.get(METRICS_FD)
    if descriptor is None:
        return
    line = json.dumps({"values": {name: float(value)}, "step": int(step)}) + "\n"
    try:
        os.write(int(descriptor), line.encode())
    except (OSError, ValueError):
        os.environ.pop(METRICS_FD, None)  # nobody listens: training matters more than its metrics
