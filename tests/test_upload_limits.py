"""A body that is too large is refused before it is read, whether it says its size or not."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings

from studio.body_limit import BodyLimit, limit_of
from tests.live_web import Web

MB = 1 << 20


@pytest.fixture(scope="module")
def web(django_db_setup: None) -> Iterator[Web]:
    server = Web()
    server.start()
    yield server
    server.kill()


def refused(answer: http.client.HTTPResponse) -> dict[str, Any]:
    assert answer.status == 413
    assert answer.headers["Content-Type"] == "application/problem+json"
    told: dict[str, Any] = json.loads(answer.read())
    assert told["code"] == "too_large"
    return told


@pytest.mark.django_db(transaction=True)
def test_a_body_that_says_it_is_too_large_is_refused_and_the_sender_reads_why(web: Web) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)
    connection.request("POST", "/api/v1/auth/token/", body=b"x" * (20 * MB))
    assert refused(connection.getresponse())["max_bytes"] == 6 * MB


@pytest.mark.django_db(transaction=True)
def test_a_body_without_a_size_is_refused_as_soon_as_it_has_grown_too_large(web: Web) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)
    endless = (b"x" * MB for _ in range(20))
    connection.request("POST", "/api/v1/auth/token/", body=endless, encode_chunked=True)
    refused(connection.getresponse())


@pytest.mark.django_db(transaction=True)
def test_a_body_within_the_limit_reaches_its_view(web: Web) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/api/v1/auth/token/", body=b"{}", headers=headers)
    assert connection.getresponse().status == 400
    connection.close()


async def test_nothing_is_read_of_a_body_that_says_it_is_too_large() -> None:
    sent: list[dict[str, Any]] = []
    reads = 0

    async def never(*_args: Any) -> None:
        raise AssertionError("the application was asked")

    async def receive() -> dict[str, Any]:
        nonlocal reads
        reads += 1
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        assert reads == 0 or sent, "it was read before it was refused"
        sent.append(dict(message))

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/projects/p/packages/",
        "headers": [(b"content-length", str(10**15).encode())],
    }
    await BodyLimit(never)(scope, receive, send)
    assert sent[0]["status"] == 413


def test_each_address_has_its_own_limit() -> None:
    with override_settings(MAX_PACKAGE_BYTES=20 * MB, MAX_MODEL_BYTES=40 * MB):
        assert limit_of("/api/v1/projects/p/packages/") == 21 * MB
        assert limit_of("/api/v1/projects/p/models/") == 41 * MB
        assert limit_of("/projects/p/sessions/new/") == 41 * MB
        assert limit_of("/api/v1/projects/p/clients/") == 6 * MB
        assert limit_of("/accounts/login/") == 6 * MB
