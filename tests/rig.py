"""A federation of real processes on the test's own database: combiners, worker, beat, clients played by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from clients_app.models import Client
from federation.aggregation.codecs import load_arrays, save_arrays
from federation.models.models import Model
from federation.sessions.config import parse_spec
from federation.sessions.models import Session
from federation.sessions.services import create_session, start_session
from foundation import storage
from projects.actors import Actor
from projects.choices import Role
from projects.models import Project, User
from projects.tokens.choices import TokenKind
from projects.tokens.services import create_token
from studio.supervisor.plan import COMBINER_MALLOC
from tests.wire_client import WireClient

ROOT = Path(__file__).resolve().parent.parent


class Served(Protocol):
    """Anything that clients can stream to."""

    address: str


@dataclass(eq=False)
class Child:
    """One process that the test started, and may kill."""

    process: subprocess.Popen[str]
    address: str = ""
    tls_address: str = ""
    lane: int = 0  # a port, plain or TLS
    log: Path = Path()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return self.process.returncode


@dataclass(eq=False)
class Rig:
    project: Project
    owner: User
    folder: Path
    wait_until: Callable[..., Any]
    children: list[Child] = field(default_factory=list)
    wires: list[WireClient] = field(default_factory=list)
    _closing: threading.Event = field(default_factory=threading.Event)
    _starting: threading.Lock = field(default_factory=threading.Lock)

    @property
    def actor(self) -> Actor:
        return Actor.of_user(self.owner)

    # --- rows -------------------------------------------------------------------------------------------------
    def client(self, name: str = "", project: Project | None = None) -> tuple[Client, str]:
        project = project or self.project
        row = Client.objects.create(project=project, name=name or f"site-{uuid.uuid4().hex[:8]}")
        owner = Actor.of_user(project.memberships.get(role=Role.OWNER).user)
        _, secret = create_token(
            actor=owner, kind=TokenKind.CLIENT, name=row.name, project=project, client=row
        )
        return row, secret

    def model(self, arrays: dict[str, Any] | None = None) -> Model:
        arrays = arrays or {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)}
        path = self.folder / f"{uuid.uuid4()}.safetensors"
        layout = save_arrays(arrays, path)
        key = f"models/{self.project.pk}/{uuid.uuid4()}.safetensors"
        storage.put(key, path)
        return Model.objects.create(
            project=self.project,
            kind="seed",
            name="seed",
            key=key,
            sha256=storage.sha256_of(path),
            size_bytes=path.stat().st_size,
            layout=layout.to_json(),
        )

    def session(self, *, start: bool = True, seed: Model | None = None, **settings: Any) -> Session:
        seed = seed or self.model()
        spec = parse_spec(
            {"name": "training", "seed_model": str(seed.pk), "rounds": 1, "validate": False, **settings}
        )
        session = create_session(actor=self.actor, project=self.project, spec=spec)
        return start_session(actor=self.actor, session=session) if start else session

    def until_session(self, session: Session, *statuses: str, timeout: float = 40) -> Session:
        def there() -> bool:
            session.refresh_from_db()
            return session.status in statuses

        self.wait_until(there, timeout=timeout, what=f"session {statuses}")
        return session

    def arrays_of(self, model: Model) -> dict[str, Any]:
        with storage.local(model.key) as path:
            return {name: np.array(value) for name, value in load_arrays(path).items()}

    # --- processes --------------------------------------------------------------------------------------------
    def combiner(
        self,
        name: str = "c1",
        *,
        port: int = 0,
        spool: Path | None = None,
        extra: Sequence[str] = (),
        **env: str,
    ) -> Child:
        arguments = ["manage.py", "combiner", "--name", name, "--port", str(port), "--json"]
        arguments += ["--spool", str(spool or self.folder / f"combiner-{name}"), *extra]
        child = self._start(arguments, name, {**COMBINER_MALLOC, **env})
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.append(child.process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        reader.join(60)
        assert said and said[0], child.log.read_text()[-3000:]
        line = json.loads(said[0])
        child.address, child.tls_address = line["address"], line["tls"] or ""
        child.lane = line["lane"] or 0
        return child

    def worker(self) -> Child:
        arguments = ["-m", "celery", "-A", "studio", "worker", "--pool", "threads", "--concurrency", "4"]
        return self._start(
            [*arguments, "-Q", "default,reduce", "--without-gossip", "--without-mingle"], "worker", {}
        )

    def beat(self) -> Child:
        schedule = self.folder / f"beat-{uuid.uuid4().hex[:6]}"
        return self._start(["-m", "celery", "-A", "studio", "beat", "-s", str(schedule)], "beat", {})

    def _start(self, arguments: list[str], name: str, env: dict[str, str]) -> Child:
        log = self.folder / f"{name}.log"
        with open(log, "a") as errors:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={**os.environ, "DJANGO_SETTINGS_MODULE": "studio.settings", **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if "combiner" in arguments else errors,
                stderr=errors,
                text=True,
            )
        child = Child(process, log=log)
        self.children.append(child)
        return child

    def connect(self, combiner: Served, token: str, **options: Any) -> WireClient:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        wire = WireClient(combiner.address, token, folder, **options)
        self.wires.append(wire)
        wire.said("welcome")
        return wire

    def supervised(self, start: Callable[[], Child]) -> None:
        """Start it, and again whenever it dies, as `up`, systemd and Kubernetes do. (Celery's worker ends when its
        broker goes away at the wrong moment.)"""
        child = start()

        def watch() -> None:
            nonlocal child
            while True:
                child.process.wait()
                with self._starting:
                    if self._closing.is_set():
                        return
                    child = start()

        threading.Thread(target=watch, daemon=True).start()

    def close(self) -> None:
        with self._starting:
            self._closing.set()
        for wire in self.wires:
            wire.close()
        for child in self.children:
            child.thaw() if child.process.poll() is None else None
            child.stop()


@pytest.fixture
def rig(
    transactional_db: None, project: Project, owner: User, tmp_path: Path, wait_until: Any
) -> Iterator[Rig]:
    made = Rig(project, owner, tmp_path, wait_until)
    yield made
    made.close()
