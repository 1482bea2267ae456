"""The `python_env.yaml` environment: built once per content, shared by every client of this user on this
machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import EnvironmentBuildError, ProjectFileError
from . import sdk_wheel
from .process_group import run_group

BUILD_TIMEOUT_S = 3600.0
_TEMPORARY = ".building-"


@dataclass(frozen=True)
class EnvironmentSpec:
    """What a `python_env.yaml` asks for."""

    name: str
    python: str | None
    build_dependencies: tuple[str, ...]
    dependencies: tuple[str, ...]

    @property
    def key(self) -> str:
        """Hex digest of everything that shapes the environment, this SDK and this interpreter included."""
        shape = {
            "python": [
                platform.python_implementation(),
                platform.python_version(),
                platform.machine(),
                sys.platform,
            ],
            "wanted": self.python,
            "build": list(self.build_dependencies),
            "dependencies": list(self.dependencies),
            "sdk": sdk_wheel.source_digest(),
        }
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()


def cache_dir() -> Path:
    """Where environments, packages and models are kept: `STUDIO_CACHE_DIR`, else ~/.cache/studio."""
    named = os.environ.get("STUDIO_CACHE_DIR")
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "studio"


def read_spec(path: Path) -> EnvironmentSpec:
    """Parse `python_env.yaml`. Raises ProjectFileError with what would be right."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProjectFileError(
            f"{path.name} cannot be read as YAML: {' '.join(str(error).split())[:300]}"
        ) from None
    if not isinstance(content, dict):
        raise ProjectFileError(f"{path.name} must be a mapping with `dependencies:`.")
    python = content.get("python", content.get("python_version"))
    return EnvironmentSpec(
        str(content.get("name") or path.parent.name),
        None if python is None else str(python),
        _requirements(path.name, "build_dependencies", content.get("build_dependencies")),
        _requirements(path.name, "dependencies", content.get("dependencies")),
    )


def _requirements(file_name: str, key: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise ProjectFileError(f"{file_name}: {key} must be a list of requirements such as `- numpy==2.1.0`.")
    if options := [item for item in value if item.strip().startswith("-")]:
        raise ProjectFileError(
            f"{file_name}: {key} holds the option {options[0]!r}; only requirements may be there."
        )
    return tuple(item.strip() for item in value)


def environment_for(spec: EnvironmentSpec, say: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of the ready environment, building it first if nobody has.

    One builder at a time per content: the others wait for it. It is built under another name and renamed
    when whole, so a killed build leaves nothing that looks ready. Raises EnvironmentBuildError with pip's
    reason.
    """
    envs = cache_dir() / "envs"
    envs.mkdir(parents=True, exist_ok=True)
    ready = envs / spec.key[:32]
    if not ready.is_dir():
        with _locked(
            envs / f"{spec.key[:32]}.lock", lambda: say("waiting for another client to build the environment")
        ):
            for left_over in envs.glob(f"{_TEMPORARY}{spec.key[:32]}-*"):
                shutil.rmtree(left_over, ignore_errors=True)
            if not ready.is_dir():
                say(f"building the environment {spec.name} ({len(spec.dependencies)} requirements)")
                _build(spec, envs, ready)
                say("environment built")
    return ready


@contextlib.contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(spec: EnvironmentSpec, envs: Path, ready: Path) -> None:
    part = Path(tempfile.mkdtemp(dir=envs, prefix=f"{_TEMPORARY}{spec.key[:32]}-"))
    try:
        _create_venv(_interpreter(spec), part)
        if spec.build_dependencies:
            _pip(part, ["--upgrade", *spec.build_dependencies])
        with tempfile.TemporaryDirectory() as wheels:
            _pip(part, [str(sdk_wheel.build_wheel(Path(wheels))), *spec.dependencies])
        _move_scripts(part, ready)
        part.rename(ready)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _interpreter(spec: EnvironmentSpec) -> str:
    wanted = ".".join((spec.python or "").split(".")[:2])
    if (
        not wanted
        or not wanted.replace(".", "").isdigit()
        or wanted == platform.python_version().rpartition(".")[0]
    ):
        return sys.executable
    found = shutil.which(f"python{wanted}")
    if found is None:
        raise EnvironmentBuildError(
            f"The environment {spec.name} asks for Python {wanted}, which is not on this machine's PATH."
        )
    return found


def _create_venv(python: str, folder: Path) -> None:
    code, output = run_group([python, "-m", "venv", str(folder)], os.environ, BUILD_TIMEOUT_S)
    if code:
        reason = _last_lines(output)
        raise EnvironmentBuildError(f"A virtual environment cannot be made with {python}: {reason}")


def _pip(folder: Path, what: list[str]) -> None:
    # a setting for our own environment must not steer this one
    env = {
        key: value
        for key, value in os.environ.items()
        if key not in {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET"}
    }
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input"]
    code, output = run_group([*pip, "--disable-pip-version-check", *what], env, BUILD_TIMEOUT_S)
    if code:
        raise EnvironmentBuildError(f"The environment cannot be installed. pip says: {_pip_reason(output)}")


def _pip_reason(output: str) -> str:
    errors = [line.strip() for line in output.splitlines() if line.lower().lstrip().startswith("error")]
    return " ".join(errors)[:1500] if errors else _last_lines(output)


def _last_lines(output: str) -> str:
    return (
        " ".join(line.strip() for line in output.strip().splitlines()[-5:])[:1500] or "no reason was given."
    )


def _move_scripts(part: Path, ready: Path) -> None:
    """Scripts name the folder they were installed in; make them name the one they will have."""
    old, new = str(part).encode(), str(ready).encode()
    for path in [*(part / "bin").iterdir(), part / "pyvenv.cfg"]:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 1024 * 1024:
            continue
        content = path.read_bytes()
        if old in content and b"\0" not in content:
            path.write_bytes(content.replace(old, new))


def activated(environment: Path | None, base: dict[str, str]) -> dict[str, str]:
    """The process environment in which `python` is the environment's (or, without one, the interpreter
    running now)."""
    # an environment of its own takes no modules from elsewhere; without one they are the user's to choose
    dropped = {"PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__"} if environment else {"__PYVENV_LAUNCHER__"}
    env = {key: value for key, value in base.items() if key not in dropped}
    scripts = str(environment / "bin") if environment else str(Path(sys.executable).parent)
    env["PATH"] = os.pathsep.join([scripts, base.get("PATH", os.defpath)])
    env.pop("VIRTUAL_ENV", None)
    if environment:
        env["VIRTUAL_ENV"] = str(environment)
    return env
