"""The client runtime: connect, listen, hand tasks to the worker, come back after every loss.

client = FederatedClient(ClientConfig.read("client.yaml"))
client.set_train(train).set_validate(validate)
raise SystemExit(client.run())
"""

from __future__ import annotations

import json
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import grpc

from .. import studio_v1_pb2 as pb
from ..errors import Exit, SdkError
from ..plain_json import plain
from ..project import process_group
from ..version import VERSION
from . import tls
from .attributes import from_mapping
from .backoff import Backoff
from .config import ClientConfig
from .directory import Directory
from .link import PROTOCOL, Address, Link, NotWelcomed
from .links import Links
from .package_trainer import PackageTrainer
from .store import Store
from .tasks import TaskQueue
from .trainer import CallbackTrainer, Train, Trainer, Validate
from .worker import Worker

_REFUSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND}
_PROTOCOL_CODES = {"old_protocol", "new_protocol"}
BYE_GRACE_S = 1.0


def print_line(text: str) -> None:
    """One state line, with the time, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class FederatedClient:
    """One client of one project. `work_dir` holds models and unsent updates (default: the user's cache). `attributes`
    are what it says of itself, over those of its config: sessions choose clients by them. Raises SdkError unless they
    are texts, numbers, true, false or lists of these."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        name: str | None = None,
        work_dir: Path | None = None,
        say: Callable[[str], None] = print_line,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.name = name or config.name
        self._say = say
        self._attributes = {**config.attributes, **from_mapping(plain(attributes))}
        self._store = Store(config.client_id, work_dir)
        self._links = Links()
        self._queue = TaskQueue()
        self._directory: Directory | None = None
        self._train: Train | None = None
        self._validate: Validate | None = None
        self._package: tuple[Path | None, dict[str, str]] | None = None
        self._stopping = threading.Event()
        self._end: SdkError | None = None
        self._link: Link | None = None
        self._worker: Worker | None = None

    # ---- what this client can do

    def set_train(self, train: Train) -> Self:
        """`train(arrays, settings) -> (arrays, metadata with num_examples)`; runs in a thread of this process."""
        self._train = train
        return self

    def set_validate(self, validate: Validate) -> Self:
        """`validate(arrays, settings) -> metrics`."""
        self._validate = validate
        return self

    def use_package(self, folder: Path | None = None, environ: Mapping[str, str] | None = None) -> Self:
        """Train by entry points: of the local `folder`, else of each session's package."""
        self._package = (folder, dict(environ or {}))
        return self

    # ---- while training

    @property
    def cancelled(self) -> bool:
        """Whether the task being worked on is no longer wanted; a long callback looks here now and then."""
        held = self._worker.current if self._worker else None
        return self._stopping.is_set() or (held is not None and held.cancel.is_set())

    def log_metric(self, name: str, value: float, step: int = 0) -> None:
        """Send one number about the task being worked on."""
        held = self._worker.current if self._worker else None
        if held is not None:
            report = pb.Metrics(assignment_id=held.task.assignment_id, values={name: float(value)}, step=step)
            self._links.send(pb.ClientMessage(metrics=report))

    # ---- life

    def stop(self) -> None:
        """End the client: says Bye, ends the running entry point. Safe from any thread."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._queue.close()
        self._links.wake()
        link = self._link
        if link is not None:
            link.say_bye("stopped")
            timer = threading.Timer(BYE_GRACE_S, link.close)
            timer.daemon = True
            timer.start()

    def run(self) -> int:
        """Work until stopped or refused; the exit code (see `studio_sdk.errors.Exit`) says which."""
        thread: threading.Thread | None = None
        try:
            self._directory = Directory(self.config)
            trainer = self._trainer(self._directory)
            trainer.prepare()
            self._worker = Worker(
                queue=self._queue, links=self._links, store=self._store, trainer=trainer,
                say=self._say, fatal=self._finish,
            )  # fmt: skip
            thread = threading.Thread(target=self._worker.run, name="studio-worker", daemon=True)
            thread.start()
            self._stay_connected(self._directory, trainer)
        except SdkError as error:
            # a build that was ended because the client ends is no failure
            self._end = self._end or (None if self._stopping.is_set() else error)
        finally:
            self.stop()
            if thread is not None:
                thread.join(process_group.TERM_GRACE_S + 1.0)
            if self._link is not None:
                self._link.close()
            if self._directory is not None:
                self._directory.close()
            self._store.close()
        if self._end is not None:
            self._say(self._end.message)
            return self._end.exit_code
        self._say("stopped")
        return int(Exit.STOPPED)

    def _trainer(self, directory: Directory) -> Trainer:
        if self._train or self._validate:
            return CallbackTrainer(self._train, self._validate)
        folder, environ = self._package or (None, {})
        return PackageTrainer(
            store=self._store, links=self._links, say=self._say, fetch=directory.fetch_package,
            folder=folder, environ={"STUDIO_CLIENT_NAME": self.name, **environ},
        )  # fmt: skip

    def _finish(self, error: SdkError) -> None:
        """Called by the worker: the client cannot go on."""
        if not self._stopping.is_set():
            self._end = error
        self.stop()

    # ---- connections

    def _stay_connected(self, directory: Directory, trainer: Trainer) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            addresses, trouble = directory.combiners()
            reason = trouble or "no combiner is running for this project"
            for address in addresses:
                if self._stopping.is_set():
                    return
                self._say(f"connecting to {address.name}")
                reason = self._connect(address, trainer, backoff)
                if not reason:
                    break
            if self._stopping.is_set():
                return
            pause = backoff.next_s()
            self._say(f"not connected: {reason or 'the connection ended'}; again in {pause:.1f} s")
            self._stopping.wait(pause)

    def _connect(self, address: Address, trainer: Trainer, backoff: Backoff) -> str:
        """Stay on one combiner until the stream ends; why it never began, or "" when it did.

        Raises SdkError when coming back would not help.
        """
        link = Link(address, self.config.token, self.config.ca_cert)
        self._link = link
        welcomed = threading.Event()

        def on_welcome(welcome: pb.Welcome) -> None:
            welcomed.set()
            backoff.reset()
            self._links.set(link)
            self._say(
                f"connected to {welcome.combiner or address.name} as {welcome.client_name or self.name}"
            )

        try:
            if self._stopping.is_set():
                return ""
            for message in link.messages(self._hello(trainer), on_welcome):
                self._take(link, message)
                if self._stopping.is_set():
                    break
            return "" if welcomed.is_set() else "the combiner ended the stream"
        except NotWelcomed:
            return "the combiner did not answer Hello"
        except grpc.RpcError as error:
            if self._stopping.is_set():
                return ""
            self._check_final(error, address)
            if welcomed.is_set():
                self._say(f"connection lost: {_details(error)}")
                return ""
            return _details(error)
        finally:
            self._links.set(None)
            link.close()

    def _hello(self, trainer: Trainer) -> pb.Hello:
        attributes = {
            "sdk": VERSION,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            **self._attributes,
        }
        return pb.Hello(
            protocol=PROTOCOL,
            client_version=VERSION,
            holds=[*self._queue.holds(), *self._links.reported()],
            attributes_json=json.dumps(attributes),
            can_validate=trainer.can_validate,
            takes_models=True,
        )

    def _take(self, link: Link, message: pb.ServerMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "task":
            # confirmed also when it is held already: then the first confirmation was lost
            self._queue.add(message.task)
            link.send(pb.ClientMessage(received=pb.Received(assignment_id=message.task.assignment_id)))
        elif kind == "cancel":
            self._links.settle(message.cancel.assignment_id)
            self._queue.cancel(message.cancel.assignment_id, message.cancel.reason)
        elif kind == "ack":
            if message.ack.status in ("rejected", "refused"):
                self._say(f"report {message.ack.status}: {message.ack.reason}")
            self._links.settle(message.ack.assignment_id)
        elif kind == "goodbye":
            goodbye = message.goodbye
            self._say(f"the combiner says goodbye: {goodbye.reason or goodbye.code}")
            if not goodbye.retry:
                code = Exit.PROTOCOL if goodbye.code in _PROTOCOL_CODES else Exit.REFUSED
                raise SdkError(f"Ended by Studio: {goodbye.reason or goodbye.code}.", code)

    def _check_final(self, error: grpc.RpcError, address: Address) -> None:
        """Raise SdkError when trying again would get the same answer."""
        code, details = error.code(), _details(error)
        trailing: Any = error.trailing_metadata() or ()
        studio_code = next((value for key, value in trailing if key == "studio-code"), "")
        if studio_code in _PROTOCOL_CODES or code == grpc.StatusCode.UNIMPLEMENTED:
            raise SdkError(
                f"{address.target} does not speak this client's protocol: {details}", Exit.PROTOCOL
            )
        if code in _REFUSED:
            raise SdkError(f"The combiner refuses this client: {details}", Exit.REFUSED)
        if address.tls and code == grpc.StatusCode.UNAVAILABLE:
            reason = tls.refusal(address.target, self.config.ca_cert)
            if reason:
                raise SdkError(f"{address.target} cannot be trusted: {reason}", Exit.TLS)


def _details(error: grpc.RpcError) -> str:
    """gRPC's words without its list of addresses."""
    text = str(error.details() or error.code().name)
    return text.rpartition("last error: ")[2].rpartition("Failed to connect to remote host: ")[2][:300]
