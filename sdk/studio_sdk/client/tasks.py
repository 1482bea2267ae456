"""What the client was asked for: one thing at a time, training before validating."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from .. import studio_v1_pb2 as pb
from ..project.entry_point import CancelSwitch


@dataclass(eq=False)
class HeldTask:
    """A task this client has and has not finished. `deadline` is on `time.monotonic`'s clock. `model`: what came inside
    the task, until it is on the disk."""

    task: pb.Task
    deadline: float | None
    model: bytes = b""
    cancel: CancelSwitch = field(default_factory=CancelSwitch)
    cancel_reason: str = ""
    unwanted: bool = False  # cancelled by the server, not by this client's end

    @property
    def title(self) -> str:
        """How the state lines call it."""
        return f"round {self.task.round}"


def held_task(task: pb.Task) -> HeldTask:
    """As it came; the model apart, for a message keeps the memory of what is cleared in it."""
    model = task.model
    task.ClearField("model")
    small = pb.Task()
    small.CopyFrom(task)
    return HeldTask(small, local_deadline(task.deadline_unix_s), model)


def local_deadline(deadline_unix_s: float) -> float | None:
    """The server's deadline on this machine's steady clock.

    None when there is none, or when it seems past already: then the clocks differ, and the server's Cancel decides.
    """
    left = deadline_unix_s - time.time()
    return time.monotonic() + left if deadline_unix_s and left > 0 else None


class TaskQueue:
    """Filled by the stream's thread, emptied by the worker's."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[HeldTask] = []
        self._current: HeldTask | None = None
        self._closed = False

    def add(self, task: pb.Task) -> bool:
        """False when the task is held already (at least once: it may be sent twice)."""
        with self._changed:
            if self._closed or task.assignment_id in self.holds():
                return False
            self._waiting.append(held_task(task))
            self._changed.notify_all()
            return True

    def take(self) -> HeldTask | None:
        """The next task, waiting for one; None when the client ends."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            first = min(self._waiting, key=lambda held: held.task.kind != "train")
            self._waiting.remove(first)
            self._current = first
            return first

    def done(self, held: HeldTask) -> None:
        """The worker has finished with this task, one way or another."""
        with self._changed:
            if self._current is held:
                self._current = None

    def cancel(self, assignment_id: str, reason: str) -> bool:
        """Drop a waiting task, or stop the one being worked on; False when it is not held."""
        with self._changed:
            for held in self._waiting:
                if held.task.assignment_id == assignment_id:
                    self._waiting.remove(held)
                    return True
            current = self._current
            if current is None or current.task.assignment_id != assignment_id:
                return False
            current.cancel_reason = reason
            current.unwanted = True
        current.cancel.set()
        return True

    def holds(self) -> list[str]:
        """Ids of everything waiting or being worked on."""
        with self._changed:
            held = [self._current, *self._waiting] if self._current else self._waiting
            return [entry.task.assignment_id for entry in held]

    def close(self) -> None:
        """The client ends: the worker gets nothing more, and stops what it does."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            current = self._current
            self._changed.notify_all()
        if current is not None:
            current.cancel.set()
