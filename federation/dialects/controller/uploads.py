"""A file that a request brings along, or one that was uploaded before and is named by a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest

from federation.dialects.controller.callers import Caller
from foundation.errors import invalid

# From (caller, file_token) to the file, which is consumed when the context ends without an error.
Resolver = Callable[[Caller, str], "AbstractContextManager[UploadedFile[Any]]"]
_resolvers: list[Resolver] = []


def register(resolver: Resolver) -> None:
    """For the dialect whose clients upload first and say later what it was."""
    if resolver not in _resolvers:
        _resolvers.append(resolver)


@contextmanager
def sent_file(
    request: HttpRequest, caller: Caller, fields: Mapping[str, Any]
) -> Iterator[UploadedFile[Any] | None]:
    token = fields.get("file_token")
    if not token:
        yield request.FILES.get("file")
        return
    if not _resolvers:
        raise invalid(
            "file_token", "Files cannot be uploaded ahead here: send the file itself in the field “file”."
        )
    with _resolvers[0](caller, str(token)) as file:
        yield file
