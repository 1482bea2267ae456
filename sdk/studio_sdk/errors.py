"""What can go wrong, and the exit code that says so to a script."""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """Exit codes of `studio client start`. The other commands use 0, 1, 2 (usage), 3, 4 (not found), 5
    (connection)."""

    STOPPED = 0
    OTHER = 1
    USAGE = 2
    REFUSED = 3
    PACKAGE = 4
    ENVIRONMENT = 5
    PROTOCOL = 6
    TLS = 7


class SdkError(Exception):
    """A sentence for the person at the terminal, and the exit code that goes with it."""

    def __init__(self, message: str, exit_code: int = Exit.OTHER) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = int(exit_code)


class ProjectFileError(SdkError):
    """The project file, or the folder it should be in, is not what the convention asks for."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.PACKAGE)


class PackageError(SdkError):
    """A compute package that cannot be made, or that arrived broken."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.PACKAGE)


class EnvironmentBuildError(SdkError):
    """The `python_env.yaml` environment could not be built; the message carries pip's reason."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.ENVIRONMENT)


class TaskFailed(Exception):
    """One assignment cannot be done; the client itself goes on."""

    def __init__(self, reason: str, exit_code: int = 0, log_tail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.exit_code = exit_code
        self.log_tail = log_tail


class TaskCancelled(Exception):
    """The result of the assignment is no longer wanted."""


class StudioApiError(SdkError):
    """The server's refusal of one REST call: its code, its sentence and the HTTP status (0: no answer at
    all)."""

    def __init__(self, code: str, message: str, status: int, data: dict[str, Any] | None = None) -> None:
        super().__init__(message, exit_code_of(status))
        self.code = code
        self.status = status
        self.data = data or {}


def exit_code_of(status: int) -> int:
    """Exit code of a command whose REST call ended with this HTTP status."""
    if status in (401, 403):
        return 3
    if status == 404:
        return 4
    if status == 0 or status >= 500:
        return 5
    return 1
