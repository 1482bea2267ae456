"""Compute packages made on the spot, honest and hostile."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from typing import Any

from asgiref.sync import async_to_sync
from django.core.files.uploadedfile import SimpleUploadedFile

STUDIO_YAML = (
    b"entry_points:\n  train:\n    command: python train.py\n  validate:\n    command: python validate.py\n"
)


def tar_bytes(
    files: dict[str, bytes] | None = None,
    *,
    mode: str = "w:gz",
    more: Callable[[tarfile.TarFile], None] | None = None,
    fmt: int = tarfile.PAX_FORMAT,
) -> bytes:
    """An archive of `files` (default: a studio.yaml and a train.py), to which `more` may add anything."""
    out = io.BytesIO()
    content = {"studio.yaml": STUDIO_YAML, "train.py": b"print('train')\n"} if files is None else files
    with tarfile.open(fileobj=out, mode=mode, format=fmt) as archive:  # type: ignore[call-overload]
        for name, body in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
        if more is not None:
            more(archive)
    return out.getvalue()


def upload(body: bytes, name: str = "package.tgz") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, body, content_type="application/octet-stream")


def content_of(response: Any) -> bytes:
    """A whole download, gathered as an ASGI server would."""

    async def gather() -> bytes:
        return b"".join([block async for block in response])

    return async_to_sync(gather)()
