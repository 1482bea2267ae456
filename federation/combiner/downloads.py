"""Global models on their way out: one local file each, whatever the storage is."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import OrderedDict
from pathlib import Path

import structlog
from django.core.files.storage import FileSystemStorage

from federation.combiner.threads import in_files
from federation.sessions.assignments import WorkGrant
from foundation import storage
from foundation.errors import StudioError

log = structlog.get_logger(__name__)

KEPT_FILES = 8
CHUNK_BYTES = 1 << 20


class Downloads:
    """Local paths of models. With file storage that is the artifact itself; from S3 each model is fetched once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        self._kept: OrderedDict[str, asyncio.Task[Path]] = OrderedDict()

    async def open(self, grant: WorkGrant) -> int:
        """A file descriptor of the model that the grant names; the caller closes it."""
        try:
            return os.open(await self._path(grant), os.O_RDONLY)
        except FileNotFoundError:
            raise StudioError(
                "model_gone", "The model of this assignment is no longer stored.", 404
            ) from None
        except Exception as error:  # each backend of storage raises its own; all mean: not now
            log.warning("download.put_off", model=str(grant.model_id), error=str(error)[:200])
            raise StudioError(
                "try_again_later", "The model cannot be read from storage now; try again later.", 503
            ) from error

    async def _path(self, grant: WorkGrant) -> Path:
        store = storage.artifacts()
        if isinstance(store, FileSystemStorage):
            return Path(store.path(grant.model_key))
        task = self._kept.get(grant.model_sha256)
        if task is None or (task.done() and task.exception() is not None):
            task = asyncio.create_task(in_files(self._fetch, grant.model_key, grant.model_sha256))
            self._kept[grant.model_sha256] = task
        self._kept.move_to_end(grant.model_sha256)
        while len(self._kept) > KEPT_FILES:
            old, _ = self._kept.popitem(last=False)
            (self.folder / old).unlink(missing_ok=True)
        return await asyncio.shield(task)

    def _fetch(self, key: str, sha256: str) -> Path:
        target = self.folder / sha256
        draft = target.with_suffix(".part")
        with storage.open_artifact(key) as body, open(draft, "wb") as out:
            shutil.copyfileobj(body, out, CHUNK_BYTES)
        os.replace(draft, target)
        return target
