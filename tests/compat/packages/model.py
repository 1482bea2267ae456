"""The model of both packages. Its training can be done again by hand: every client adds its own constant, layer i
gets (i + 1) times of it."""

import json
import os
import pathlib
import time

import numpy as np

SHAPES = ((4, 3), (3,), (3, 2), (2,))


def build():
    """The seed model's layers."""
    return {str(i): np.full(shape, i + 1, np.float32) for i, shape in enumerate(SHAPES)}


def load(path):
    """Layers by name, in the file's order."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def save(layers, path):
    """As FEDn's numpyhelper writes it; an open file keeps numpy from adding a suffix."""
    with open(path, "wb") as file:
        np.savez_compressed(file, **layers)


def trained(layers):
    """One round of this client's training, and what it says about it."""
    if os.environ.get("COMPAT_FAIL"):
        raise RuntimeError("this client was told to fail")
    step = np.float32(os.environ.get("COMPAT_STEP", "1"))
    layers = {name: layer + step * np.float32(i + 1) for i, (name, layer) in enumerate(layers.items())}
    return layers, {"num_examples": int(os.environ.get("COMPAT_EXAMPLES", "1")), "step": float(step)}


def measured(layers):
    """What this client says about a model."""
    return {
        "total": float(sum(layer.astype(np.float64).sum() for layer in layers.values())),
        "step": float(os.environ.get("COMPAT_STEP", "1")),
    }


def wait_for_gate(look=lambda: None):
    """A client whose test holds it back trains when the file COMPAT_GATE appears; it says that it waits.

    `look` is called while it waits; it may raise to end the waiting.
    """
    gate = os.environ.get("COMPAT_GATE")
    if not gate:
        return
    print("waiting at the gate", flush=True)
    deadline = time.monotonic() + 60
    while not pathlib.Path(gate).exists():
        look()
        if time.monotonic() > deadline:
            raise RuntimeError("the gate stayed shut")
        time.sleep(0.05)


def settings_of(path):
    """The client settings that come with a model."""
    beside = pathlib.Path(str(path) + "-metadata")
    return json.loads(beside.read_text()) if beside.exists() else {}
