"""Combiners page, Dashboard and REST: each combiner's clients, how busy it is, and its part of the running round."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from clients_app import presence
from clients_app.models import Client, Combiner
from clients_app.services import drain_combiner
from federation.combiner.load import LoadMeter, Traffic, rss_bytes
from projects.actors import OPERATOR
from projects.models import Project, User
from tests.cast import ApiFor
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.rounds.rows import Rows

pytestmark = pytest.mark.django_db
LOAD = {
    "clients": 900, "cpu_percent": 37.5, "rss_bytes": 310_000_000, "bytes_in_s": 1_500_000, "bytes_out_s": 24_000_000,
    "uploads": 3, "queue": 12,
}  # fmt: skip


@pytest.fixture
def rows(project: Project, owner: User, tmp_path: Any, wait_until: Any) -> Rows:
    return Rows(project, owner, tmp_path, wait_until)


@pytest.fixture
def shown(project: Project, viewer: User) -> Callable[[str], str]:
    """`shown("combiners")`: that page's text, with all white space made one blank."""
    browser = Browser()
    browser.force_login(viewer, backend="django.contrib.auth.backends.ModelBackend")
    return lambda page: " ".join(
        browser.get(reverse(page, args=[project.slug])).content.decode().replace("\xa0", " ").split()
    )


def training(rows: Rows) -> None:
    """A round of three clients: two answered, by c1 with 30 examples and c2 with 10; the third is on c2."""
    one, two = rows.lease("c1"), rows.lease("c2")
    presence.renew_lease(combiner_id=one.combiner_id, epoch=one.epoch, load=LOAD)
    (a,), (b, _c) = rows.online(one, "a"), rows.online(two, "b", "c")
    session = rows.running(min_clients=3)
    rows.accept(one, rows.task(session, a), examples=30)
    rows.accept(two, rows.task(session, b), examples=10)


def test_the_share_of_the_running_round_is_shown_by_updates_and_by_weight(
    rows: Rows, api: ApiFor, project: Project, viewer: User, shown: Callable[[str], str]
) -> None:
    training(rows)
    found = api(viewer).get(f"/api/v1/projects/{project.slug}/combiners/").json()["results"]
    told = {row["name"]: row["shares"] for row in found}
    fields = ("session_name", "round", "asked", "accepted", "weight_percent", "state")
    assert {name: [tuple(share[field] for field in fields) for share in told[name]] for name in told} == {
        "c1": [("training", 1, 1, 1, 75.0, "open")],
        "c2": [("training", 1, 2, 1, 25.0, "open")],
    }
    for page in ("combiners", "project"):
        text = shown(page)
        assert "<strong>1 of 1</strong>, 75 % of the weight" in text, page
        assert "<strong>1 of 2</strong>, 25 % of the weight" in text, page


def test_without_an_open_round_there_is_no_share(
    rows: Rows, api: ApiFor, project: Project, viewer: User
) -> None:
    training(rows)
    rows.project.rounds.update(status="finished", ended_at=timezone.now())
    found = api(viewer).get(f"/api/v1/projects/{project.slug}/combiners/").json()["results"]
    assert [row["shares"] for row in found] == [[], []]


def test_the_share_of_another_projects_round_is_not_shown(
    rows: Rows, api: ApiFor, other_project: Project, stranger: User
) -> None:
    training(rows)
    found = api(stranger).get(f"/api/v1/projects/{other_project.slug}/combiners/").json()["results"]
    assert [(row["active_clients"], row["shares"]) for row in found] == [(0, []), (0, [])]


def test_the_load_is_that_of_the_process_and_says_nothing_of_other_projects(
    rows: Rows, api: ApiFor, project: Project, viewer: User, shown: Callable[[str], str]
) -> None:
    training(rows)
    one, two = api(viewer).get(f"/api/v1/projects/{project.slug}/combiners/").json()["results"]
    assert one["load"] == {key: value for key, value in LOAD.items() if key != "clients"}
    assert two["load"] == {}  # its first renewal is to come
    text = shown("combiners")
    assert "<strong>38 %</strong> of a core<br> <strong>310.0 MB</strong> memory" in text
    assert "in 1.5 MB/s, out 24.0 MB/s" in text and "3 uploads, 12 in line" in text
    assert "38 % of a core<br>310.0 MB" in shown("project")
    assert "900" not in re.sub(r"<[^>]*>", " ", text)  # in a tag it may be of some row's id


def test_each_state_of_a_combiner_is_a_word(rows: Rows, shown: Callable[[str], str]) -> None:
    for name in ("up-1", "draining-1", "stopped-1", "silent-1"):
        lease = rows.lease(name)
        if name == "stopped-1":
            presence.end_lease(combiner_id=lease.combiner_id, epoch=lease.epoch)
        if name == "silent-1":
            rows.lease_out(lease, 100)
            presence.note_silent_combiners()
    drain_combiner("draining-1", actor=OPERATOR)
    for page in ("combiners", "project"):
        text = shown(page)
        for state in ("up", "draining", "stopped", "silent"):
            after = text.split(f"{state}-1", 1)[1]
            assert f">{state}</span>" in after.split("</tr>", 1)[0], (page, state)


@pytest.mark.parametrize("page", ["combiners", "project"])
def test_a_page_costs_the_same_queries_for_two_combiners_and_for_forty(
    page: str, rows: Rows, project: Project, viewer: User
) -> None:
    training(rows)
    browser = Browser()
    browser.force_login(viewer, backend="django.contrib.auth.backends.ModelBackend")
    url = reverse(page, args=[project.slug])
    with CaptureQueriesContext(connection) as few:
        assert browser.get(url).status_code == 200
    later = timezone.now() + dt.timedelta(hours=1)
    many = Combiner.objects.bulk_create(
        Combiner(name=f"more-{n}", epoch=1, lease_until=later, load=LOAD, labels={"n": n}) for n in range(40)
    )
    Client.objects.bulk_create(
        Client(project=project, name=f"m{n}", combiner=many[n % 40], connection_epoch=1, connection_id="x")
        for n in range(200)
    )
    with CaptureQueriesContext(connection) as queries:
        text = browser.get(url).content.decode()
    assert "more-39" in text
    assert len(queries) == len(few)


def test_the_directory_costs_the_same_queries_for_two_combiners_and_for_forty(
    rows: Rows, api: ApiFor, project: Project, client_token: Any
) -> None:
    _client, token = client_token(project)
    rows.lease("c1"), rows.lease("c2")
    http = api(token)
    http.get("/api/v1/client/")  # the first use of a token is noted
    cache.clear()  # clients are counted for the first of those that come within a second
    with CaptureQueriesContext(connection) as few:
        assert len(http.get("/api/v1/client/").json()["combiners"]) == 2
    later = timezone.now() + dt.timedelta(hours=1)
    Combiner.objects.bulk_create(Combiner(name=f"m-{n}", epoch=1, lease_until=later) for n in range(40))
    cache.clear()
    with CaptureQueriesContext(connection) as queries:
        assert len(http.get("/api/v1/client/").json()["combiners"]) == 42
    assert len(queries) == len(few)


def test_a_running_combiner_writes_its_load_with_its_lease(rig: Rig, combiner: CombinerHere) -> None:
    wire = rig.connect(combiner, rig.client()[1])

    def load() -> dict[str, Any]:
        found: dict[str, Any] = Combiner.objects.get().load
        return found

    rig.wait_until(lambda: load().get("clients") == 1, 20, "the load with one client")
    assert set(load()) == set(LOAD)
    assert 10_000_000 < load()["rss_bytes"] < 10_000_000_000 and load()["cpu_percent"] >= 0
    wire.close()


def test_the_meter_tells_rates_since_it_was_read_last(monkeypatch: pytest.MonkeyPatch) -> None:
    from federation.combiner import load as module

    now = {"at": 100.0, "cpu": 5.0}
    monkeypatch.setattr(module.time, "monotonic", lambda: now["at"])
    monkeypatch.setattr(module.time, "process_time", lambda: now["cpu"])
    traffic = Traffic()
    meter = LoadMeter(traffic)
    traffic.received_bytes, traffic.sent_bytes = 1000, 4000
    now |= {"at": 102.0, "cpu": 6.0}
    first = meter.read(clients=2, uploads=1, queue=0)
    assert (first["cpu_percent"], first["bytes_in_s"], first["bytes_out_s"]) == (50.0, 500, 2000)
    now["at"] = 104.0
    assert meter.read(clients=2, uploads=1, queue=0) == {
        **first, "cpu_percent": 0.0, "bytes_in_s": 0, "bytes_out_s": 0, "rss_bytes": pytest.approx(rss_bytes(), rel=0.5)
    }  # fmt: skip


def test_a_lost_share_that_was_begun_again_shows_its_newest_state(
    rows: Rows, api: ApiFor, viewer: User
) -> None:
    one = rows.lease("c1")
    rows.online(one, "a")
    session = rows.running(min_clients=1)
    round_ = rows.round(session)
    for status in ("abandoned", "open"):
        round_.shares.create(project=rows.project, combiner_id=one.combiner_id, status=status)
    (row,) = api(viewer).get(f"/api/v1/projects/{rows.project.slug}/combiners/").json()["results"]
    assert [(share["state"], share["asked"]) for share in row["shares"]] == [("open", 1)]
