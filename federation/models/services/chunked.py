"""Files that come in chunks over several requests, then are named once by a token.

They lie in the data directory under names made here; what is known of each is a small file beside it. An upload
belongs to who began it; chunks come in order, and the last one sent may be sent again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile

from foundation.errors import StudioError, invalid, not_found
from projects.actors import Actor

MAX_CHUNK_BYTES = 4 << 20
MIN_CHUNK_BYTES = 1 << 10
STALE_S = 3600.0
OPEN_AT_ONCE = 4  # of one person or project
_WHAT = "upload; it may have been given up: begin again"


@dataclass
class _Note:
    """What is known of an upload that has begun."""

    owner: str
    file_name: str
    size: int
    chunk_size: int
    done: int = 0  # chunks


class ChunkedFile(UploadedFile):  # type: ignore[type-arg]  # generic in the stubs only
    """A whole file on disk, as services take one that came with a form."""

    def __init__(self, path: Path, name: str) -> None:
        body = path.open("rb")
        super().__init__(body, name=name, size=path.stat().st_size)
        self._path = path

    def temporary_file_path(self) -> str:
        return str(self._path)


def begin(*, actor: Actor, file_name: str, size: int, chunk_size: int) -> str:
    """The id under which the chunks are sent. Raises StudioError 400, 413, and 429 with too many begun."""
    most = max(int(settings.MAX_MODEL_BYTES), int(settings.MAX_PACKAGE_BYTES))
    if size <= 0:
        raise invalid("file_size", "The file is empty.")
    if size > most:
        raise StudioError("too_large", f"The file has {size} bytes; at most {most} are allowed here.", 413)
    if not MIN_CHUNK_BYTES <= chunk_size <= MAX_CHUNK_BYTES:
        raise invalid("chunk_size", f"A chunk has {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES} bytes.")
    _sweep()
    owner = _owner(actor)
    if sum(note.owner == owner for _, note in _notes()) >= OPEN_AT_ONCE:
        raise StudioError(
            "too_many_uploads", f"{OPEN_AT_ONCE} uploads are open; finish or abort one first.", 429
        )
    upload_id = secrets.token_hex(16)
    _folder().joinpath(f"{upload_id}.part").touch(mode=0o600, exist_ok=False)
    _write(upload_id, _Note(owner, Path(file_name.replace("\\", "/")).name[:200], size, chunk_size))
    return upload_id


def add_chunk(*, actor: Actor, upload_id: str, index: int, data: bytes) -> int:
    """Write one chunk; answers how many have come. Raises StudioError 400, 404, and 409 out of order."""
    with _locked(actor, upload_id) as (note, part):
        chunks = -(-note.size // note.chunk_size)
        if not 0 <= index < chunks:
            raise invalid("X-Chunk-Index", f"This upload has the chunks 0 to {chunks - 1}.")
        if index not in (note.done, note.done - 1):
            raise StudioError("out_of_order", f"Chunk {note.done} is next, not {index}.", 409)
        offset = index * note.chunk_size
        expected = min(note.chunk_size, note.size - offset)
        if len(data) != expected:
            raise invalid("chunk", f"Chunk {index} has {expected} bytes, not {len(data)}.")
        _write_at(part, data, offset)
        note.done = max(note.done, index + 1)
        _write(upload_id, note)
        return note.done


def complete(*, actor: Actor, upload_id: str) -> str:
    """All chunks have come: the token that names the file, once. Raises StudioError 404, 409."""
    with _locked(actor, upload_id) as (note, part):
        chunks = -(-note.size // note.chunk_size)
        if note.done != chunks or part.stat().st_size != note.size:
            raise StudioError("incomplete", f"{note.done} of {chunks} chunks have come.", 409)
        token = secrets.token_urlsafe(24)
        name = _name_of(token)
        _write(name, note)
        os.replace(part, part.with_name(f"{name}.part"))
        _note_path(upload_id).unlink(missing_ok=True)
    return token


def abort(*, actor: Actor, upload_id: str) -> None:
    """Forget it. Raises StudioError 404."""
    with _locked(actor, upload_id):
        _drop(upload_id)


@contextmanager
def taken(*, actor: Actor, file_token: str) -> Iterator[ChunkedFile]:
    """The file that was completed with this token; gone afterwards. Raises StudioError 404."""
    name = _name_of(file_token)
    with _locked(actor, name) as (note, part), contextlib.closing(ChunkedFile(part, note.file_name)) as file:
        try:
            yield file
        finally:
            _drop(name)


@contextmanager
def _locked(actor: Actor, name: str) -> Iterator[tuple[_Note, Path]]:
    """The actor's own upload, nobody else at work on it."""
    part = _folder() / f"{name}.part" if _is_name(name) else None
    if part is None or not part.exists():
        raise not_found(_WHAT)
    try:
        lock = os.open(part, os.O_RDWR)
    except FileNotFoundError:
        raise not_found(_WHAT) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudioError("busy", "Another request is at work on this upload.", 409) from None
        note = _read(name)
        if note is None or note.owner != _owner(actor):
            raise not_found(_WHAT)
        yield note, part
    finally:
        os.close(lock)


def _owner(actor: Actor) -> str:
    if actor.is_anonymous or actor.client_id is not None or not actor.actions:
        raise StudioError("not_authenticated", "Uploading needs a person's or a project's token.", 401)
    return actor.key


def _folder() -> Path:
    folder = Path(settings.DATA_DIR) / "chunked"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _is_name(text: str) -> bool:
    return len(text) == 32 and all(char in "0123456789abcdef" for char in text)


def _name_of(token: str) -> str:
    """No text of a stranger's forms a path, and the disk does not tell the token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _note_path(name: str) -> Path:
    return _folder() / f"{name}.json"


def _write(name: str, note: _Note) -> None:
    path = _note_path(name)
    draft = path.with_suffix(f".{secrets.token_hex(4)}.new")
    draft.write_text(json.dumps(asdict(note)))
    os.replace(draft, path)


def _read(name: str) -> _Note | None:
    try:
        return _Note(**json.loads(_note_path(name).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write_at(part: Path, data: bytes, offset: int) -> None:
    file = os.open(part, os.O_WRONLY)
    try:
        view = memoryview(data)
        while view:
            count = os.pwrite(file, view, offset)
            view, offset = view[count:], offset + count
    except OSError as error:
        raise StudioError("try_again_later", "The file cannot be kept now; try again later.", 503) from error
    finally:
        os.close(file)


def _drop(name: str) -> None:
    (_folder() / f"{name}.part").unlink(missing_ok=True)
    _note_path(name).unlink(missing_ok=True)


def _notes() -> Iterator[tuple[str, _Note]]:
    for path in _folder().glob("*.json"):
        note = _read(path.stem)
        if note is not None:
            yield path.stem, note


def _sweep() -> None:
    """What nobody went on with for an hour goes."""
    stale = time.time() - STALE_S
    for path in _folder().iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < stale:
                path.unlink()
