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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..project.environment import cache_dir

KEPT_MODELS = 4
KEPT_UPDATES_S = 7 * 24 * 3600.0
KEPT_DEBTS = 4  # each of them at most as large as a model in float32, or float64
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Update:
    """A trained model on disk, waiting for its receipt; `form`: compressed to it, with the debt of that name (what
    its rounding owes to the session's next update)."""

    assignment_id: str
    upload_id: str
    sha256: str
    size_bytes: int
    metadata: dict[str, Any]
    form: str = ""
    debt: str = ""


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
        self.debts = base / "debts"
        for folder_ in (self.models, self.updates, self.debts):
            folder_.mkdir(exist_ok=True)
        if not self._temporary:
            for left_over in [*base.glob("task-*"), *base.glob("second-*")]:
                shutil.rmtree(left_over, ignore_errors=True)
            for old in [*self.updates.iterdir(), *self.debts.iterdir()]:
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

    def compressed_file(self, assignment_id: str) -> Path:
        """Where the same update is kept in fewer bytes."""
        return self.updates / f"{_plain(assignment_id)}.compressed.safetensors"

    def file_of(self, update: Update) -> Path:
        """The bytes that travel."""
        if update.form:
            return self.compressed_file(update.assignment_id)
        return self.update_file(update.assignment_id)

    def keep_update(
        self, assignment_id: str, sha256: str, metadata: dict[str, Any], form: str = "", debt: str = ""
    ) -> Update:
        """Remember that the update's file is whole. Done last: without it the file does not count."""
        update = Update(assignment_id, str(uuid.uuid4()), sha256, 0, metadata, form, debt)
        file = self.file_of(update)
        update = replace(update, size_bytes=file.stat().st_size)
        record = file.with_suffix(".json")
        part = record.with_suffix(".part")
        part.write_text(json.dumps(asdict(update)), encoding="utf-8")
        part.replace(record)
        return update

    def kept_update(self, assignment_id: str) -> Update | None:
        """The update of this assignment, when it was trained before and its receipt never came."""
        return self._recorded(self.update_file(assignment_id), assignment_id)

    def kept_compressed(self, assignment_id: str) -> Update | None:
        """The same, in fewer bytes, if that was made."""
        return self._recorded(self.compressed_file(assignment_id), assignment_id)

    def _recorded(self, file: Path, assignment_id: str = "") -> Update | None:
        try:
            update = Update(**json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        whole = file.is_file() and file.stat().st_size == update.size_bytes
        return update if whole and assignment_id in ("", update.assignment_id) else None

    def note_sent(self, update: Update) -> None:
        """From now on a combiner may have it in this form, whatever becomes of this process."""
        self.file_of(update).with_suffix(".sent").touch()

    def was_sent(self, update: Update) -> bool:
        """Whether a combiner may have it in this form."""
        return self.file_of(update).with_suffix(".sent").exists()

    def drop_update(self, assignment_id: str) -> None:
        """Its receipt came, or nobody wants it any more."""
        for file in (self.update_file(assignment_id), self.compressed_file(assignment_id)):
            for path in (file.with_suffix(".json"), file, file.with_suffix(".sent")):
                path.unlink(missing_ok=True)
        self.new_debt_file(assignment_id).unlink(missing_ok=True)

    # ---- what the rounding of compressed updates owes

    def debt_file(self, name: str) -> Path:
        """What is owed under that name, if anything: after the updates that were accepted."""
        return self.debts / f"{_plain(name)}.debt"

    def new_debt_file(self, assignment_id: str) -> Path:
        """What will be owed once the update of this assignment is accepted."""
        return self.updates / f"{_plain(assignment_id)}.debt"

    def settle(self, update: Update) -> None:
        """A compressed update was accepted: what it owes takes the place of what was owed. May be repeated."""
        file = self.debt_file(update.debt)
        with contextlib.suppress(FileNotFoundError):
            self.new_debt_file(update.assignment_id).replace(file)
        found = sorted(self.debts.iterdir(), key=_age, reverse=True)
        for path in [p for p in found if p != file][KEPT_DEBTS - 1 :]:
            path.unlink(missing_ok=True)

    def forgive(self, update: Update) -> None:
        """Nothing is owed any more under the name of its debt."""
        self.debt_file(update.debt).unlink(missing_ok=True)

    def unsettled(self, debt: str) -> list[Update]:
        """Compressed updates whose receipt never came, oldest first, with that debt."""
        files = sorted(self.updates.glob("*.compressed.safetensors"), key=_age)
        found = [self._recorded(file) for file in files]
        return [update for update in found if update is not None and update.debt == debt]

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
