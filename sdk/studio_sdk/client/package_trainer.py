"""Training by a compute package's entry points: the package fetched, its environment built, its commands run."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import studio_v1_pb2 as pb
from ..errors import PackageError, StudioApiError, TaskCancelled, TaskFailed
from ..parameters import load_parameters, save_parameters
from ..project.archive import sha256_of, unpack
from ..project.entry_point import (
    CancelSwitch,
    Ended,
    EntryPointCancelled,
    EntryPointLate,
    Listeners,
    run_entry_point,
)
from ..project.environment import cache_dir, environment_for, read_spec
from ..project.project_file import ProjectFile, find_in_package, find_project_file, read_project_file
from .backoff import Backoff
from .links import Links
from .store import Store
from .tasks import HeldTask
from .trainer import Job, with_num_examples, write_update

FetchPackage = Callable[[str, Path, str], object]
LOG_EVERY_S = 1.0
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class PackageTrainer:
    """With `folder` the local package is used for every task, else the session's package is fetched.

    `fetch(package_id, target, sha256)` downloads a package; `environ` is added to the entry points' environment.
    """

    can_validate = True

    def __init__(
        self,
        *,
        store: Store,
        links: Links,
        say: Callable[[str], None],
        fetch: FetchPackage,
        folder: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._store = store
        self._links = links
        self._say = say
        self._fetch = fetch
        self._folder = folder
        self._environ = dict(environ or {})
        self._ready: tuple[str, ProjectFile, Path | None] | None = None
        if folder is not None:
            project = read_project_file(find_project_file(folder))
            project.command("train")
            self.can_validate = "validate" in project.commands

    # ---- the package

    def prepare(self) -> None:
        """Build the local package's environment and run its start-up."""
        if self._folder is not None:
            self._use("local", read_project_file(find_project_file(self._folder)), CancelSwitch(), None)

    def prepare_task(self, held: HeldTask) -> None:
        """Fetch and prepare the package of a task, unless it is the one in use."""
        task = held.task
        if self._folder is not None or (self._ready and self._ready[0] == task.package_sha256 != ""):
            return
        if not task.package_id:
            raise TaskFailed(
                "The session has no compute package and this client has none of its own: start it with "
                "--path DIR, or choose a package for the session."
            )
        folder = self._unpacked(task, held.cancel)
        self._use(task.package_sha256, read_project_file(find_in_package(folder)), held.cancel, held)

    def _unpacked(self, task: pb.Task, cancel: CancelSwitch) -> Path:
        if not _SHA256.match(task.package_sha256):
            raise PackageError("The server announced the package without a sha256; it is not run.")
        packages = cache_dir() / "packages"
        packages.mkdir(parents=True, exist_ok=True)
        # one copy per client: an entry point may write beside its code
        folder = self._store.folder / "packages" / task.package_sha256
        if folder.is_dir():
            return folder
        archive = packages / f"{task.package_sha256}.tgz"
        if not archive.is_file() or sha256_of(archive) != task.package_sha256:
            self._say("fetching the compute package")
            self._fetch_patiently(task, archive, cancel)
        unpack(archive, folder)
        return folder

    def _fetch_patiently(self, task: pb.Task, archive: Path, cancel: CancelSwitch) -> None:
        """The web may be down for a while: try until the task is cancelled."""
        backoff = Backoff()
        while True:
            try:
                self._fetch(task.package_id, archive, task.package_sha256)
                return
            except StudioApiError as error:
                if error.code == "checksum":
                    raise PackageError(
                        f"The compute package is not what the server announced. {error}"
                    ) from None
                if error.status in (401, 403, 404):
                    raise TaskFailed(f"The compute package cannot be fetched: {error}") from None
                self._say(f"the compute package cannot be fetched yet: {error}")
            if cancel.wait(backoff.next_s()):
                raise TaskCancelled

    def _use(self, key: str, project: ProjectFile, cancel: CancelSwitch, held: HeldTask | None) -> None:
        environment = (
            environment_for(read_spec(project.python_env), self._say) if project.python_env else None
        )
        if cancel.is_set():
            raise TaskCancelled
        if "startup" in project.commands:
            self._say("running the start-up")
            deadline = held.deadline if held else None
            ended = self._run(project, environment, "startup", [], held, cancel, deadline)
            if ended.exit_code:
                tail = ended.tail.splitlines()
                raise PackageError(
                    f"The package's start-up ended with exit code {ended.exit_code}: {' '.join(tail[-3:])}"
                )
        self._ready = (key, project, environment)

    # ---- the entry points

    def train(self, job: Job) -> tuple[str, dict[str, Any]]:
        """`train IN OUT`; OUT and OUT-metadata become the update."""
        project, environment = self._project("train")
        with self._store.task_folder() as folder:
            given = _hand_over(job, folder, project.model_format)
            made = folder / f"update.{project.model_format}"
            ended = self._run(
                project,
                environment,
                "train",
                [str(given), str(made)],
                job.held,
                job.held.cancel,
                job.held.deadline,
            )
            _check(ended, "train", made)
            metadata = _read_json(Path(f"{made}-metadata"), ended, "train wrote no metadata", "save_metadata")
            checked = with_num_examples(metadata, f"{made.name}-metadata")
            try:
                arrays = load_parameters(made)
            except (ValueError, OSError) as error:
                raise TaskFailed(f"train wrote no readable model: {error}", 0, ended.tail) from None
            return write_update(arrays, job), checked

    def validate(self, job: Job) -> Mapping[str, Any]:
        """`validate IN OUT.json`."""
        project, environment = self._project("validate")
        with self._store.task_folder() as folder:
            given = _hand_over(job, folder, project.model_format)
            made = folder / "validation.json"
            ended = self._run(
                project, environment, "validate", [str(given), str(made)],
                job.held, job.held.cancel, job.held.deadline,
            )  # fmt: skip
            _check(ended, "validate", made)
            metrics = _read_json(made, ended, "validate wrote no result", "save_metrics")
            if not isinstance(metrics, dict):
                raise TaskFailed(
                    "validate wrote JSON that is no object; it must name its metrics.", 0, ended.tail
                )
            return metrics

    def _project(self, entry_point: str) -> tuple[ProjectFile, Path | None]:
        assert self._ready is not None
        _key, project, environment = self._ready
        if entry_point not in project.commands:
            raise TaskFailed(f"The package has no entry point `{entry_point}`.")
        return project, environment

    def _run(
        self,
        project: ProjectFile,
        environment: Path | None,
        name: str,
        arguments: list[str],
        held: HeldTask | None,
        cancel: CancelSwitch,
        deadline: float | None,
    ) -> Ended:
        log = _LogStream(self._links, held.task.assignment_id if held else "", self._say)
        try:
            return run_entry_point(
                project, name, arguments, environment=environment, extra_env=self._environ, cancel=cancel,
                deadline=deadline, listeners=Listeners(log.line, log.metrics),
            )  # fmt: skip
        except EntryPointCancelled:
            raise TaskCancelled from None
        except EntryPointLate as late:
            raise TaskFailed(
                f"{name} was still running at the deadline and was stopped.", 0, late.tail
            ) from None
        finally:
            log.flush()


class _LogStream:
    """What an entry point prints, sent a second's worth at a time."""

    def __init__(self, links: Links, assignment_id: str, say: Callable[[str], None]) -> None:
        self._links = links
        self._id = assignment_id
        self._say = say
        self._lines: list[str] = []
        self._sent = time.monotonic()

    def line(self, text: str) -> None:
        self._say(f"| {text}")
        self._lines.append(text)
        if time.monotonic() - self._sent >= LOG_EVERY_S:
            self.flush()

    def flush(self) -> None:
        lines, self._lines = self._lines[-50:], []
        self._sent = time.monotonic()
        if lines and self._id:
            text = "\n".join(lines)
            self._links.send(pb.ClientMessage(log=pb.Log(assignment_id=self._id, level="info", text=text)))

    def metrics(self, values: dict[str, float], step: int) -> None:
        if self._id:
            self._links.send(
                pb.ClientMessage(metrics=pb.Metrics(assignment_id=self._id, values=values, step=step))
            )


def _hand_over(job: Job, folder: Path, model_format: str) -> Path:
    """The model and the settings as files of the package's own format."""
    given = folder / f"model.{model_format}"
    if model_format == "npz":
        save_parameters(load_parameters(job.model), given)
    else:
        # a copy: whatever the entry point does to it, the cached model stays what its sha256 says
        shutil.copyfile(job.model, given)
    Path(f"{given}-metadata").write_text(json.dumps(job.settings), encoding="utf-8")
    return given


def _check(ended: Ended, name: str, made: Path) -> None:
    if ended.exit_code:
        raise TaskFailed(f"{name} ended with exit code {ended.exit_code}.", ended.exit_code, ended.tail)
    if not made.is_file():
        raise TaskFailed(f"{name} ended well but wrote no {made.name}.", 0, ended.tail)


def _read_json(path: Path, ended: Ended, missing: str, function: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        reason = f"{missing}: {path.name} is missing. Call {function} of studio_sdk, or write the JSON there."
        raise TaskFailed(reason, 0, ended.tail) from None
    except (ValueError, OSError) as error:
        raise TaskFailed(f"{path.name} is no valid JSON: {error}", 0, ended.tail) from None
