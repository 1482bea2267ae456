"""The connection of the moment, for threads that outlive it: transfers wait here for the next one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from .. import studio_v1_pb2 as pb

if TYPE_CHECKING:
    from ..project.entry_point import CancelSwitch
    from .link import Link


class Links:
    """Holds the welcomed link, if any, and the reports that no combiner has acknowledged yet."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._link: Link | None = None
        self._reports: dict[str, pb.ClientMessage] = {}

    def set(self, link: Link | None) -> None:
        """A link was welcomed (its unacknowledged reports go out again), or the last one ended."""
        with self._changed:
            self._link = link
            again = list(self._reports.values())
            self._changed.notify_all()
        if link is not None:
            for report in again:
                link.send(report)

    def wait(self, cancel: CancelSwitch) -> Link | None:
        """The welcomed link, waiting for one as long as it takes; None when cancelled meanwhile."""
        cancel.call(self.wake)
        with self._changed:
            while self._link is None and not cancel.is_set():
                self._changed.wait()
            return None if cancel.is_set() else self._link

    def wake(self) -> None:
        """Let those who wait look again."""
        with self._changed:
            self._changed.notify_all()

    def send(self, message: pb.ClientMessage) -> None:
        """Send what may be lost: progress, metrics, logs, receipts of tasks."""
        with self._changed:
            link = self._link
        if link is not None:
            link.send(message)

    def report(self, assignment_id: str, message: pb.ClientMessage) -> None:
        """Send what must arrive: kept, and sent again on every new link, until it is acknowledged."""
        with self._changed:
            self._reports[assignment_id] = message
            link = self._link
        if link is not None:
            link.send(message)

    def settle(self, assignment_id: str) -> None:
        """The report is on record, or no longer wanted."""
        with self._changed:
            self._reports.pop(assignment_id, None)
            self._changed.notify_all()

    def reported(self) -> list[str]:
        """Assignments whose report is not acknowledged."""
        with self._changed:
            return list(self._reports)

    def wait_settled(self, timeout_s: float) -> bool:
        """Wait until every report is acknowledged; False when some are not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._reports, timeout_s)
