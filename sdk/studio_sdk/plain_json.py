"""JSON of what numerical code returns: numpy's scalars and arrays become JSON's own numbers and lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """The value with numpy's types replaced, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value


def dumps(value: Any) -> str:
    """The value as JSON text. Raises TypeError, ValueError on what JSON cannot say."""
    return json.dumps(plain(value))
