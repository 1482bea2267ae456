"""What arrives from people: names that can be read back, and files that lie on disk while they are checked."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.core.files.uploadedfile import UploadedFile

from foundation.errors import StudioError, invalid

MAX_NAME_CHARS = 120
_SPACES = re.compile(r"\s+")


def checked_name(name: object) -> str:
    """A name of 1 to 120 printable characters, without outer or double spaces. Raises StudioError `invalid`."""
    text = _SPACES.sub(" ", name).strip() if isinstance(name, str) else ""
    if not 1 <= len(text) <= MAX_NAME_CHARS or not text.isprintable():
        raise invalid("name", f"A name has 1 to {MAX_NAME_CHARS} printable characters.")
    return text


def checked_size(upload: UploadedFile[Any] | None, *, max_bytes: int, what: str) -> UploadedFile[Any]:
    """The upload, if there is one that is neither empty nor larger than `max_bytes`; else StudioError 400 or 413."""
    if upload is None or not hasattr(upload, "chunks"):
        raise invalid("file", f"Send the {what} as a file in the field “file”.")
    if not upload.size:
        raise invalid("file", f"The {what} is empty.")
    if upload.size > max_bytes:
        raise StudioError(
            "too_large",
            f"The {what} has {upload.size} bytes; at most {max_bytes} are allowed here.",
            413,
            field="file",
            max_bytes=max_bytes,
        )
    return upload


@contextmanager
def on_disk(upload: UploadedFile[Any]) -> Iterator[Path]:
    """A local file with the upload's content. Large ones already are one; nothing is read into memory."""
    given = getattr(upload, "temporary_file_path", None)
    if given is not None:
        if upload.file is not None:
            upload.file.flush()
        yield Path(given())
        return
    with tempfile.NamedTemporaryFile(prefix="studio-upload-") as draft:
        for chunk in upload.chunks():
            draft.write(chunk)
        draft.flush()
        yield Path(draft.name)
