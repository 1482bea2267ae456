"""Sending artifacts: streamed from storage in blocks, resumable by range, never whole in memory."""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse, HttpResponseNotModified, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.http import content_disposition_header, parse_etags

from federation.aggregation.codecs import to_npz, to_raw
from federation.models.models import ComputePackage, Model
from federation.models.services.seeds import RAW_HELPERS
from foundation import storage
from foundation.errors import StudioError

_BLOCK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Artifact:
    """What is sent: `file_name` as the browser saves it, `etag` without quotes."""

    file_name: str
    content_type: str
    etag: str
    size_bytes: int


def send_package(request: HttpRequest, package: ComputePackage, file_name: str = "") -> HttpResponseBase:
    """The archive as it was uploaded, under its own or another `file_name`; its ETag is its sha256."""
    about = Artifact(
        file_name or package.file_name, "application/octet-stream", package.sha256, package.size_bytes
    )
    return _send(request, about, package.key)


def send_model(request: HttpRequest, model: Model, file_format: str = "safetensors") -> HttpResponseBase:
    """The model as safetensors (its ETag is its sha256) or as npz. Raises StudioError 400 for another format."""
    stem = _UNSAFE.sub("-", model.name).strip("-.")[:100] or str(model.pk)
    if file_format == "safetensors":
        about = Artifact(f"{stem}.safetensors", "application/octet-stream", model.sha256, model.size_bytes)
        return _send(request, about, model.key)
    if file_format != "npz":
        raise StudioError("invalid", "format is safetensors or npz.", 400, field="format")
    etag = f"{model.sha256}-npz"
    if etag in _etags(request):
        return _not_modified(etag)
    converted = _as_npz(model)
    size = converted.seek(0, 2)
    return _send(request, Artifact(f"{stem}.npz", "application/octet-stream", etag, size), converted)


def send_for_helper(request: HttpRequest, model: Model, helper: str) -> HttpResponseBase:
    """The model in the format that FEDn's helper of this name writes and reads: npz whose keys are the tensors' places,
    or bare floats of the helpers that know no shapes."""
    if helper in RAW_HELPERS and [spec["name"] for spec in model.layout] == ["0"]:
        raw = _converted(model, lambda source, target: to_raw(source, target, dtype=RAW_HELPERS[helper]))
        about = Artifact(
            f"{model.pk}.bin", "application/octet-stream", f"{model.sha256}-{helper}", raw.seek(0, 2)
        )
        return _send(request, about, raw)
    npz = _converted(model, lambda source, target: to_npz(source, target, positional=True))
    about = Artifact(f"{model.pk}.npz", "application/octet-stream", f"{model.sha256}-places", npz.seek(0, 2))
    return _send(request, about, npz)


def _as_npz(model: Model) -> IO[bytes]:
    return _converted(model, to_npz)


def _converted(model: Model, convert: Callable[[Path, Path], None]) -> IO[bytes]:
    """An open file that is gone from its folder already, so that nothing is left whatever happens."""
    with tempfile.TemporaryDirectory(prefix="studio-download-") as folder:
        target = Path(folder) / "model"
        with storage.local(model.key) as source:
            convert(source, target)
        return target.open("rb")


def _send(request: HttpRequest, about: Artifact, source: str | IO[bytes]) -> HttpResponseBase:
    etag = f'"{about.etag}"'
    if about.etag in _etags(request):
        return _not_modified(about.etag)
    first, last, partial = _range_of(request, about)
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": content_disposition_header(True, about.file_name) or "attachment",
    }
    if first > last and about.size_bytes:
        return HttpResponse(status=416, headers=headers | {"Content-Range": f"bytes */{about.size_bytes}"})
    headers["Content-Length"] = str(last - first + 1)
    if partial:
        headers["Content-Range"] = f"bytes {first}-{last}/{about.size_bytes}"
    if isinstance(source, str):
        try:
            body = storage.open_at(source, first)
        except FileNotFoundError:
            raise StudioError(
                "artifact_missing", "The file is missing in storage; tell the operator of this site.", 503
            ) from None
    else:
        body = source
        body.seek(first)
    response = StreamingHttpResponse(
        _blocks(body, last - first + 1),
        status=206 if partial else 200,
        content_type=about.content_type,
        headers=headers,
    )
    response._resource_closers.append(body.close)  # type: ignore[attr-defined]  # also when nobody reads it
    return response


async def _blocks(body: IO[bytes], length: int) -> AsyncIterator[bytes]:
    """Asynchronous, for Django gathers a synchronous body in memory before it sends it over ASGI."""
    read = sync_to_async(body.read, thread_sensitive=False)
    try:
        while length > 0:
            block = await read(min(_BLOCK_BYTES, length))
            if not block:
                break
            length -= len(block)
            yield block
    finally:
        body.close()


def _etags(request: HttpRequest) -> list[str]:
    given = parse_etags(request.headers.get("If-None-Match", ""))
    return [tag.removeprefix("W/").strip('"') for tag in given]


def _not_modified(etag: str) -> HttpResponse:
    return HttpResponseNotModified(headers={"ETag": f'"{etag}"'})


def _range_of(request: HttpRequest, about: Artifact) -> tuple[int, int, bool]:
    """First byte, last byte, and whether that is a part. One range is understood; others get the whole."""
    whole = (0, about.size_bytes - 1, False)
    found = _RANGE.fullmatch(request.headers.get("Range", "").strip())
    if found is None or found.groups() == ("", ""):
        return whole
    if request.headers.get("If-Range", f'"{about.etag}"') != f'"{about.etag}"':
        return whole
    first, last = found.groups()
    if not first:
        return max(about.size_bytes - int(last), 0), about.size_bytes - 1, True
    end = min(int(last), about.size_bytes - 1) if last else about.size_bytes - 1
    return (int(first), end, True) if int(first) < about.size_bytes else (1, 0, True)
