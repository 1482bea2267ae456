"""Which processes make one Studio, with which command lines and environment."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from studio.supervisor import addresses, probes
from studio.supervisor.children import ChildSpec
from studio.supervisor.data_dir import DataDir
from studio.supervisor.refusal import Refused

ROOT = Path(__file__).resolve().parent.parent.parent
WORKER_THREADS = 8
LANE_PORT = 9100
# without these the allocator gives every chunk's memory back and faults it in again: a third of the speed
COMBINER_MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    # chunks (128 KiB) stay in the arenas; a model's own buffers are mapped, and given back at once
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_TOP_PAD_": str(1 << 20),
    "MALLOC_ARENA_MAX": "2",
}


@dataclass(frozen=True)
class Options:
    """What the operator asked for."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    combiner_port: int = 9000
    lane_port: int | None = None
    combiners: int = 1
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False

    def check(self) -> None:
        """Refuse what must not or cannot be served.

        Raises:
            Refused: with the option to change.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise Refused("--tls-cert and --tls-key go together: give both, or neither.")
        for path, option in ((self.tls_cert, "--tls-cert"), (self.tls_key, "--tls-key")):
            if path is not None and not (path.is_file() and os.access(path, os.R_OK)):
                raise Refused(f"{option} {path} is not a readable file; it must be PEM.")
        if not addresses.is_loopback(self.host) and self.tls_cert is None and not self.insecure:
            raise Refused(
                f"--host {self.host} would serve tokens and passwords in plain text beyond this machine. Give "
                "--tls-cert and --tls-key, or --insecure when something in front of Studio encrypts."
            )
        if not 1 <= self.combiners <= 64:
            raise Refused(f"--combiners {self.combiners} is out of range: 1 to 64.")
        for port, option in (
            (self.port, "--port"),
            (self.combiner_port, "--combiner-port"),
            (self.first_lane_port, "--lane-port"),
        ):
            if not 0 <= port <= 65535 - self.combiners:
                raise Refused(f"{option} {port} is not a port: 0 (a free one) to {65535 - self.combiners}.")

    @property
    def first_lane_port(self) -> int:
        """As asked; free ones where the combiners' are free ones."""
        if self.lane_port is not None:
            return self.lane_port
        return LANE_PORT if self.combiner_port else 0

    @property
    def tls(self) -> bool:
        """Whether web and combiner speak TLS."""
        return self.tls_cert is not None


@dataclass
class CombinerPlace:
    """One combiner: the ports it keeps when it is started again, and what it said about itself."""

    name: str
    plain: tuple[str, int] | None
    tls: tuple[str, int] | None
    lane: int = 0
    said: dict[str, object] = field(default_factory=dict)

    def hear(self, line: str) -> None:
        """Take the JSON line that the combiner prints when it serves."""
        try:
            said = json.loads(line)
        except ValueError:
            return
        if isinstance(said, dict):
            self.said = said


class Plan:
    """The children of one `up`, with ports chosen once."""

    def __init__(self, options: Options, data: DataDir, redis_url: str) -> None:
        self.options = options
        self.data = data
        self.redis_url = redis_url
        self.socket: socket.socket = addresses.listen(options.host, options.port, "--port")
        self.port = int(self.socket.getsockname()[1])
        name = addresses.reachable_name(options.host)
        self.web_url = f"{'https' if options.tls else 'http'}://{addresses.join(name, self.port)}"
        self.combiners = [self._place(number) for number in range(options.combiners)]
        self.worker_name = f"worker-{os.getpid()}@{socket.gethostname()}"

    def _place(self, number: int) -> CombinerPlace:
        """Without TLS the combiner's port speaks plain text. With TLS it speaks TLS; plain text is then served beside
        it only on loopback, or where --insecure allows it."""
        options = self.options
        asked = options.combiner_port
        first = addresses.pick_port(options.host, asked + number if asked else 0, "--combiner-port")
        lane = options.first_lane_port
        if lane:  # else the combiner picks one each time it starts, and tells its clients
            lane = self._lane_port(lane + number)
        if not options.tls:
            return CombinerPlace(f"combiner-{number + 1}", plain=(options.host, first), tls=None, lane=lane)
        plain = None
        if options.insecure or addresses.is_loopback(options.host):
            beside = asked + options.combiners + number if asked else 0
            plain = (options.host, addresses.pick_port(options.host, beside, "--combiner-port"))
        return CombinerPlace(f"combiner-{number + 1}", plain=plain, tls=(options.host, first), lane=lane)

    def _lane_port(self, port: int) -> int:
        """One that nobody asked for must not keep Studio from starting: 0, a free one, where it cannot be had."""
        options = self.options
        if options.lane_port is not None:
            return addresses.pick_port(options.host, port, "--lane-port")
        first = options.combiner_port
        if port in (self.port, *range(first, first + 2 * options.combiners)):
            return 0
        try:
            return addresses.pick_port(options.host, port, "--lane-port")
        except Refused:
            return 0

    def environment(self) -> dict[str, str]:
        """What every child is told: the three addresses, the data directory, and under which names it is reached."""
        env = dict(os.environ)
        env["STUDIO_DATA"] = str(self.data.path)
        env["REDIS_URL"] = self.redis_url
        env["PYTHONUNBUFFERED"] = "1"
        env.setdefault("STUDIO_PUBLIC_URL", self.web_url)
        env.setdefault("STUDIO_ALLOWED_HOSTS", ",".join(addresses.names_of(self.options.host)))
        if self.options.tls:
            env.setdefault("STUDIO_TLS", "1")
        return env

    def manage(self, *arguments: str) -> list[str]:
        """A management command's command line."""
        return [sys.executable, str(ROOT / "manage.py"), *arguments]

    def children(self, worker_ready: Callable[[], bool]) -> list[ChildSpec]:
        """Web, combiners, worker and beat."""
        env = self.environment()
        return [
            self._web(env),
            *(self._combiner(place, env) for place in self.combiners),
            ChildSpec(
                name="worker",
                argv=self._celery(
                    "worker", "--pool", "threads", "--concurrency", str(WORKER_THREADS), "-Q", "default,reduce",
                    "-n", self.worker_name, "--without-gossip", "--without-mingle", "--loglevel", "INFO",
                ),
                env=env,
                ready=worker_ready,
            ),
            self._beat(env),
        ]  # fmt: skip

    def _web(self, env: Mapping[str, str]) -> ChildSpec:
        options = self.options
        tls = (
            ["--ssl-certfile", str(options.tls_cert), "--ssl-keyfile", str(options.tls_key)]
            if options.tls
            else []
        )
        allowed = env["STUDIO_ALLOWED_HOSTS"].split(",")
        name = next((host for host in allowed if host and host[0] not in "*."), "localhost")
        knock = "127.0.0.1" if options.host in addresses.WILDCARDS else options.host
        return ChildSpec(
            name="web",
            argv=[
                sys.executable, "-m", "uvicorn", "studio.asgi:application", "--fd", str(self.socket.fileno()),
                "--app-dir", str(ROOT), "--no-access-log", "--lifespan", "off", "--timeout-graceful-shutdown", "5",
                "--no-server-header", *tls,
            ],
            env=env,
            ready=lambda: probes.web_is_ready(knock, self.port, options.tls, name),
            pass_fds=(self.socket.fileno(),),
        )  # fmt: skip

    def _combiner(self, place: CombinerPlace, env: Mapping[str, str]) -> ChildSpec:
        options = self.options
        arguments = [
            "--name",
            place.name,
            "--json",
            "--host",
            "",
            "--lane-port",
            str(place.lane),
            *(["--insecure"] if options.insecure else []),
        ]
        named = urlsplit(env["STUDIO_PUBLIC_URL"]).hostname or ""
        reached = (
            named if options.host in addresses.WILDCARDS and named else addresses.reachable_name(options.host)
        )
        if place.plain:
            host, port = place.plain
            public = addresses.join(reached, port)
            arguments += ["--host", host, "--port", str(port), "--public-address", public]
        if place.tls:
            host, port = place.tls
            arguments += [
                "--tls-host", host, "--tls-port", str(port), "--public-tls-address", addresses.join(reached, port),
                "--tls-cert", str(options.tls_cert), "--tls-key", str(options.tls_key),
            ]  # fmt: skip
        return ChildSpec(
            name=place.name,
            argv=self.manage("combiner", *arguments),
            env={**COMBINER_MALLOC, **env},
            ready=lambda: bool(place.said),
            first_line=place.hear,
        )

    def _celery(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", "studio", "--workdir", str(ROOT), *arguments]

    def _beat(self, env: Mapping[str, str]) -> ChildSpec:
        schedule = self.data.run / "beat-schedule"

        def forget_schedule() -> None:
            # every entry is in the code and due soon; a file half-written by a killed beat would only break the next
            for path in self.data.run.glob("beat-schedule*"):
                path.unlink()

        return ChildSpec(
            name="beat",
            argv=self._celery("beat", "--schedule", str(schedule), "--pidfile=", "--loglevel", "INFO"),
            env=env,
            ready=lambda: probes.exists_any(self.data.run, "beat-schedule*"),
            before_start=forget_schedule,
        )

    def addresses_said(self) -> dict[str, object]:
        """What `--json` prints: web, combiner, data, pid, and one entry for each combiner."""
        combiners = [
            {
                "name": place.name,
                "combiner": place.said.get("address"),
                "tls": place.said.get("tls"),
            }
            for place in self.combiners
        ]
        first = combiners[0]
        return {
            "web": self.web_url,
            "combiner": first["tls"] if self.options.tls and first["tls"] else first["combiner"],
            "data": str(self.data.path),
            "pid": os.getpid(),
            "combiners": combiners,
        }
