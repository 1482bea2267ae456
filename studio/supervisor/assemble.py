"""One `up`, from checking the options to the last child's end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType

from studio.supervisor import announce, probes
from studio.supervisor.children import Child, ChildSpec
from studio.supervisor.data_dir import DataDir
from studio.supervisor.guard import Guard
from studio.supervisor.plan import Options, Plan
from studio.supervisor.refusal import Refused
from studio.supervisor.supervise import Supervisor
from studio.supervisor.valkey import PrivateRedis

REDIS_ADDRESS_FILE = "redis_url"


def report(line: str) -> None:
    """A line for the operator; standard output is kept for the addresses."""
    print(f"up: {line}", file=sys.stderr, flush=True)


def leave_at_once_when_asked() -> None:
    """Until there is something to stop, a signal to stop simply ends the process, with exit code 0."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def serve(options: Options, *, json_line: bool, broker_key_prefix: str, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; every child is gone when this returns.

    Args:
        options: what to serve and where.
        json_line: announce as one JSON line instead of text.
        broker_key_prefix: prefix of Celery's keys in Redis, for asking the worker whether it is there.
        say: prints the announcement.

    Raises:
        Refused: it cannot start, or a child will not stay up.
    """
    leave_at_once_when_asked()
    options.check()
    os.umask(0o077)  # whatever the children write is their owner's
    data = DataDir(options.data)
    data.prepare()
    lock = data.lock()
    given_redis = os.environ.get("REDIS_URL")
    redis = None if given_redis else PrivateRedis.choose()
    redis_url = given_redis or (redis.url if redis else "")
    plan = Plan(options, data, redis_url)
    guard = Guard(keep_open=(lock,))

    def child(spec: ChildSpec) -> Child:
        return Child(spec=spec, log=data.logs / f"{spec.name}.log", guard=guard)

    base = [child(redis.spec(data, plan.environment()))] if redis else []
    ping = probes.WorkerPing(redis_url, broker_key_prefix, plan.worker_name)
    rest = [child(spec) for spec in plan.children(ping)]
    supervisor = Supervisor([*base, *rest], guard, len(base), report)
    supervisor.install_signals()
    try:
        # other management commands on this data directory reach the same Redis through this file
        data.write_private(REDIS_ADDRESS_FILE, redis_url)
        if supervisor.bring_up(base):
            _migrate(plan, data, guard)
            if supervisor.bring_up(rest):
                ping.close()
                said = plan.addresses_said()
                say(announce.as_json(said) if json_line else announce.as_text(said, said["combiners"]))  # type: ignore[arg-type]
                supervisor.run()
    finally:
        try:
            supervisor.stop()
        finally:
            data.forget(REDIS_ADDRESS_FILE, "valkey.conf")
            guard.dismiss()
            supervisor.close()
            plan.socket.close()


def _migrate(plan: Plan, data: DataDir, guard: Guard) -> None:
    log = data.logs / "migrate.log"
    with open(os.open(log, os.O_WRONLY | os.O_TRUNC | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as out:
        process = subprocess.Popen(
            plan.manage("migrate", "--noinput"), env=plan.environment(), stdin=subprocess.DEVNULL, stdout=out,
            stderr=out, start_new_session=True, preexec_fn=guard.announcer(),
        )  # fmt: skip
        code = process.wait()
    guard.ended(process.pid)
    if code:
        lines = log.read_text(errors="replace").strip().splitlines()[-5:]
        raise Refused(
            f"The database could not be migrated. The end of {log}:\n" + "\n".join(f"  {x}" for x in lines)
        )
