"""Works on one task at a time, over however many connections that takes."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from typing import Any

from .. import studio_v1_pb2 as pb
from ..errors import SdkError, TaskCancelled, TaskFailed
from ..plain_json import dumps, plain
from .compression import Compression
from .links import Links
from .store import Store
from .tasks import HeldTask, TaskQueue
from .trainer import Job, Trainer
from .transfer import Transfers

_STATUS = {pb.Receipt.ACCEPTED: "accepted", pb.Receipt.REJECTED: "rejected", pb.Receipt.REFUSED: "refused"}
ACK_TIMEOUT_S = 5.0


class Worker:
    """`run` is the body of a thread. `fatal` is called with the error that must end the client."""

    def __init__(
        self,
        *,
        queue: TaskQueue,
        links: Links,
        store: Store,
        trainer: Trainer,
        say: Callable[[str], None],
        fatal: Callable[[SdkError], None],
    ) -> None:
        self._queue = queue
        self._links = links
        self._store = store
        self._trainer = trainer
        self._say = say
        self._fatal = fatal
        self._transfers = Transfers(links, store, say)
        self._compression = Compression(store, self._transfers, say)
        self.current: HeldTask | None = None

    def run(self) -> None:
        """Take tasks until the queue closes."""
        while (held := self._queue.take()) is not None:
            self.current = held
            try:
                self._work(held)
            except TaskCancelled:
                # when this client ends in the middle of an upload, the next start sends it
                if held.unwanted:
                    self._store.drop_update(held.task.assignment_id)
                self._say(f"{held.title}: stopped ({held.cancel_reason or 'this client ends'})")
            except TaskFailed as failure:
                self._fail(held, failure)
            except SdkError as error:
                self._fail(held, TaskFailed(error.message))
                self._links.wait_settled(ACK_TIMEOUT_S)
                self._fatal(error)
                return
            except Exception as error:  # a callback of the user's may raise anything; the client goes on
                tail = traceback.format_exc(limit=-5)
                self._fail(
                    held, TaskFailed(f"{held.task.kind} raised {type(error).__name__}: {error}", 0, tail)
                )
            finally:
                self.current = None
                self._queue.done(held)

    def _work(self, held: HeldTask) -> None:
        task = held.task
        if task.kind == "train":
            kept = self._store.kept_update(task.assignment_id)
            if kept is None:
                self._train(held)
            else:
                self._say(f"{held.title}: sending the update trained before")
                self._upload(held)
        elif task.kind == "validate":
            self._validate(held)
        else:
            raise TaskFailed(f"This client (protocol 1) cannot do a {task.kind!r} task.")

    def _job(self, held: HeldTask) -> Job:
        self._trainer.prepare_task(held)
        model = self._transfers.model(held.task, held.cancel, held.model)
        held.model = b""
        try:
            settings = json.loads(held.task.settings_json or "{}")
        except ValueError:
            raise TaskFailed("The client settings are no valid JSON.") from None
        return Job(held, model, settings, self._store.update_file(held.task.assignment_id))

    def _train(self, held: HeldTask) -> None:
        job = self._job(held)
        self._say(f"{held.title}: training")
        sha256, metadata = self._trainer.train(job)
        if held.cancel.is_set():
            raise TaskCancelled
        try:
            content: dict[str, Any] = plain(metadata)
            self._store.keep_update(held.task.assignment_id, sha256, content)
        except TypeError as error:
            raise TaskFailed(f"The training's metadata cannot be written as JSON: {error}") from None
        self._upload(held)

    def _upload(self, held: HeldTask) -> None:
        update = self._store.kept_update(held.task.assignment_id)
        if update is None:
            raise TaskFailed("The update vanished from this client's disk before it was sent.")
        compressed = self._compression.update(held, update)
        receipt, sent = self._transfers.upload(update, held.cancel, compressed)
        self._compression.settle(sent, receipt)
        self._store.drop_update(update.assignment_id)
        status = _STATUS.get(receipt.status, "answered")
        reason = f" ({receipt.reason})" if receipt.reason else ""
        how = f" as {sent.form}, not {update.size_bytes / 1e6:.1f} MB" if sent.form else ""
        self._say(f"{held.title}: uploaded {sent.size_bytes / 1e6:.1f} MB{how}: {status}{reason}")

    def _validate(self, held: HeldTask) -> None:
        job = self._job(held)
        self._say(f"{held.title}: validating")
        metrics = self._trainer.validate(job)
        if held.cancel.is_set():
            raise TaskCancelled
        try:
            text = dumps(metrics)
            count = float(metrics.get("num_examples") or 0)
        except (TypeError, ValueError, AttributeError) as error:
            raise TaskFailed(f"The validation's result cannot be written as JSON: {error}") from None
        report = pb.Validation(assignment_id=held.task.assignment_id, data_json=text, num_examples=count)
        self._links.report(held.task.assignment_id, pb.ClientMessage(validation=report))
        self._say(f"{held.title}: validated {_shown(metrics)}")

    def _fail(self, held: HeldTask, failure: TaskFailed) -> None:
        self._store.drop_update(held.task.assignment_id)
        self._say(f"{held.title}: {held.task.kind} failed: {failure.reason}")
        report = pb.Failure(
            assignment_id=held.task.assignment_id,
            reason=failure.reason,
            exit_code=failure.exit_code,
            log_tail=failure.log_tail,
        )
        self._links.report(held.task.assignment_id, pb.ClientMessage(failure=report))


def _shown(metrics: Any) -> str:
    scalars = [
        f"{name} {value:.4g}"
        for name, value in plain(metrics).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return ", ".join(scalars[:4])
