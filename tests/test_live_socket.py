"""The live socket of a project, against a real web process and a real Redis."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from channels.layers import get_channel_layer
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.test import Client as Browser
from websockets.exceptions import ConnectionClosed

from federation.events.models import Event
from federation.events.origin import is_own_origin
from federation.events.services import publish
from foundation.hints import live_group
from projects.models import Membership, Project, User
from projects.tokens.services import revoke_token
from projects.tokens.verify import verify
from tests.cast import ClientToken, TokenFor, actor
from tests.live_web import Socket, Web, cookie_of, socket
from tests.services import valkey
from tests.services.environment import free_port

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.once]


@pytest.fixture(scope="module")
def running_web(django_db_setup: None) -> Iterator[Web]:
    server = Web()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def web(running_web: Web) -> Web:
    if running_web.process is None:
        running_web.start()
    return running_web


def tell(project: Project, number: int = 1, kind: str = "round.finished") -> int:
    return publish(project_id=project.pk, kind=kind, message=f"Round {number}", round_number=number).pk


def hear(page: Socket, *ids: int, timeout: float = 10.0) -> list[int]:
    """The ids heard until all of `ids` came."""
    heard = page.events(lambda them: set(ids) <= {event["id"] for event in them}, timeout)
    return [event["id"] for event in heard]


async def push_noise(project: Project, after: int) -> None:
    """More than the socket's backlog and the kernel's buffers hold together."""
    layer = get_channel_layer()
    padding = base64.b64encode(os.urandom(12_000)).decode()  # sockets compress
    for number in range(4000):
        event = {"id": after + 1 + number, "kind": "noise", "data": padding[number % 100 :]}
        await layer.group_send(live_group(str(project.pk)), {"type": "live.event", "event": event})


def test_a_page_hears_what_it_missed_and_then_each_event_within_two_seconds(
    web: Web, viewer: User, project: Project
) -> None:
    missed = [tell(project, number) for number in range(3)]
    with socket(web, project.slug, cookie=cookie_of(viewer)) as page:
        assert hear(page, *missed) == missed
        for number in range(3):
            start = time.monotonic()
            fresh = tell(project, number)
            assert hear(page, fresh) == [fresh]
            assert time.monotonic() - start < 2


def test_a_live_event_is_the_same_object_as_over_rest(web: Web, viewer: User, project: Project) -> None:
    with socket(web, project.slug, cookie=cookie_of(viewer)) as page:
        tell(project, 7)
        (event,) = page.events(bool)
    assert set(event) == {
        "id",
        "at",
        "level",
        "kind",
        "message",
        "session",
        "round",
        "client",
        "combiner",
        "data",
    }
    assert (event["kind"], event["message"], event["round"]) == ("round.finished", "Round 7", 7)


def test_five_events_that_passed_while_the_web_process_was_dead_each_come_once(
    web: Web, viewer: User, project: Project
) -> None:
    cookie = cookie_of(viewer)
    with socket(web, project.slug, cookie=cookie) as page:
        first = tell(project)
        hear(page, first)
        web.kill()
        assert page.closed_with() == 1006
    passed = [tell(project, number) for number in range(5)]
    web.start()
    with socket(web, project.slug, after=first, cookie=cookie) as page:
        heard = hear(page, *passed)
        assert heard == sorted(heard)
        assert [heard.count(number) for number in passed] == [1] * 5
        late = tell(project)
        assert hear(page, late) == [late]


def test_an_event_that_committed_out_of_order_is_read_again(web: Web, viewer: User, project: Project) -> None:
    early, late = tell(project, 1), tell(project, 2)
    with socket(web, project.slug, after=late, cookie=cookie_of(viewer)) as page:
        assert hear(page, early, late) == [early, late]


def test_an_event_whose_push_was_lost_comes_with_the_next_look(
    web: Web, viewer: User, project: Project
) -> None:
    with socket(web, project.slug, cookie=cookie_of(viewer)) as page:
        hear(page, tell(project))
        unpushed = Event.objects.create(project=project, kind="round.finished", message="silent").pk
        assert hear(page, unpushed) == [unpushed]


def test_another_projects_events_are_not_heard(
    web: Web, viewer: User, project: Project, other_project: Project
) -> None:
    with socket(web, project.slug, cookie=cookie_of(viewer)) as page:
        hear(page, tell(project))
        tell(other_project)
        assert page.quiet_for(0.5)


def test_nobody_a_stranger_and_an_unknown_project_are_closed_with_their_codes(
    web: Web, stranger: User, viewer: User, project: Project
) -> None:
    for cookie, slug, code in (
        ("", project.slug, 4401),
        ("sessionid=nonsense", project.slug, 4401),
        (cookie_of(stranger), project.slug, 4404),
        (cookie_of(viewer), "no-such", 4404),
    ):
        with socket(web, slug, cookie=cookie) as page:
            assert page.closed_with() == code


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "null", None])
def test_a_page_of_a_foreign_origin_is_closed(
    origin: str | None, web: Web, viewer: User, project: Project
) -> None:
    tell(project)
    with socket(web, project.slug, cookie=cookie_of(viewer), origin=origin) as page:
        assert page.closed_with() == 4403


def test_a_token_works_in_the_header_and_never_in_the_address(
    web: Web, viewer: User, project: Project, user_token: TokenFor, client_token: ClientToken
) -> None:
    secret = user_token(viewer)
    event = tell(project)
    with socket(web, project.slug, token=secret) as script:
        assert hear(script, event) == [event]
    with socket(web, project.slug, query=f"&token={secret}") as page:
        assert page.closed_with() == 4401
    with socket(web, project.slug, token="stu_0000000000000000_wrong") as script:
        assert script.closed_with() == 4401
    # a bad token is not made good by a good cookie
    with socket(web, project.slug, token="nonsense", cookie=cookie_of(viewer)) as script:
        assert script.closed_with() == 4401
    _client, clients = client_token(project)
    with socket(web, project.slug, token=clients) as script:
        assert script.closed_with() == 4404


def test_a_member_who_is_removed_stops_hearing(web: Web, member: User, project: Project) -> None:
    with socket(web, project.slug, cookie=cookie_of(member)) as page:
        hear(page, tell(project))
        Membership.objects.get(user=member).delete()
        assert page.closed_with() == 4404


def test_who_logs_out_stops_hearing(web: Web, member: User, project: Project) -> None:
    browser = Browser()
    browser.force_login(member, backend="django.contrib.auth.backends.ModelBackend")
    cookie = f"sessionid={browser.cookies['sessionid'].value}"
    with socket(web, project.slug, cookie=cookie) as page:
        hear(page, tell(project))
        browser.logout()
        assert page.closed_with() == 4401


def test_a_revoked_token_stops_hearing(
    web: Web, member: User, project: Project, user_token: TokenFor
) -> None:
    secret = user_token(member)
    with socket(web, project.slug, token=secret) as script:
        hear(script, tell(project))
        revoke_token(actor=actor(member), token=verify(secret))
        assert script.closed_with() == 4401


def test_a_browser_that_does_not_read_is_cut_off(
    web: Web, viewer: User, project: Project, redis_url: str, wait_until: Callable[..., object]
) -> None:
    group = f"studio-live__group__{live_group(str(project.pk))}"
    with (
        redis.Redis.from_url(redis_url) as hub,
        socket(web, project.slug, cookie=cookie_of(viewer), receive_buffer_bytes=1 << 16) as page,
    ):
        first = tell(project)
        hear(page, first)
        assert hub.pubsub_numsub(group)[0][1] == 1
        asyncio.run(push_noise(project, first))
        wait_until(lambda: hub.pubsub_numsub(group)[0][1] == 0, 30, "the server to stop listening for it")
        assert page.closed_with(timeout=30) == 4408


def test_after_redis_died_and_came_back_pages_hear_within_two_seconds_again(
    viewer: User, project: Project, tmp_path: Path
) -> None:
    address = f"redis://:secret@127.0.0.1:{free_port()}/0"
    hub = valkey.start(address, tmp_path / "valkey.log")
    web = Web(REDIS_URL=address)
    try:
        web.start()
        cookie = cookie_of(viewer)
        with socket(web, project.slug, cookie=cookie) as page:
            before = tell(project)  # pushed to the tests' own Redis: it comes with the next look
            hear(page, before)
            valkey.stop(hub)
            silent = tell(project)
            hub = valkey.start(address, tmp_path / "valkey.log")
            try:
                hear(page, silent)
            except ConnectionClosed:
                pass  # a page connects again
        with socket(web, project.slug, after=before, cookie=cookie) as page:
            hear(page, silent)
            asyncio.run(push_through(address, project, 10**6))
            start = time.monotonic()
            assert hear(page, 10**6) == [10**6]
            assert time.monotonic() - start < 2
    finally:
        web.kill()
        valkey.stop(hub)


async def push_through(address: str, project: Project, number: int) -> None:
    """A push as `foundation.hints` makes it, through that Redis."""
    layer = RedisPubSubChannelLayer(hosts=[{"address": address}], prefix="studio-live")
    event = {"id": number, "kind": "round.finished"}
    await layer.group_send(live_group(str(project.pk)), {"type": "live.event", "event": event})


@pytest.mark.parametrize(
    ("origin", "host", "secure", "own"),
    [
        ("http://studio.test:8000", "studio.test:8000", False, False),  # not an allowed host
        ("http://localhost:8000", "localhost:8000", False, True),
        ("http://localhost", "localhost", False, True),
        ("http://localhost:80", "localhost", False, True),
        ("https://localhost", "localhost", False, True),  # a proxy ended TLS
        ("https://localhost", "localhost:443", True, True),
        ("http://localhost:8001", "localhost:8000", False, False),
        ("http://[::1]:8000", "[::1]:8000", False, True),
        ("http://localhost.evil.example:8000", "localhost:8000", False, False),
        ("file://localhost:8000", "localhost:8000", False, False),
        ("http://localhost:x", "localhost:8000", False, False),
        ("", "localhost:8000", False, False),
    ],
)
def test_an_origin_is_own_by_host_and_port(origin: str, host: str, secure: bool, own: bool) -> None:
    assert is_own_origin(origin, host, secure=secure) is own


def test_a_trusted_origin_may_listen(settings: object) -> None:
    settings.CSRF_TRUSTED_ORIGINS = ["https://studio.example.org"]  # type: ignore[attr-defined]
    assert is_own_origin("https://studio.example.org", "10.0.0.5:8000", secure=False)
