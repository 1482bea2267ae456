"""Who hears what happens in a project, live."""

from __future__ import annotations

import pytest
from asgiref.testing import ApplicationCommunicator
from django.conf import settings
from rest_framework.test import APIClient

from federation.events.models import Event
from federation.events.routing import websocket_urlpatterns
from projects.models import Project
from studio.asgi import application
from tests.permissions.rules import CALLERS, OK
from tests.permissions.tables import SOCKETS


def test_every_socket_is_in_the_table() -> None:
    assert {str(entry.pattern) for entry in websocket_urlpatterns} == set(SOCKETS)


@pytest.fixture
def happened(project: Project) -> Event:
    """Something that whoever may listen is told at once."""
    return Event.objects.create(project=project, kind="test.happened", message="It happened.")


@pytest.mark.django_db(transaction=True)
async def test_the_live_socket_opens_for_the_projects_viewers_only(
    project: Project, other_project: Project, happened: Event, callers: dict[str, APIClient]
) -> None:
    expected = dict.fromkeys(CALLERS, 4404) | dict.fromkeys(
        ("owner", "admin", "member", "viewer", "read token of the owner", "project token"), OK
    )
    expected |= {"nobody": 4401, "expired token": 4401, "revoked token": 4401}
    heard: dict[str, int | str] = {}
    for who, http in callers.items():
        headers = [(b"origin", b"http://testserver"), (b"host", b"testserver")]
        if cookie := http.cookies.get(settings.SESSION_COOKIE_NAME):
            headers.append((b"cookie", f"{settings.SESSION_COOKIE_NAME}={cookie.value}".encode()))
        bearer = http._credentials.get("HTTP_AUTHORIZATION")  # type: ignore[attr-defined]
        if bearer:
            headers.append((b"authorization", bearer.encode()))
        path = f"/ws/projects/{project.slug}/events/"
        scope = {
            "type": "websocket",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"after=0",
            "headers": headers,
            "subprotocols": [],
            "client": ("127.0.0.1", 1),
        }
        socket = ApplicationCommunicator(application, scope)
        await socket.send_input({"type": "websocket.connect"})
        message = await socket.receive_output(timeout=10)
        while message["type"] == "websocket.accept":  # a close code is only seen on an open socket
            message = await socket.receive_output(timeout=10)
        heard[who] = OK if message["type"] == "websocket.send" else message["code"]
        await socket.send_input({"type": "websocket.disconnect", "code": 1000})
        await socket.wait(timeout=5)
    assert heard == expected
