"""How FEDn's clients read and write a model file: their "helpers"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from django.conf import settings

from federation.aggregation.codecs import raw_to_canonical, to_npz, to_raw
from federation.aggregation.raw_file import RawDtype
from federation.combiner.downloads import Form
from federation.models.services.seeds import RAW_HELPERS

# numpyhelper, and what every other one falls back to
NPZ = Form("positional.npz", lambda source, target, _grant: to_npz(source, target, positional=True))


def _raw(dtype: RawDtype) -> Form:
    return Form(f"raw.{dtype}", lambda source, target, _grant: to_raw(source, target, dtype=dtype))


_FORMS = {helper: _raw(dtype) for helper, dtype in RAW_HELPERS.items()}


def form_for(helper: str) -> Form:
    return _FORMS.get(helper, NPZ)


def unwrapping(helper: str) -> Callable[[Path, Path], None] | None:
    """What makes an update of that helper one that the intake reads; None: it reads it as it is."""
    dtype = RAW_HELPERS.get(helper)
    if dtype is None:
        return None

    def unwrap(source: Path, target: Path) -> None:
        raw_to_canonical(source, target, dtype=dtype, max_bytes=settings.MAX_MODEL_BYTES)

    return unwrap
