"""The loop: start children in order, wait until all answer, restart who dies, stop all on a signal."""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType

from studio.supervisor.children import Child
from studio.supervisor.guard import Guard
from studio.supervisor.refusal import Refused

LOOK_EVERY_S = 0.2
STOP_GRACE_S = 10.0
GIVE_UP_AFTER_S = 120.0
# a child that dies this often before everything has answered once will not get better by itself
GIVE_UP_AFTER_DEATHS = 4


class Supervisor:
    """Runs a list of children; the first `base` of them are what the others stand on and stop last."""

    def __init__(
        self, children: Sequence[Child], guard: Guard, base: int, report: Callable[[str], None]
    ) -> None:
        self.children = list(children)
        self._guard = guard
        self._base = base
        self._report = report
        self._stop_requests = 0
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)

    def install_signals(self) -> None:
        """SIGINT, SIGTERM and SIGHUP stop everything; the end of a child wakes the loop."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_requests += 1

    @property
    def stopping(self) -> bool:
        """Whether somebody asked to stop."""
        return self._stop_requests > 0

    def bring_up(self, children: Sequence[Child]) -> bool:
        """Start these and wait until each has answered; false when a stop was asked for meanwhile.

        Raises:
            Refused: one keeps dying or does not answer in time; the end of its log is in the message.
        """
        for child in children:
            child.start()
        deadline = time.monotonic() + GIVE_UP_AFTER_S
        while not self.stopping:
            self._look()
            waiting = [child for child in children if not self._answers(child)]
            if not waiting:
                return True
            for child in waiting:
                late = time.monotonic() > deadline
                if child.deaths >= GIVE_UP_AFTER_DEATHS or late:
                    why = f"did not answer within {GIVE_UP_AFTER_S:g} s" if late else "keeps dying"
                    raise Refused(f"{child.spec.name} {why}. The end of {child.log}:\n{child.last_lines()}")
            self._pause(0.05)
        return False

    def run(self) -> None:
        """Keep everything running until a stop is asked for."""
        while not self.stopping:
            self._look()
            self._pause(LOOK_EVERY_S)

    def stop(self) -> None:
        """TERM for all, KILL for who is still there after ten seconds; the base last. A second signal hurries."""
        for group in (self.children[self._base :], self.children[: self._base]):
            for child in group:
                child.signal(signal.SIGTERM)
            asked = self._stop_requests
            deadline = time.monotonic() + STOP_GRACE_S
            while any(child.runs() for child in group):
                for child in group:
                    child.read_output()
                if time.monotonic() > deadline or self._stop_requests > max(asked, 1):
                    for child in group:
                        if child.runs():
                            self._report(f"{child.spec.name} did not stop in time and was killed")
                        child.signal(signal.SIGKILL)
                    deadline = time.monotonic() + STOP_GRACE_S
                self._pause(0.05)
            for child in group:
                child.died()

    def close(self) -> None:
        """Give the process its signals back."""
        signal.set_wakeup_fd(-1)
        self._wake_read.close()
        self._wake_write.close()

    def _answers(self, child: Child) -> bool:
        if not child.answered and child.runs():
            child.answered = child.spec.ready()
        return child.answered and child.runs()

    def _look(self) -> None:
        if self._guard.ensure():
            self._report("the guard process had died and was started again")
        for child in self.children:
            child.read_output()
            how = child.died()
            if how is not None:
                self._report(f"{child.spec.name} died ({how}); starting it again in {child.delay_s:g} s")
                child.slow_down()
            elif child.deaths and child.is_due():
                child.start()
                self._report(
                    f"{child.spec.name} started again (process {child.process.pid if child.process else 0})"
                )

    def _pause(self, seconds: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            for child in self.children:
                stream = child.process.stdout if child.process else None
                if stream is not None and not stream.closed:
                    selector.register(stream, selectors.EVENT_READ)
            selector.select(seconds)
        try:
            while self._wake_read.recv(512):
                pass
        except BlockingIOError:
            pass
