"""Build `.venv`: called by deploy/setup.sh with a Python that has `venv`; standard library only.

The environment is trusted only when its stamp, written last, matches the requirement files. While an installation
runs a mark lies in `.venv`; finding it later means the installation was killed, and the environment is made anew.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".studio-installed.json"
MARK = VENV / ".studio-installing"
LOG = ROOT / ".setup" / "pip.log"
RUNTIME = ("requirements.txt", "sdk/pyproject.toml")
DEV = ("requirements-dev.txt",)

UNREACHABLE = re.compile(
    r"connection broken by|Max retries exceeded|Failed to establish a new connection|name resolution"
    r"|Network is unreachable|Could not connect|ConnectTimeout|ReadTimeout|ProxyError|SSLError|Connection refused"
)


class Refused(Exception):
    """The environment cannot be built; the message says why and what to do."""


def fingerprint(names: tuple[str, ...]) -> str:
    """One hash over the named files; a missing file counts as empty."""
    digest = hashlib.sha256()
    for name in names:
        path = ROOT / name
        digest.update(name.encode() + b"\0" + (path.read_bytes() if path.exists() else b"") + b"\0")
    return digest.hexdigest()


def wanted(dev: bool) -> dict[str, str]:
    """What the stamp has to say for `make setup`, and for `make test` (`dev`)."""
    # the place is part of it: scripts in a virtual environment break when the folder is moved or copied
    stamp = {"runtime": fingerprint(RUNTIME), "place": str(VENV)}
    if dev:
        stamp["dev"] = fingerprint(DEV)
    return stamp


def stamped() -> dict[str, str]:
    """The stamp of a finished installation, or nothing."""
    if MARK.exists():
        return {}
    try:
        found = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_current(dev: bool) -> bool:
    """Whether everything that is wanted is installed."""
    found = stamped()
    return all(found.get(key) == value for key, value in wanted(dev).items())


def say(text: str) -> None:
    """A line of progress; standard output belongs to the command that make runs next."""
    print(text, file=sys.stderr, flush=True)


def run_pip(arguments: list[str], what: str) -> None:
    """Run pip in `.venv`, keep its output in the log, and turn a failure into a sentence."""
    LOG.parent.mkdir(exist_ok=True)
    start = LOG.stat().st_size if LOG.exists() else 0
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    # pip tells of an index it cannot reach only while it retries
    if not environment.get("PIP_RETRIES", "").strip("0"):
        environment["PIP_RETRIES"] = "2"
    environment.setdefault("PIP_DEFAULT_TIMEOUT", "30")
    environment.pop("PYTHONPATH", None)
    environment.pop("PIP_TARGET", None)
    environment.pop("PIP_USER", None)
    with LOG.open("ab") as out:
        done = subprocess.run(
            [str(PYTHON), "-m", "pip", "install", "--prefer-binary", *arguments],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    if done.returncode == 0:
        return
    with LOG.open("rb") as log:
        log.seek(start)
        text = log.read().decode(errors="replace")
    raise Refused(f"Installing {what} failed: {_reason(text)}\npip's whole log is in {LOG}.")


def _reason(text: str) -> str:
    if UNREACHABLE.search(text):
        return (
            "the package index cannot be reached. Check the network or the proxy, or point pip to a mirror "
            "(PIP_INDEX_URL=…), and run make again."
        )
    if "No space left on device" in text:
        return "the disk is full. Free some space and run make again."
    missing = re.search(r"No matching distribution found for (\S+)", text)
    if missing:
        return f"the package index has no {missing.group(1)} for Python {sys.version.split()[0]} on this machine."
    errors = [line.strip() for line in text.splitlines() if line.startswith("ERROR")]
    lines = errors or [line.strip() for line in text.splitlines() if line.strip()] or ["pip said nothing."]
    return lines[-1]


def empty_venv() -> None:
    """Remove what an interrupted installation left, but not the folder itself: it may be a mount."""
    for entry in VENV.iterdir() if VENV.exists() else ():
        if entry == MARK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def make_venv() -> None:
    """Create the virtual environment with the Python that runs this file."""
    done = subprocess.run(
        [sys.executable, "-I", "-m", "venv", str(VENV)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        release = f"{sys.version_info[0]}.{sys.version_info[1]}"
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise Refused(
            f"Python {release} at {sys.executable} cannot make a virtual environment: {lines[-1]}\n"
            f"On Debian or Ubuntu: apt install python{release}-venv; then run make again."
        )


def works() -> bool:
    """Whether `.venv` starts, has pip, and is of a release we support."""
    if not PYTHON.exists():
        return False
    probe = "import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))"
    try:
        return (
            subprocess.run([str(PYTHON), "-I", "-c", probe], capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


def install(dev: bool) -> None:
    """Bring `.venv` to what the requirement files say."""
    before = stamped()
    moved = bool(before) and before.get("place") != str(VENV)
    killed = MARK.exists()
    VENV.mkdir(exist_ok=True)
    MARK.touch()
    STAMP.unlink(missing_ok=True)
    if killed or moved or not works():
        empty_venv()
        say(f"Making .venv with Python {sys.version.split()[0]} ({sys.executable})")
        make_venv()
    if LOG.exists():
        LOG.unlink()
    say("Installing what Studio needs (a minute or two the first time)")
    # one call for both files: pip then refuses pins that contradict each other
    files = ["-r", "requirements.txt", *(["-r", "requirements-dev.txt"] if dev else [])]
    run_pip(files, "the requirements")
    if (ROOT / "sdk" / "pyproject.toml").exists():
        # setuptools is pinned among the requirements, so the SDK needs no build environment from the index
        run_pip(["--no-build-isolation", "--no-deps", "-e", "./sdk"], "the SDK")
    stamp = wanted(dev)
    draft = STAMP.with_suffix(".draft")
    draft.write_text(json.dumps(stamp))
    draft.replace(STAMP)
    MARK.unlink()
    say("Everything is installed in .venv")


def compile_requirements() -> None:
    """Pin requirements*.in for Python 3.11 to 3.13 with uv, from the index that pip is set up with."""
    home = ROOT / ".setup" / "uv"
    uv = home / "bin" / "uv"
    if not uv.exists():
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-I", "-m", "venv", str(home)], check=True)
        subprocess.run([str(home / "bin" / "python"), "-m", "pip", "install", "-q", "uv"], check=True)
    environment = {**os.environ, **_uv_index(home / "bin" / "python")}
    for name in ("requirements", "requirements-dev"):
        subprocess.run(
            [str(uv), "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--no-header",
             "--no-emit-index-url", "--no-emit-find-links", "--index-strategy", "unsafe-best-match",
             f"{name}.in", "-o", f"{name}.txt", *sys.argv[2:]],
            cwd=ROOT, env=environment, check=True,
        )  # fmt: skip


def _uv_index(python: Path) -> dict[str, str]:
    listed = subprocess.run(
        [str(python), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    found = dict(re.findall(r"^(?:\w+\.|:env:\.)?([\w-]+)='(.*)'$", listed, re.MULTILINE))
    names = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS"}
    return {names[key]: " ".join(value.split("\\n")).strip() for key, value in found.items() if key in names}


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description="Build .venv for Studio")
    parser.add_argument("--dev", action="store_true", help="also what the tests need")
    parser.add_argument("--check", action="store_true", help="only say by exit code whether all is installed")
    parser.add_argument("--requirements", action="store_true", help="compile requirements*.txt")
    options, _ = parser.parse_known_args()
    if options.check:
        return 0 if is_current(options.dev) else 1
    if options.requirements:
        compile_requirements()
        return 0
    # two makes at once: the second waits, then finds everything done (the lock is this file itself)
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_current(options.dev) and works():
            return 0
        install(options.dev or "dev" in stamped())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"Setting up failed: {error.strerror}: {error.filename}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Interrupted; run make again to go on.", file=sys.stderr)
        sys.exit(130)
