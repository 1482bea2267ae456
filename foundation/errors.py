"""The one error of the house. It feeds REST, gRPC, pages and the command line alike."""

from __future__ import annotations

from typing import Any


class StudioError(Exception):
    """A refusal that a person can act on.

    `code` is a stable word for programs, `message` one public sentence for people (never internals),
    `status` the HTTP status, `data` JSON-able details such as the field that was wrong.
    """

    def __init__(self, code: str, message: str, status: int = 400, **data: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.data = data

    def as_problem(self) -> dict[str, Any]:
        """RFC 9457 problem JSON."""
        return {
            "type": f"urn:studio:{self.code}",
            "title": self.code.replace("_", " "),
            "status": self.status,
            "detail": self.message,
            "code": self.code,
            **self.data,
        }


def not_found(what: str) -> StudioError:
    """Unknown and forbidden look the same."""
    return StudioError("not_found", f"There is no such {what}, or it is not yours to see.", 404)


def forbidden(message: str) -> StudioError:
    return StudioError("forbidden", message, 403)


def invalid(field: str, message: str) -> StudioError:
    return StudioError("invalid", message, 400, field=field)
