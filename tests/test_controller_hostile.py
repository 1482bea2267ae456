"""Whatever is sent to any address of the published clients' APIs: a message, no traceback, and no half-written row."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.cache import cache
from django.test import Client as Http
from django.urls import URLPattern, URLResolver, get_resolver
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from foundation import storage
from projects.models import Project, User
from projects.tokens.choices import TokenKind
from tests.archives import tar_bytes
from tests.controller_cast import Controller, secret_of
from tests.pages_world import World

ROOMS = ("controller:", "controller-root:", "reducer:", "fedn:")


def addresses(resolver: URLResolver, prefix: str = "", space: str = "") -> Iterator[tuple[str, str]]:
    """Every named address of these rooms, as a pattern in which only <…> is to be filled."""
    for entry in resolver.url_patterns:
        here = prefix + str(entry.pattern).replace("^", "").replace("/?$", "").replace("$", "")
        if isinstance(entry, URLResolver):
            yield from addresses(entry, here, f"{space}{entry.namespace}:" if entry.namespace else space)
        elif isinstance(entry, URLPattern) and space.startswith(ROOMS):
            yield f"{space}{entry.name}", "/" + re.sub(r"\(\?P<(\w+)>\[[^\]]*\]\+\)", r"<\1>", here)


HTTP = Http(raise_request_exception=False)  # made once: each loads the middleware anew
ADDRESSES = sorted(set(addresses(get_resolver())))

words = st.sampled_from(
    [
        *[
            "",
            "0",
            "-1",
            "count",
            "list",
            "active",
            "numpyhelper",
            "99999999999999999999",
            "..",
            "None",
            "true",
            "a,b",
            "{id}",
            "{session}",
        ],
        *["Terminated", "online", "é", "\x00", "%00", "' OR 1=1 --", "1e400", "NaN"],
        "x" * 300,
    ]
)
names = st.sampled_from(
    [
        "session_id",
        "sessionId",
        "session_config",
        "model_id",
        "rounds",
        "round_timeout",
        "client_id",
        "client_ids",
        "name",
        "package",
        "helper",
        "status",
        "key",
        "value",
        "sender",
        "sender.name",
        "prediction_id",
        "username",
        "password",
        "slug",
        "project_slug",
        "file_token",
        "package_id",
        "type",
        "log_level",
        "round_config.session_id",
        "timestamp",
        "data",
        "x",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
settings_of_session = st.sampled_from(
    [
        "aggregator",
        "aggregator_kwargs",
        "round_timeout",
        "buffer_size",
        "model_id",
        "validate",
        "rounds",
        "clients_required",
        "requested_clients",
        "helper_type",
        "server_functions",
        "client_settings",
    ]
)
configs = st.fixed_dictionaries({"session_config": st.dictionaries(settings_of_session, values, max_size=6)})
objects = st.dictionaries(names, values, max_size=5)
FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nzz\r\n--x--'
bodies = st.one_of(
    st.tuples(
        st.just("application/json"), (objects | configs | values).map(lambda one: json.dumps(one).encode())
    ),
    st.tuples(st.just("application/json"), st.binary(max_size=60)),
    st.tuples(
        st.sampled_from(
            [
                "application/x-www-form-urlencoded",
                "multipart/form-data; boundary=x",
                "multipart/form-data",
                "text/plain",
                "",
                "application/json; charset=nonsense",
            ]
        ),
        st.binary(max_size=80) | st.just(FORM),
    ),
)
headers = st.dictionaries(
    st.sampled_from(["X-Limit", "X-Skip", "X-Sort-Key", "X-Sort-Order", "X-Reverse", "X-Project-Slug"]),
    words.filter(lambda word: word.isascii() and word.isprintable()), max_size=3,
)  # fmt: skip


def rows() -> dict[str, int]:
    """How many there are of everything that a request might leave behind; the log and the audit are no halves."""
    models = [
        model
        for model in apps.get_models()
        if model.__module__.startswith(("projects", "clients_app", "federation"))
    ]
    return {model.__name__: model._default_manager.count() for model in models}


def test_the_addresses_are_found() -> None:
    assert len(ADDRESSES) > 120
    assert not [path for _name, path in ADDRESSES if re.search(r"[()\[\]?]", path)], (
        "something is not filled in"
    )


@pytest.fixture
def callers(furnished: World, project: Project, owner: User, viewer: User, tmp_path: Path) -> list[str]:
    """Tokens of a project, a person who may only look, a device, and none at all; the package's file exists."""
    (tmp_path / "package.tgz").write_bytes(tar_bytes())
    storage.put(furnished.package.key, tmp_path / "package.tgz")
    return [
        secret_of(owner, project=project), secret_of(owner, TokenKind.USER), secret_of(viewer, TokenKind.USER),
        secret_of(owner, TokenKind.ENROLMENT, project=project), "",
    ]  # fmt: skip


@pytest.mark.postgres  # the stricter of the two: it takes no NUL, and checks what a column can hold
@pytest.mark.parametrize("part", range(6))
@settings(
    max_examples=150, deadline=None, derandomize=True, phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(data=st.data())
def test_nothing_that_is_sent_breaks_it(furnished: World, callers: list[str], part: int, data: Any) -> None:
    name, path = data.draw(st.sampled_from(ADDRESSES[part::6]))
    known = [
        str(furnished.client.pk),
        str(furnished.session.pk),
        str(furnished.model.pk),
        str(furnished.package.pk),
        "c1",
        "1",
    ]
    path = path.replace(
        "<slug>", data.draw(st.sampled_from([furnished.project.slug, furnished.project.slug, "nowhere"]))
    )
    path = path.replace(
        "<pk>", data.draw(st.sampled_from(known) | words.map(lambda word: word.replace("/", "") or "0"))
    )
    query = data.draw(st.dictionaries(names, words, max_size=2))
    method = data.draw(
        st.sampled_from(["GET", "GET", "POST", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
    )
    kind, body = data.draw(bodies)
    body = body.replace(b"{session}", known[1].encode()).replace(b"{id}", known[2].encode())
    token = data.draw(st.sampled_from(callers))
    sent = {f"HTTP_{header.upper().replace('-', '_')}": text for header, text in data.draw(headers).items()}
    if token:
        sent["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    cache.clear()
    before = rows()
    answer = HTTP.generic(method, path, b"" if method == "GET" else body, kind, query_params=query, **sent)
    assert answer.status_code < 500, (name, method, path, query, body, getattr(answer, "content", b""))
    if answer.status_code >= 400:
        assert rows() == before, (name, method, path, body)
        # what leads nowhere below /api/ is told so as our own API does
        assert method == "HEAD" or {"message", "detail"} & set(answer.json()), (name, method, path)


@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_json_is_refused(controller: Controller, depth: int) -> None:
    body = b'{"session_config":' * 1 + b"[" * depth + b"]" * depth + b"}"
    for path in ("sessions/", "clients/list", "attributes/current", "sessions/start"):
        answer = HTTP.post(
            f"/api/v1/{path}",
            body,
            content_type="application/json",
            headers={"Authorization": f"Bearer {controller.token}"},
        )
        assert answer.status_code == 400, path


def test_a_large_body_is_refused(controller: Controller, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    answer = controller("POST", "sessions/", {"name": "x" * 2000})
    assert (answer.status_code, bool(answer.json()["message"])) == (413, True)
    joined = controller("POST", "clients/add", {"name": "x" * 2000})
    assert joined.status_code == 400, "the one that FEDn's client survives"


@pytest.mark.parametrize("text", ["a\x00b", "\x00"])
def test_text_that_no_database_keeps_is_refused(controller: Controller, text: str) -> None:
    for path in ("sessions/", "clients/list", "clients/add", "attributes/"):
        answer = controller("POST", path, {"name": text, "key": text, "session_config": {}})
        assert (answer.status_code, "U+0000" in answer.json()["message"]) == (400, True), path
    as_form = controller("POST", "models/", {"name": text, "file": io.BytesIO(b"x")})
    assert (as_form.status_code, "U+0000" in as_form.json()["message"]) == (400, True)
