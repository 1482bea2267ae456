"""A Postgres for the tests: the one named by the environment, else our own, else the local one if it lets us in."""

from __future__ import annotations

import atexit
import getpass
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg

from studio.supervisor.guard import Guard
from tests.services.environment import POSTGRES_DEFAULT, free_port, run_dir

BINARY_DIRS = (
    "/usr/lib/postgresql/*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/usr/pgsql-*/bin",
)


class Unavailable(RuntimeError):
    """No Postgres to test on; the message says what was tried and what would help."""


def answers(url: str) -> bool:
    """Whether a server there lets us in and may create databases."""
    try:
        with psycopg.connect(url, connect_timeout=2) as connection:
            row = connection.execute(
                "select rolcreatedb or rolsuper from pg_roles where rolname = current_user"
            )
            return bool((row.fetchone() or (False,))[0])
    except psycopg.Error:
        return False


def server_url() -> str:
    """Address of a server where databases may be created. Starts one only when none is known and none answers."""
    known = os.environ.get("STUDIO_TEST_POSTGRES")
    if known:
        return known
    # our own forgoes fsync: emptying tables after each test is many times faster there than on the machine's server
    own = start_own if find_binaries() else lambda: None
    url = _pointed_to() or own() or _local() or start_own()
    os.environ["STUDIO_TEST_POSTGRES"] = url
    return url


def _pointed_to() -> str | None:
    for name in ("TEST_DATABASE_URL", "DATABASE_URL"):
        url = os.environ.get(name, "")
        if not url.startswith(("postgres://", "postgresql://")):
            continue
        if answers(url):
            return url
        raise Unavailable(f"{name} points to a Postgres that does not answer or may not create databases.")
    return None


def _local() -> str | None:
    host, port = POSTGRES_DEFAULT
    for user in ("postgres", "root", getpass.getuser()):
        url = f"postgres://{user}@{host}:{port}/postgres"
        if answers(url):
            return url
    return None


def find_binaries() -> Path | None:
    """The folder of the newest installed `initdb` and `postgres`, or nothing."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).parent] if on_path else []
    for pattern in BINARY_DIRS:
        found += [path for path in Path("/").glob(pattern.lstrip("/")) if (path / "initdb").exists()]

    def release(folder: Path) -> int:
        digits = "".join(c if c.isdigit() else " " for c in str(folder)).split()
        return int(digits[-1]) if digits else 0

    return max(found, key=release, default=None)


def start_own() -> str:
    """Initialise and start a server on a free loopback port, for this test run only; install it when root may."""
    binaries = find_binaries()
    if binaries is None and os.geteuid() == 0 and shutil.which("apt-get"):
        print("No Postgres found: installing Debian's for the tests.", file=sys.stderr)
        subprocess.run(
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", "postgresql"],
            check=False, stdout=sys.stderr, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip
        binaries = find_binaries()
    if binaries is None:
        raise Unavailable(
            "No Postgres answers at 127.0.0.1:5432 and none is installed. Install it (apt install postgresql, "
            "brew install postgresql@16) or set TEST_DATABASE_URL=postgres://user@host/postgres."
        )
    home = run_dir() / "postgres"
    home.mkdir(mode=0o700)
    prefix = _as_other_user(home)
    port = free_port()
    cluster = home / "cluster"
    _run([*prefix, str(binaries / "initdb"), "-D", str(cluster), "-U", "postgres", "-A", "trust",
          "-E", "UTF8", "--no-sync", "--locale=C"], home)  # fmt: skip
    guard = Guard()  # a test run that is killed takes its server along
    with (home.parent / "postgres.log").open("ab") as log:
        server = subprocess.Popen(
            [*prefix, str(binaries / "postgres"), "-D", str(cluster), "-p", str(port), "-k", str(home),
             "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "synchronous_commit=off",
             "-c", "full_page_writes=off", "-c", "max_connections=200"],
            stdout=log, stderr=subprocess.STDOUT, cwd=home,
            start_new_session=True, preexec_fn=guard.announcer(),
        )  # fmt: skip

    def stop() -> None:
        # SIGTERM to runuser is passed on; the server's quick stop takes well under a second
        subprocess.run([*prefix, str(binaries / "pg_ctl"), "-D", str(cluster), "-m", "immediate", "stop"],
                       check=False, capture_output=True, cwd="/")  # fmt: skip
        server.wait(10)
        guard.ended(server.pid)
        guard.dismiss()

    url = f"postgres://postgres@127.0.0.1:{port}/postgres"
    deadline = time.monotonic() + 30
    while not answers(url):
        if server.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(f"The test Postgres did not start; see {home.parent / 'postgres.log'}")
        time.sleep(0.05)
    owner = os.getpid()
    _running.append(lambda: stop() if os.getpid() == owner else None)
    atexit.register(stop_own)
    return url


_running: list[Callable[[], None]] = []


def stop_own() -> None:
    """Stop the server that `start_own` started, if it did."""
    while _running:
        _running.pop()()


def _as_other_user(home: Path) -> list[str]:
    """`initdb` refuses root, so root borrows an unprivileged account and gives it the folder."""
    if os.geteuid() != 0:
        return []
    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(home, account.pw_uid, account.pw_gid)
        if shutil.which("runuser"):
            return ["runuser", "-u", name, "--"]
        if shutil.which("su"):
            return ["su", "-s", "/bin/sh", name, "-c", 'exec "$0" "$@"', "--"]
    raise Unavailable(
        "Postgres refuses to run as root and there is no `postgres` or `nobody` account to borrow."
    )


def _run(command: Sequence[str], cwd: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode:
        raise Unavailable(f"{Path(command[-1]).name} failed: {done.stderr.strip().splitlines()[-1:]}")
