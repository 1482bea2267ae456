"""Played by SDK tests: a person with a project on a live stack, and clients that run in threads or processes."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from studio_sdk import ClientConfig, FederatedClient, StudioApi, save_parameters
from studio_sdk.project.archive import create_package

STUDIO = [sys.executable, "-m", "studio_sdk.cli.main"]


def new_person(web: str) -> StudioApi:
    """A new account, logged in with a token."""
    name = f"ada-{secrets.token_hex(4)}"
    with StudioApi(web) as anonymous:
        anonymous.sign_up(name, f"{name}@example.org", "correct-horse-battery-9")
        token = anonymous.log_in(name, "correct-horse-battery-9", "tests")["token"]
    return StudioApi(web, str(token))


@dataclass
class Running:
    """A client in a thread of the test."""

    client: FederatedClient
    lines: list[str]
    thread: threading.Thread | None = None
    codes: list[int] = field(default_factory=list)

    def start(self) -> Running:
        self.thread = threading.Thread(target=lambda: self.codes.append(self.client.run()), daemon=True)
        self.thread.start()
        return self

    def said(self, pattern: str) -> list[str]:
        return [line for line in list(self.lines) if re.search(pattern, line)]

    def end(self, timeout: float = 10) -> int:
        self.client.stop()
        return self.code(timeout)

    def code(self, timeout: float = 10) -> int:
        assert self.thread is not None
        self.thread.join(timeout)
        assert self.codes, f"the client did not end: {self.lines[-5:]}"
        return self.codes[0]


@dataclass
class Site:
    """One project and what the test does in it. Closed with the test."""

    api: StudioApi
    folder: Path
    slug: str
    exits: ExitStack

    @classmethod
    @contextmanager
    def open(cls, api: StudioApi, folder: Path) -> Iterator[Site]:
        with ExitStack() as exits:
            yield cls(api, folder, str(api.create_project(f"SDK {secrets.token_hex(3)}")["slug"]), exits)

    def config(self, name: str = "", **changes: Any) -> tuple[ClientConfig, Path]:
        """A registered client's config, and as a file. `changes` replace fields of it."""
        made = self.api.create_client(self.slug, name or f"site-{secrets.token_hex(3)}")
        content = {**yaml.safe_load(made["config_yaml"]), **changes}
        path = self.folder / f"{content['name']}.yaml"
        path.write_text(yaml.safe_dump(content))
        return ClientConfig.read(path), path

    def callbacks(self, train: Any = None, validate: Any = None, name: str = "", **changes: Any) -> Running:
        """A client with Python callbacks, started."""
        config, _path = self.config(name, **changes)
        lines: list[str] = []
        client = FederatedClient(config, work_dir=self.folder / f"work-{config.name}", say=lines.append)
        client.set_train(train or add_one)
        if validate:
            client.set_validate(validate)
        running = Running(client, lines).start()
        self.exits.callback(client.stop)
        return running

    def process(self, config: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        """`studio client start`, and the file with its lines."""
        log = self.folder / f"{config.stem}-{secrets.token_hex(2)}.log"
        with log.open("wb") as out:
            child = subprocess.Popen(
                [*STUDIO, "client", "start", "-in", str(config), *arguments],
                stdout=out, stderr=out, cwd=self.folder,
                env={**os.environ, "STUDIO_CACHE_DIR": str(self.folder / "cache")},
            )  # fmt: skip

        def stop() -> None:
            if child.poll() is None:
                child.terminate()
                with suppress(subprocess.TimeoutExpired):
                    child.wait(10)
                child.kill()

        self.exits.callback(stop)
        return child, log

    def seed(self, arrays: dict[str, np.ndarray] | None = None) -> str:
        path = self.folder / f"seed-{secrets.token_hex(3)}.safetensors"
        save_parameters(arrays or {"w": np.zeros(4, np.float32), "n": np.array(0, np.int64)}, path)
        return str(self.api.upload_model(self.slug, path, "seed")["id"])

    def package(self, train: str = "", validate: str = "") -> tuple[str, Path]:
        """An uploaded package with these scripts (run by this interpreter), and its folder."""
        folder = self.folder / f"package-{secrets.token_hex(3)}"
        folder.mkdir()
        commands = {"train": {"command": "python train.py"}}
        (folder / "train.py").write_text(train or GOOD_TRAIN)
        if validate:
            commands["validate"] = {"command": "python validate.py"}
            (folder / "validate.py").write_text(validate)
        (folder / "studio.yaml").write_text(yaml.safe_dump({"entry_points": commands}))
        made = create_package(folder, self.folder / f"{folder.name}.tgz")
        return str(self.api.upload_package(self.slug, made.path, folder.name)["id"]), folder

    def session(self, seed: str, **settings: Any) -> str:
        defaults = {"rounds": 1, "validate": False, "round_timeout_s": 60, "max_failed_rounds": 1}
        return str(self.api.create_session(self.slug, seed, **{**defaults, **settings})["id"])

    def ended(self, session: str) -> dict[str, Any] | None:
        """The session once it has ended; for `wait_until`."""
        row = self.api.session(self.slug, session)
        return row if row["status"] in ("finished", "failed", "stopped") else None

    def online(self, count: int) -> bool:
        return sum(bool(row["online"]) for row in self.api.clients(self.slug)) >= count

    def errors(self, session: str) -> list[str]:
        return [str(row["error"]) for row in self.api.assignments(self.slug, session)]

    def model(self, session: str) -> dict[str, np.ndarray]:
        """The session's newest model."""
        from studio_sdk import load_parameters

        path = self.folder / f"model-{secrets.token_hex(3)}.safetensors"
        self.api.download_model(self.slug, str(self.api.session(self.slug, session)["current_model"]), path)
        return load_parameters(path)


def add_one(arrays: dict[str, Any], _settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {name: array + 1 for name, array in arrays.items()}, {"num_examples": 1}


GOOD_TRAIN = """
import sys
from studio_sdk import load_parameters, save_parameters, save_metadata
arrays = load_parameters(sys.argv[1])
save_parameters({n: a + 1 for n, a in arrays.items()}, sys.argv[2])
save_metadata({"num_examples": 5, "note": "done"}, sys.argv[2])
"""


class Wire:
    """A TCP relay on loopback that a test can cut: after so many bytes up or down one connection, or at once."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self.target = (host, int(port or 0))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut_after: int | None = None
        self.cut_after_down: int | None = None
        self.down_bytes = 0
        self.blocked = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.blocked:
                    near.close()
                    continue
                far = socket.create_connection(self.target)
                self._pairs.append((near, far))
                for source, sink, up in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._relay, args=(source, sink, up), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                limit = self.cut_after if up else self.cut_after_down
                if limit is not None and passed > limit:
                    self.cut_after = self.cut_after_down = None
                    self.cut()
                    return
                self.down_bytes += 0 if up else len(data)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break every connection there is now."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def close(self) -> None:
        self.blocked = True
        with closing(self._listener):
            self.cut()


def free_address() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def until(condition: Any, timeout: float = 20.0, what: str = "") -> Any:
    """The first true value of `condition()`, or a failure at the deadline."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout:g} s in vain for {what or condition}"
        time.sleep(0.03)
    return value
