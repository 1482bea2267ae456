"""A file that a request brings along, or one that was uploaded before in chunks and is named by a token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest

from federation.dialects.controller.callers import Caller
from federation.models.services import chunked


@contextmanager
def sent_file(
    request: HttpRequest, caller: Caller, fields: Mapping[str, Any]
) -> Iterator[UploadedFile[Any] | None]:
    token = fields.get("file_token")
    if not token:
        yield request.FILES.get("file")
        return
    with chunked.taken(actor=caller.actor, file_token=str(token)) as file:
        yield file
