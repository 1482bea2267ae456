"""One virtual environment per published package, built once per machine and kept in the user's cache.

`python -m tests.compat.environments` builds what is missing and says on standard error what cannot be built here.
The published packages never share an environment with the server, nor with each other: their pins contradict.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Release = tuple[int, int]

BUILD_WITHIN_S = 900.0
_PROBE_WITHIN_S = 20.0
_PROBE = "import sys, venv; print('.'.join(map(str, sys.version_info[:3])))"
_MARK = ".studio-whole.json"


class Unavailable(RuntimeError):
    """A published package cannot be installed here; the message says why and what would help."""


@dataclass(frozen=True)
class Published:
    """What to install, and on which Python releases it runs, the preferred one first."""

    name: str
    requirements: tuple[str, ...]
    releases: tuple[Release, ...]

    @property
    def version(self) -> str:
        return self.requirements[0].partition("==")[2]


FEDN = Published("fedn", ("fedn==0.33.0",), ((3, 11), (3, 12), (3, 10), (3, 9)))
# its metadata admits 3.11, but the numpy that it pins does not
SCALEOUT = Published("scaleout", ("scaleout==1.1.0", "scaleoututil==1.1.0"), ((3, 12), (3, 13)))
PUBLISHED = {package.name: package for package in (FEDN, SCALEOUT)}


@dataclass(frozen=True)
class Environment:
    """An environment with a published package in it."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def python(self) -> Path:
        return self.bin / "python"


def environment(name: str) -> Environment:
    """The ready environment of `fedn` or `scaleout`, built first if nobody has. Raises Unavailable."""
    return _environment(PUBLISHED[name])


@cache
def _environment(package: Published) -> Environment:
    found = interpreter_for(package)
    if found is None:
        wanted = ", ".join(f"{major}.{minor}" for major, minor in package.releases)
        raise Unavailable(
            f"{' '.join(package.requirements)} needs Python {wanted}, and none that starts was found among the "
            "pythonX.Y on PATH and in pyenv's versions. Install one and run again."
        )
    version, interpreter = found
    home = cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    folder = home / f"{package.name}-{package.version}-{version}"
    with (home / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_whole(folder, package):
            _build(folder, package, interpreter)
    return Environment(folder)


def cache_folder() -> Path:
    """STUDIO_COMPAT_CACHE, else ~/.cache/studio-compat."""
    named = os.environ.get("STUDIO_COMPAT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "studio-compat"


# --- interpreters ---------------------------------------------------------------------------------------------


def interpreter_for(package: Published) -> tuple[str, Path] | None:
    """Version and path of a Python it runs on. Every candidate is run: a shim on PATH may be dead."""
    for release in package.releases:
        for candidate in _candidates(f"{release[0]}.{release[1]}"):
            version = _version_of(candidate)
            if version and version.rpartition(".")[0] == f"{release[0]}.{release[1]}":
                return version, candidate
    return None


def _candidates(release: str) -> Iterator[Path]:
    yield Path(getattr(sys, "_base_executable", sys.executable))
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        path = Path(folder or ".") / f"python{release}"
        if path.is_file() and os.access(path, os.X_OK):
            yield path
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = sorted(versions.glob("*/bin/python"), reverse=True)
    yield from sorted(found, key=lambda path: not path.parent.parent.name.startswith(release))


@cache
def _version_of(candidate: Path) -> str | None:
    try:
        done = subprocess.run(
            [str(candidate), "-I", "-c", _PROBE], capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL, timeout=_PROBE_WITHIN_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.count(".") == 2 else None


# --- building -------------------------------------------------------------------------------------------------


def is_whole(folder: Path, package: Published) -> bool:
    """Whether the finished mark is there, the interpreter starts, and every file that was installed still is."""
    try:
        mark = json.loads((folder / _MARK).read_text())
    except (OSError, ValueError):
        return False
    return bool(
        mark == _mark(folder, package)
        and _version_of(folder / "bin" / "python")
        and all(path.is_file() and path.stat().st_size == size for path, size in _installed(folder))
    )


def _mark(folder: Path, package: Published) -> dict[str, object]:
    records = sorted(record.parent.name for record in _records(folder))
    # the place is part of it: scripts name their interpreter by its path
    return {"requirements": list(package.requirements), "place": str(folder), "installed": records}


def _records(folder: Path) -> Iterator[Path]:
    return folder.glob("lib/python3*/site-packages/*.dist-info/RECORD")


def _installed(folder: Path) -> Iterator[tuple[Path, int]]:
    """The files that the installer wrote down, with their sizes; scripts and byte code aside."""
    for record in _records(folder):
        with record.open(newline="") as lines:
            for name, _digest, size in csv.reader(lines):
                if size and not name.startswith(".."):
                    yield record.parent.parent / name, int(size)


def _build(folder: Path, package: Published, interpreter: Path) -> None:
    """Install beside the final place, then rename: whoever finds the folder finds all of it."""
    log = folder.with_name(f"{folder.name}.log")
    for left in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with log.open("wb") as out:
            for command in _commands(part, package, interpreter):
                _install(command, out.fileno(), package, log)
        _tell_scripts(part, folder)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        (folder / _MARK).write_text(json.dumps(_mark(folder, package)))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _version_of.cache_clear()
    if not is_whole(folder, package):
        raise Unavailable(
            f"{package.requirements[0]} was installed, but what is there does not work: see {log}"
        )


def _commands(part: Path, package: Published, interpreter: Path) -> list[list[str]]:
    python = str(part / "bin" / "python")
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv:
        return [
            [uv, "venv", "--quiet", "--allow-existing", "--python", str(interpreter), str(part)],
            [uv, "pip", "install", "--python", python, "--compile-bytecode", *package.requirements],
        ]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-input", "--prefer-binary"]
    return [
        [str(interpreter), "-m", "venv", "--without-pip", str(part)],
        [*pip, "--disable-pip-version-check", *package.requirements],
    ]


def _install(command: list[str], out: int, package: Published, log: Path) -> None:
    # a setting for our own environment must not steer this one
    env = {key: v for key, v in os.environ.items() if key not in ("PYTHONPATH", "PIP_TARGET", "PIP_USER")}
    try:
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            timeout=BUILD_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(
            f"{package.requirements[0]} was not installed in {BUILD_WITHIN_S:g} s: see {log}"
        ) from None
    if done.returncode:
        reasons = [line for line in log.read_text(errors="replace").splitlines() if "error" in line.lower()]
        raise Unavailable(
            f"{package.requirements[0]} cannot be installed: {(reasons or ['no reason given'])[-1].strip()} (see {log})"
        )


def _tell_scripts(part: Path, folder: Path) -> None:
    """Scripts name their interpreter by its path: the one they are going to be at."""
    for script in (part / "bin").iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        content = script.read_bytes()
        if os.fsencode(part) in content:
            script.write_bytes(content.replace(os.fsencode(part), os.fsencode(folder)))


def main() -> int:
    """Build both; one line per environment that cannot be."""
    missing = 0
    for package in PUBLISHED.values():
        try:
            _environment(package)
        except Unavailable as reason:
            missing += 1
            print(reason, file=sys.stderr, flush=True)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
