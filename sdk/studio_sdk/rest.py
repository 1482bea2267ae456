"""HTTP to Studio's REST API: timeouts, retries, problem answers, streamed files."""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from .errors import StudioApiError
from .version import VERSION

Json = dict[str, Any]
CHUNK_BYTES = 1024 * 1024
_AGAIN = {500, 502, 503, 504}


@dataclass(frozen=True)
class RetryRule:
    """How often and how long a call that may be repeated is repeated: full jitter up to `first_s * 2**n`."""

    tries: int = 5
    first_s: float = 0.2
    most_s: float = 5.0

    def pause(self, tried: int) -> float:
        """Seconds to wait after `tried` failures."""
        return random.uniform(0, min(self.most_s, self.first_s * 2.0**tried))


class Multipart:
    """A multipart/form-data body that reads its file while it is sent; it can be sent again."""

    def __init__(self, fields: Mapping[str, str], file_field: str, path: Path, file_name: str) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        head = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        )
        safe = file_name.replace('"', "").replace("\r", "").replace("\n", "")
        head += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{file_field}"; filename="{safe}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        self._head = head.encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._path = path
        self._size = path.stat().st_size

    def __len__(self) -> int:
        return len(self._head) + self._size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        with self._path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
        yield self._tail


class Rest:
    """One Studio server as one user, project or client. Not for several threads at once."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = 30.0,
        ca_cert: str | Path | None = None,
        retry: RetryRule | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.retry = retry or RetryRule()
        self._session = requests.Session()
        # a netrc entry must not replace the token
        self._session.trust_env = False
        self._session.proxies = requests.utils.get_environ_proxies(self.url)
        self._session.verify = str(ca_cert) if ca_cert else os.environ.get("REQUESTS_CA_BUNDLE") or True
        self._session.headers.update({"User-Agent": f"studio-sdk/{VERSION}", "Accept": "application/json"})
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Json:
        """GET one JSON object."""
        return _json(self.send("GET", path, params=params))

    def post(self, path: str, body: Json | None = None, *, creates: bool = False) -> Json:
        """POST JSON. A creating call carries an Idempotency-Key, so it may be repeated safely."""
        return _json(self.send("POST", path, body=body or {}, creates=creates))

    def patch(self, path: str, body: Json) -> Json:
        """PATCH with JSON."""
        return _json(self.send("PATCH", path, body=body))

    def delete(self, path: str, body: Json | None = None) -> None:
        """DELETE."""
        self.send("DELETE", path, body=body)

    def upload(self, path: str, fields: Mapping[str, str], file: Path, file_name: str | None = None) -> Json:
        """POST a file as multipart, read while it is sent."""
        body = Multipart(fields, "file", file, file_name or file.name)
        return _json(self.send("POST", path, multipart=body, creates=True))

    def pages(self, path: str, params: Mapping[str, Any] | None = None) -> Iterator[Json]:
        """Every row of a list, page by page."""
        wanted: Mapping[str, Any] | None = {key: v for key, v in (params or {}).items() if v is not None}
        while True:
            page = self.get(path, wanted)
            yield from page["results"]
            following = page.get("next")
            if not following:
                return
            # a server behind a proxy may know itself by another name: only path and query count
            path, wanted = "/" + str(following).split("://", 1)[-1].partition("/")[2], None

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Json | None = None,
        multipart: Multipart | None = None,
        creates: bool = False,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
    ) -> requests.Response:
        """One call, repeated on connection errors and 5xx when that is safe. Raises StudioApiError."""
        sent = dict(headers or {})
        if creates:
            sent["Idempotency-Key"] = secrets.token_hex(16)
        data: Any = None
        if multipart is not None:
            sent["Content-Type"] = multipart.content_type
            data = multipart
        elif body is not None:
            sent["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        repeatable = creates or method in {"GET", "DELETE"}
        tried = 0
        while True:
            tried += 1
            last = not repeatable or tried >= self.retry.tries
            try:
                answer = self._session.request(
                    method, self.url + path, params=params, data=data, headers=sent, stream=stream,
                    timeout=(min(self.timeout_s, 10.0), self.timeout_s), allow_redirects=False,
                )  # fmt: skip
            except requests.exceptions.SSLError as error:
                raise StudioApiError(
                    "tls_refused", f"{self.url} cannot be trusted: {_short(error)}", 0
                ) from None
            except (requests.ConnectionError, requests.Timeout) as error:
                if last:
                    sentence = f"{self.url} cannot be reached: {_short(error)}"
                    raise StudioApiError("unreachable", sentence, 0) from None
            except (requests.RequestException, ValueError) as error:
                raise StudioApiError(
                    "bad_address", f"{self.url} cannot be called: {_short(error)}", 0
                ) from None
            else:
                if answer.status_code not in _AGAIN or last:
                    return _checked(answer)
                answer.close()
            time.sleep(self.retry.pause(tried))

    def download(self, path: str, target: Path, *, sha256: str | None = None) -> str:
        """Stream a file to `target`, which appears only when it is whole; return its sha256 (hex).

        An interrupted transfer goes on where it stopped if the server can. Raises StudioApiError `checksum` when the
        content is not what `sha256` says.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
        try:
            tried = 0
            while not self._fetch(path, part):
                tried += 1
                if tried >= self.retry.tries:
                    raise StudioApiError("unreachable", f"The download of {path} broke off {tried} times.", 0)
                time.sleep(self.retry.pause(tried))
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 and found != sha256:
                sentence = f"The download has sha256 {found}; {sha256} was expected. Nothing was kept."
                raise StudioApiError("checksum", sentence, 400)
            part.replace(target)
            return found
        finally:
            part.unlink(missing_ok=True)

    def _fetch(self, path: str, part: Path) -> bool:
        """One try; False when it broke off."""
        have = part.stat().st_size if part.exists() else 0
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with self.send("GET", path, headers=headers, stream=True) as answer:
            goes_on = answer.status_code == 206
            # a short answer ends quietly and is counted below; raising would throw away what had arrived
            answer.raw.enforce_content_length = False
            with suppress(
                requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError
            ):
                with part.open("ab" if goes_on else "wb") as file:
                    for chunk in answer.iter_content(CHUNK_BYTES):
                        file.write(chunk)
                expected = answer.headers.get("Content-Length")
                got = part.stat().st_size - (have if goes_on else 0)
                return expected is None or got == int(expected)
        return False


def _json(answer: requests.Response) -> Json:
    if not answer.content:
        return {}
    try:
        found = answer.json()
    except ValueError:
        raise StudioApiError(
            "not_studio", f"{answer.url} did not answer with JSON. Is this Studio?", 0
        ) from None
    return found if isinstance(found, dict) else {"results": found}


def _checked(answer: requests.Response) -> requests.Response:
    if answer.status_code < 300:
        return answer
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    sentence = str(
        problem.get("detail") or f"{answer.request.method} {answer.url} answered {answer.status_code}."
    )
    wait = answer.headers.get("Retry-After")
    if answer.status_code == 429 and wait:
        sentence += f" Try again in {wait} s."
    raise StudioApiError(str(problem.get("code") or "http_error"), sentence, answer.status_code, problem)


def _short(error: Exception) -> str:
    reason = str(getattr(error.args[0], "reason", error) if error.args else error)
    # urllib3 puts its own object before the reason
    return reason.partition("): ")[2][:300] or reason[:300]
