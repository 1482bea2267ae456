"""The client's files: models by their sha256, and updates that nobody has answered for yet."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..project.environment import cache_dir

KEPT_MODELS = 4
KEPT_UPDATES_S = 7 * 24 * 3600.0
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Update:
    """A trained model on disk, waiting for its receipt."""

    assignment_id: str
    upload_id: str
    sha256: str
    size_bytes: int
    metadata: dict[str, Any]


class Store:
    """One folder per client id, owned by one process; a second process of the same client gets a temporary one."""

    def __init__(self, client_id: str, folder: Path | None = None) -> None:
        base = folder or cache_dir() / "clients" / _plain(client_id or "unnamed")
        base.mkdir(parents=True, exist_ok=True)
        base.chmod(0o700)
        self._lock = (base / "lock").open("w")
        self._temporary = False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._temporary = True
            base = Path(tempfile.mkdtemp(dir=base, prefix="second-"))
        self.folder = base
        self.models = base / "models"
        self.updates = base / "updates"
        self.models.mkdir(exist_ok=True)
        self.updates.mkdir(exist_ok=True)
        if not self._temporary:
            for left_over in [*base.glob("task-*"), *base.glob("second-*")]:
                shutil.rmtree(left_over, ignore_errors=True)
            for old in self.updates.iterdir():
                if time.time() - _age(old) > KEPT_UPDATES_S:
                    old.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the folder back."""
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    # ---- models

    def model(self, sha256: str) -> Path:
        """Where the model of this sha256 is, or will be."""
        return self.models / f"{sha256 if _SHA256.match(sha256) else _plain(sha256)}.safetensors"

    def prune_models(self, keep: Path) -> None:
        """Keep the newest few models, `keep` among them."""
        found = sorted(self.models.glob("*.safetensors"), key=_age, reverse=True)
        for path in [p for p in found if p != keep][KEPT_MODELS - 1 :]:
            path.unlink(missing_ok=True)

    # ---- updates

    def update_file(self, assignment_id: str) -> Path:
        """Where the update of this assignment is kept."""
        return self.updates / f"{_plain(assignment_id)}.safetensors"

    def keep_update(self, assignment_id: str, sha256: str, metadata: dict[str, Any]) -> Update:
        """Remember that the file at `update_file` is whole. Done last: without it the file does not count."""
        file = self.update_file(assignment_id)
        update = Update(assignment_id, str(uuid.uuid4()), sha256, file.stat().st_size, metadata)
        record = file.with_suffix(".json")
        part = record.with_suffix(".part")
        part.write_text(json.dumps(asdict(update)), encoding="utf-8")
        part.replace(record)
        return update

    def kept_update(self, assignment_id: str) -> Update | None:
        """The update of this assignment, when it was trained before and its receipt never came."""
        file = self.update_file(assignment_id)
        try:
            update = Update(**json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        whole = file.is_file() and file.stat().st_size == update.size_bytes
        return update if whole and update.assignment_id == assignment_id else None

    def drop_update(self, assignment_id: str) -> None:
        """Its receipt came, or nobody wants it any more."""
        file = self.update_file(assignment_id)
        file.with_suffix(".json").unlink(missing_ok=True)
        file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def task_folder(self) -> Iterator[Path]:
        """A folder for one run of an entry point."""
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="task-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _plain(name: str) -> str:
    """No string of a server's ever forms a path."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
