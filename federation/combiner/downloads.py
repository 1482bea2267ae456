"""Global models on their way out: one local file each, whatever the storage is."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from django.core.files.storage import FileSystemStorage

from federation.combiner.encoded import EncodedOnce
from federation.combiner.threads import in_files
from federation.sessions.assignments import ModelGrant
from foundation import storage
from foundation.errors import StudioError

log = structlog.get_logger(__name__)

KEPT_FILES = 8
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Form:
    """Another way to write a model for some clients. `write(source, target, grant)` makes it of the canonical file, in
    a thread; `name` is unique among forms; what it writes may depend on the model alone."""

    name: str
    write: Callable[[Path, Path, ModelGrant], None]


class Downloads:
    """Local paths of models. With file storage that is the artifact itself; from S3 each model is fetched once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        self.encoded = EncodedOnce()
        self._digests: OrderedDict[str, str] = OrderedDict()
        self._kept: OrderedDict[str, asyncio.Future[Path]] = OrderedDict()

    async def open(self, grant: ModelGrant, form: Form | None = None) -> int:
        """A file descriptor of the model that the grant names, as stored or in another form (made once for all
        clients); the caller closes it. Raises StudioError 404, 503."""
        try:
            return os.open(await self._path(grant, form), os.O_RDONLY)
        except FileNotFoundError:
            raise StudioError(
                "model_gone", "The model of this assignment is no longer stored.", 404
            ) from None
        except StudioError:
            raise
        except Exception as error:  # each backend of storage raises its own; all mean: not now
            log.warning("download.put_off", model=str(grant.model_id), error=str(error)[:200])
            raise StudioError(
                "try_again_later", "The model cannot be read from storage now; try again later.", 503
            ) from error

    async def sha256_of(self, name: str, file: int) -> str:
        """SHA-256 (hex) of an open file that is the same for all who name it so; computed once."""
        known = self._digests.get(name)
        if known is None:
            known = self._digests[name] = await in_files(_sha256, file)
            while len(self._digests) > KEPT_FILES:
                self._digests.popitem(last=False)
        return known

    async def _path(self, grant: ModelGrant, form: Form | None = None) -> Path:
        if form is not None:
            return await self._kept_as(
                f"{grant.model_id}.{form.name}", lambda target: self._written(grant, form, target)
            )
        store = storage.artifacts()
        if isinstance(store, FileSystemStorage):
            return Path(store.path(grant.model_key))
        return await self._kept_as(
            grant.model_sha256, lambda target: in_files(self._fetch, grant.model_key, target)
        )

    async def _kept_as(self, name: str, make: Callable[[Path], Awaitable[Path]]) -> Path:
        task = self._kept.get(name)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.ensure_future(make(self.folder / name))
            self._kept[name] = task
        self._kept.move_to_end(name)
        while len(self._kept) > KEPT_FILES:
            old, _ = self._kept.popitem(last=False)
            (self.folder / old).unlink(missing_ok=True)
        return await asyncio.shield(task)

    async def _written(self, grant: ModelGrant, form: Form, target: Path) -> Path:
        source = await self._path(grant)
        draft = target.with_name(f"{target.name}.part")
        await in_files(form.write, source, draft, grant)
        os.replace(draft, target)
        return target

    def _fetch(self, key: str, target: Path) -> Path:
        draft = target.with_name(f"{target.name}.part")
        with storage.open_artifact(key) as body, open(draft, "wb") as out:
            shutil.copyfileobj(body, out, CHUNK_BYTES)
        os.replace(draft, target)
        return target


def _sha256(file: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while data := os.pread(file, CHUNK_BYTES, offset):
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()
