"""Files that came, made plain and checked: what intake does in threads, with the spool and the model at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation.aggregation.aggregators import UpdateFacts
from federation.aggregation.codecs import UpdateCheck, check_update, to_canonical
from federation.aggregation.compressed import decompress
from federation.aggregation.layout import Layout
from federation.combiner.spool import Spool
from federation.combiner.staging import WIDEST
from federation.combiner.upload import Upload
from federation.sessions.assignments import WorkGrant

HEADER_SLACK_BYTES = 1 << 20  # what a file may hold beyond its tensors


@dataclass(frozen=True)
class Whole:
    """A plain update that is whole, in the spool under this name of a part."""

    name: str
    sha256: str
    size_bytes: int


def converted(
    source: Path, target: Path, expected: Layout, unwrap: Callable[[Path, Path], None] | None
) -> None:
    """Write the canonical file of a staged one, inside whatever `unwrap(src, dst)` takes off. Raises StudioError."""
    inner = target.with_suffix(".inner.part")
    try:
        if unwrap is not None:
            unwrap(source, inner)
            source = inner
        to_canonical(
            source, target, max_bytes=WIDEST * expected.nbytes + HEADER_SLACK_BYTES, expected=expected
        )
    finally:
        inner.unlink(missing_ok=True)


def decompressed(spool: Spool, upload: Upload, name: str, layout: Layout, model: int) -> Whole:
    """The plain update of a compressed one, as the part `name`. `model` is an open file, and closed here. Raises
    StudioError."""
    with open(model, "rb", buffering=0) as base:
        sha256 = decompress(spool.part(upload.name), base, spool.part(name), layout, upload.form)
    return Whole(name, sha256, spool.received_bytes(name))


def checked(path: Path, expected: Layout, size: int, base: int | None) -> UpdateCheck:
    """As `check_update`; `base` is an open file of the model, and closed here. Raises StudioError."""
    if base is None:
        return check_update(path, expected, max_bytes=size)
    with open(base, "rb", buffering=0) as model:
        return check_update(path, expected, max_bytes=size, base=model)


def facts_of(grant: WorkGrant, examples: float, metadata: dict[str, Any], found: UpdateCheck) -> UpdateFacts:
    """What is known of an update before it has a row that says so."""
    return UpdateFacts(
        key=str(grant.client_id),
        num_examples=examples,
        metadata=metadata,
        base=str(grant.model_id),
        delta_norm=found.delta_norm,
    )
