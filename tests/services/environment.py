"""Where this test process keeps its data, and which servers it talks to: decided before Django's settings load."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

POSTGRES_DEFAULT = ("127.0.0.1", 5432)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def worker_id() -> str:
    """`gw0`, `gw1`… inside an xdist worker, `main` in a plain run."""
    return os.environ.get("PYTEST_XDIST_WORKER", "main")


def run_dir() -> Path:
    """The folder that all workers of one test run share; the process that asks first removes it at its end."""
    known = os.environ.get("STUDIO_TEST_RUN_DIR")
    if known:
        return Path(known)
    made = Path(tempfile.mkdtemp(prefix="studio-tests-"))
    made.chmod(0o755)  # a Postgres of our own runs as another user when the tests run as root
    os.environ["STUDIO_TEST_RUN_DIR"] = str(made)
    owner = os.getpid()
    os.environ["STUDIO_TEST_OWNER"] = str(owner)

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(made, ignore_errors=True)

    atexit.register(remove)
    return made


def wants_postgres() -> bool:
    """Whether this run is the Postgres one (`STUDIO_TEST_DATABASE=postgres`)."""
    return os.environ.get("STUDIO_TEST_DATABASE", "sqlite") == "postgres"


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, f"/{name}", parts.query, ""))


def database_url() -> str:
    """This worker's own database: a SQLite file, or a database of its own on the test server."""
    if not wants_postgres():
        return f"sqlite:///{run_dir() / worker_id() / 'test.sqlite3'}"
    from tests.services.postgres import server_url

    run = run_dir().name.rsplit("-", 1)[-1].lower()
    return with_database(server_url(), f"studio_test_{run}_{worker_id()}")


def prepare() -> None:
    """Point this process, and every child it starts, at its own data directory, database and Redis."""
    if os.environ.get("STUDIO_TEST_PREPARED") == worker_id():
        return
    home = run_dir() / worker_id()
    data = home / "data"
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    (data / "static").mkdir(exist_ok=True)  # whitenoise warns about a missing one
    os.environ["STUDIO_DATA"] = str(data)
    os.environ["DATABASE_URL"] = database_url()
    os.environ.pop("STORAGE_URL", None)
    given = os.environ.get("TEST_REDIS_URL")
    if given:
        number = int(worker_id()[2:]) + 1 if worker_id().startswith("gw") else 0
        os.environ["REDIS_URL"] = f"{given.rstrip('/')}/{number}"
    else:
        os.environ["REDIS_URL"] = f"redis://:{secrets.token_hex(16)}@127.0.0.1:{free_port()}/0"
    os.environ["STUDIO_TEST_PREPARED"] = worker_id()
