"""`make test`: the checks that need no test run, then all tests on SQLite, then those with rows on Postgres.

Everything runs even when something before it failed; the last line counts all of it the way pytest does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


@dataclass
class Tally:
    """What was counted so far, and what to say loudly at the end."""

    counts: Counter[str] = field(default_factory=Counter)
    failed_steps: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)


def say(text: str) -> None:
    """A line that comes out in order with the children's output."""
    print(text, flush=True)


def run(tally: Tally, name: str, command: Sequence[str], env: dict[str, str] | None = None) -> None:
    """One check: quiet when it passes, with all its output when it does not."""
    start = time.monotonic()
    done = subprocess.run(
        list(command), cwd=ROOT, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    ok = done.returncode == 0
    say(f"{'ok    ' if ok else 'FAILED'} {name} ({time.monotonic() - start:.1f}s)")
    if not ok:
        say(done.stdout.rstrip())
        tally.failed_steps.append(name)
        tally.counts["errors"] += 1


def tool(name: str) -> str:
    """A console script of the environment this runs in."""
    return str(BIN / name)


def templates() -> list[str]:
    """Folders with templates in them; djlint refuses to look at nothing."""
    return [str(folder) for folder in (ROOT / "templates",) if any(folder.rglob("*.html"))]


def lint(tally: Tally) -> None:
    """The quick checks."""
    run(tally, "ruff check", [tool("ruff"), "check", "."])
    run(tally, "ruff format", [tool("ruff"), "format", "--check", "."])
    run(tally, "import contract", [tool("lint-imports"), "--no-cache"])
    if templates():
        run(tally, "djlint", [tool("djlint"), "--lint", "--quiet", *templates()])
    run(tally, "shell syntax", ["sh", "-n", "deploy/setup.sh"])


def types(tally: Tally) -> None:
    """mypy over everything that is ours."""
    rooms = ["studio", "federation", "clients_app", "projects", "foundation", "sdk/studio_sdk", "examples"]
    run(tally, "mypy", [tool("mypy"), *[room for room in rooms if any((ROOT / room).rglob("*.py"))]])


def django_checks(tally: Tally) -> None:
    """Migrations match the models, the configuration is sound, the API describes itself."""
    with tempfile.TemporaryDirectory(prefix="studio-checks-") as data:
        env = {"STUDIO_DATA": data, "DATABASE_URL": "", "STORAGE_URL": ""}
        manage = [sys.executable, str(ROOT / "manage.py")]
        run(tally, "system check", [*manage, "check", "--fail-level", "WARNING"], env)
        run(tally, "migrations match the models", [*manage, "makemigrations", "--check", "--dry-run"], env)
        schema = str(Path(data) / "schema.yaml")
        run(tally, "OpenAPI", [*manage, "spectacular", "--validate", "--fail-on-warn", "--file", schema], env)


def pytest(tally: Tally, name: str, arguments: Sequence[str], env: dict[str, str]) -> None:
    """One pytest run; its numbers join the tally."""
    say(f"\n=== {name} ===")
    with tempfile.TemporaryDirectory(prefix="studio-junit-") as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--ds=tests.settings", f"--junitxml={report}", *arguments],
            cwd=ROOT, env={**os.environ, **env}, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        counted = read_report(report)
    tally.counts.update(counted)
    if done.returncode:
        tally.failed_steps.append(name)
        if not counted["failed"] and not counted["errors"]:
            tally.counts["errors"] += 1  # it died before it could report
    if CI and counted["skipped"]:
        tally.failed_steps.append(f"{name}: {counted['skipped']} skipped under CI=true")
        tally.counts["errors"] += 1


def read_report(report: Path) -> Counter[str]:
    """Numbers of passed, failed, errors and skipped tests in a JUnit file."""
    counted: Counter[str] = Counter()
    if not report.exists():
        return counted
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        total, failed, errors, skipped = (
            int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")
        )
        counted.update(
            failed=failed, errors=errors, skipped=skipped, passed=total - failed - errors - skipped
        )
    return counted


def find_chromium() -> str | None:
    """A Chromium that Playwright can drive."""
    named = os.environ.get("STUDIO_TEST_CHROMIUM")
    if named:
        return named
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        found = shutil.which(name)
        if found:
            return found
    for path in (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    ):
        if Path(path).exists():
            return path
    return None


def provide_chromium(tally: Tally) -> dict[str, str]:
    """The environment that tells the tests where Chromium is; installs it where that is possible."""
    found = find_chromium()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        say("Installing Chromium for the browser tests (apt-get)…")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium"]
        for command in (install, ["apt-get", "update", "-q"], install):
            done = subprocess.run(command, env=quiet, capture_output=True, check=False)
            found = find_chromium()
            if found or (command is install and done.returncode == 0):
                break
    if found:
        return {"STUDIO_TEST_CHROMIUM": found}
    tally.not_run.append(
        "the browser tests: there is no Chromium. Install it (apt install chromium, brew install --cask chromium) "
        "or name one in STUDIO_TEST_CHROMIUM."
    )
    return {"STUDIO_TEST_NO_BROWSER": "1"}


def tests(tally: Tally, workers: int, extra: Sequence[str]) -> None:
    """All tests on SQLite, then those that touch rows on Postgres."""
    env = provide_chromium(tally)
    arguments = ["-n", str(workers), "--dist", "loadfile", *extra]
    if "STUDIO_TEST_NO_BROWSER" in env:
        arguments += ["-m", "not browser"]
    from tests.services import postgres, swift

    with tempfile.TemporaryDirectory(prefix="studio-tests-") as shared:
        Path(shared).chmod(0o755)
        env["STUDIO_TEST_KEEP_SERVERS"] = "1"  # one S3 server serves both runs
        env["STUDIO_TEST_OWNER"] = os.environ["STUDIO_TEST_OWNER"] = str(os.getpid())
        env["STUDIO_TEST_RUN_DIR"] = os.environ["STUDIO_TEST_RUN_DIR"] = shared
        pytest(tally, "all tests, on SQLite", arguments, {**env, "STUDIO_TEST_DATABASE": "sqlite"})
        if not extra:
            check_page(tally, Path(shared))
        try:
            server = postgres.server_url()
            again = {**env, "STUDIO_TEST_DATABASE": "postgres", "STUDIO_TEST_POSTGRES": server}
            pytest(tally, "the tests with rows, on Postgres", arguments, again)
        except postgres.Unavailable as reason:
            tally.not_run.append(f"the tests on Postgres: {reason}")
        finally:
            postgres.stop_own()
            swift.stop_shared()


def check_page(tally: Tally, shared: Path) -> None:
    """docs/published-clients.md says what the compat tests of this run saw."""
    command = [sys.executable, "-m", "tests.compat.table", str(shared / "compat"), "--check"]
    settings = {"DJANGO_SETTINGS_MODULE": "studio.settings", "STUDIO_DATA": str(shared / "table")}
    run(tally, "docs/published-clients.md is what the tests saw", command, {**settings, "DATABASE_URL": ""})


def build_compat() -> subprocess.Popen[str]:
    """The environments of the published packages, built beside the lint: on a new machine that takes a minute."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.compat.environments"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def hear_compat(tally: Tally, building: subprocess.Popen[str]) -> None:
    """Say loudly which published packages could not be tested; what still builds is no longer needed."""
    if building.poll() is None:
        os.killpg(building.pid, signal.SIGTERM)
    said = building.communicate()[1].strip()
    if building.returncode > 0:
        tally.not_run.append(f"tests with published clients: {said}")


def closing_line(tally: Tally, seconds: float) -> str:
    """Like pytest's: `==== 2 failed, 800 passed in 301.20s (0:05:01) ====`."""
    parts = [
        f"{tally.counts[key]} {key}" for key in ("failed", "passed", "skipped", "errors") if tally.counts[key]
    ]
    clock = f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
    return f" {', '.join(parts) or 'no tests ran'} in {seconds:.2f}s ({clock}) ".center(100, "=")


def main() -> int:
    """Run what was asked for; exit code 0 only when all of it ran and passed."""
    steps: dict[str, Callable[[Tally], None]] = {"lint": lint, "types": types, "django": django_checks}
    parser = argparse.ArgumentParser(prog="make test", description=__doc__)
    parser.add_argument("--only", choices=[*steps, "tests"], help="one part instead of all")
    parser.add_argument("--workers", type=int, default=2, help="parallel test processes (2)")
    options, extra = parser.parse_known_args()
    tally = Tally()
    start = time.monotonic()
    building = build_compat() if options.only in (None, "tests") else None
    try:
        for name, step in steps.items():
            if options.only in (None, name):
                step(tally)
        if options.only in (None, "tests"):
            tests(tally, options.workers, extra)
    finally:
        if building:
            hear_compat(tally, building)
    for text in tally.not_run:
        say(f"\n!!! NOT RUN: {text}")
        if CI:
            tally.counts["errors"] += 1
            tally.failed_steps.append("something was not run, and CI=true allows no gaps")
    if tally.failed_steps:
        say("\nFailed: " + "; ".join(tally.failed_steps))
    say(closing_line(tally, time.monotonic() - start))
    return 1 if tally.failed_steps else 0


if __name__ == "__main__":
    sys.exit(main())
