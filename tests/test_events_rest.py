"""The event log and telemetry: what is kept, in which order, and how it is narrowed."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from clients_app.models import Client
from federation.events.models import Event, Telemetry
from federation.events.services import TelemetrySample, publish, record_telemetry
from projects.models import Project, User
from tests.cast import ApiFor, ClientToken

pytestmark = pytest.mark.django_db
EVENTS = "/api/v1/projects/digits-1/events/"
TELEMETRY = "/api/v1/projects/digits-1/telemetry/"


def tell(project: Project, kind: str = "round.finished", message: str = "done", **more: Any) -> Event:
    return publish(project_id=project.pk, kind=kind, message=message, **more)


def kinds(api: ApiFor, user: User, **asked: Any) -> list[str]:
    answer = api(user).get(EVENTS, asked)
    assert answer.status_code == 200, answer.content
    return [row["kind"] for row in answer.json()["results"]]


def test_an_event_is_told_whole(api: ApiFor, viewer: User, project: Project) -> None:
    client = Client.objects.create(project=project, name="site-a")
    model = uuid.uuid4()
    event = tell(
        project, client_id=client.pk, round_number=3, level="warning", model=model, loss=float("nan")
    )
    (row,) = api(viewer).get(EVENTS).json()["results"]
    assert row == {
        "id": event.pk,
        "at": event.at.isoformat().replace("+00:00", "Z"),
        "level": "warning",
        "kind": "round.finished",
        "message": "done",
        "session": None,
        "round": 3,
        "client": str(client.pk),
        "combiner": None,
        "data": {"model": str(model), "loss": "NaN"},
    }


def test_a_long_message_is_cut_and_a_nul_is_left_out(project: Project) -> None:
    event = tell(project, message="a\x00b" + "x" * 2000)
    event.refresh_from_db()
    assert len(event.message) == 1000
    assert event.message.startswith("abx")
    assert event.message.endswith("…")


def test_events_are_filtered_by_level_kind_client_round_and_id(
    api: ApiFor, viewer: User, project: Project
) -> None:
    client = Client.objects.create(project=project, name="site-a")
    first = tell(project, "round.started", round_number=1)
    tell(project, "round.failed", level="error", round_number=2)
    tell(project, "rounding.off", level="debug")
    tell(project, "client.connected", level="warning", client_id=client.pk)
    assert kinds(api, viewer) == ["client.connected", "rounding.off", "round.failed", "round.started"]
    assert kinds(api, viewer, order="oldest", after=first.pk) == [
        "round.failed",
        "rounding.off",
        "client.connected",
    ]
    assert kinds(api, viewer, level="warning") == ["client.connected", "round.failed"]
    assert kinds(api, viewer, kind="round") == ["round.failed", "round.started"]
    assert kinds(api, viewer, kind="round.failed") == ["round.failed"]
    assert kinds(api, viewer, client=str(client.pk)) == ["client.connected"]
    assert kinds(api, viewer, round=2) == ["round.failed"]


@pytest.mark.parametrize(
    "asked", [{"order": "up"}, {"level": "loud"}, {"after": "x"}, {"session": "x"}, {"after": 2**70}]
)
def test_a_filter_that_means_nothing_is_refused(
    asked: dict[str, Any], api: ApiFor, viewer: User, project: Project
) -> None:
    assert api(viewer).get(EVENTS, asked).status_code == 400


def test_the_log_pages_in_both_directions_without_a_query_per_row(
    api: ApiFor, viewer: User, project: Project
) -> None:
    for number in range(30):
        tell(project, round_number=number)
    for order, want in (("newest", range(29, -1, -1)), ("oldest", range(30))):
        http = api(viewer)
        seen: list[int] = []
        address: str | None = f"{EVENTS}?order={order}&limit=7"
        while address:
            with CaptureQueriesContext(connection) as queries:
                page = http.get(address).json()
            assert len(queries) <= 8, [q["sql"][:90] for q in queries]
            seen += [row["round"] for row in page["results"]]
            address = page["next"]
        assert seen == list(want)


def test_only_ones_own_project_is_heard(
    api: ApiFor,
    stranger: User,
    viewer: User,
    project: Project,
    other_project: Project,
    client_token: ClientToken,
) -> None:
    tell(project)
    tell(other_project, "session.started")
    assert kinds(api, viewer) == ["round.finished"]
    assert api(stranger).get(EVENTS).status_code == 404
    assert api().get(EVENTS).status_code == 401
    _client, token = client_token(project)
    assert api(token).get(EVENTS).status_code == 403
    assert api(stranger).get(TELEMETRY).status_code == 404


@pytest.mark.django_db(transaction=True)
def test_an_event_of_a_transaction_that_fails_leaves_no_row(project: Project) -> None:
    with pytest.raises(RuntimeError), transaction.atomic():
        tell(project)
        raise RuntimeError
    assert not Event.objects.exists()


def test_telemetry_is_stored_in_one_statement_and_read_as_series(
    api: ApiFor, viewer: User, project: Project
) -> None:
    a, b = (Client.objects.create(project=project, name=name) for name in ("a", "b"))
    start = timezone.now().replace(microsecond=0)

    def sample(client: uuid.UUID, name: str, value: float, second: int = 0) -> TelemetrySample:
        return TelemetrySample(project.pk, client, start + dt.timedelta(seconds=second), name, value)

    rows = [sample(a.pk, "memory_bytes", 100 + n, n) for n in range(10)]
    rows += [
        sample(b.pk, "cpu", 0.5),
        sample(b.pk, "cpu", float("inf")),
        sample(uuid.uuid4(), "cpu", 1.0),
    ]
    with CaptureQueriesContext(connection) as queries:
        assert record_telemetry(rows) == 11
    assert len([q for q in queries if q["sql"].startswith("INSERT")]) == 1
    http = api(viewer)
    asked: dict[str, Any] = {"client": str(a.pk), "name": "memory_bytes", "limit": 3}
    series = http.get(TELEMETRY, asked).json()
    assert [row["value"] for row in series["results"]] == [109, 108, 107]
    since: dict[str, Any] = {"since": (start + dt.timedelta(seconds=8)).isoformat()}
    late = http.get(TELEMETRY, since).json()["results"]
    assert [row["value"] for row in late] == [109, 108]
    assert json.loads(json.dumps(series))["next"]
    assert Telemetry.objects.filter(client=b).count() == 1


def test_no_telemetry_is_fine(project: Project) -> None:
    assert record_telemetry([]) == 0
