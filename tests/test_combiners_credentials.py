"""A combiner on another host: three addresses, credentials of its own for each, a pepper; and no right beyond that."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis
from django.conf import settings
from django.db import connection

from clients_app.models import Combiner
from federation.events.models import Event, Telemetry
from federation.models.models import Metric
from federation.sessions.models import Assignment, CombinerShare
from tests.fedn_wire import FednWire, enrolment, registered
from tests.rig import ROOT, Child, Rig
from tests.rounds.rows import assert_same, mean, update
from tests.scaleout_wire import ScaleoutWire, enrolled
from tests.wire_client import ACCEPTED, WireClient, wire

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.postgres,
    pytest.mark.usefixtures("worker"),
]
GRANTS = ROOT / "deploy" / "combiner_grants.sql"
ROLE = "studio_combiner"


def with_user(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    host = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    return urlunsplit((parts.scheme, f"{user}:{password}@{host}", parts.path, parts.query, ""))


def database_url() -> str:
    found = connection.settings_dict
    return (
        f"postgres://{found['USER']}@{found['HOST'] or '127.0.0.1'}:{found['PORT'] or 5432}/{found['NAME']}"
    )


@dataclass(frozen=True)
class Credentials:
    database: str
    redis: str


@pytest.fixture
def credentials(redis_url: str) -> Iterator[Credentials]:
    """A role with the grants of `deploy/combiner_grants.sql`, and a Redis user as docs/combiners.md makes one."""
    role, password = f"{ROLE}_{secrets.token_hex(4)}", secrets.token_hex(16)
    with connection.cursor() as cursor:
        cursor.execute(f"create role {role} login password '{password}'")
        cursor.execute(GRANTS.read_text().replace(ROLE, role))
    rules = next(
        line.split(" on >… ")[1]
        for line in (ROOT / "docs" / "combiners.md").read_text().splitlines()
        if line.strip().startswith("ACL SETUSER combiner")
    )
    hints = redis.Redis.from_url(redis_url)
    hints.execute_command("ACL", "SETUSER", role, "on", f">{password}", *rules.split())
    yield Credentials(with_user(database_url(), role, password), with_user(redis_url, role, password))
    hints.execute_command("ACL", "DELUSER", role)
    with connection.cursor() as cursor:
        cursor.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [role])
        cursor.execute(f"drop owned by {role}")
        cursor.execute(f"drop role {role}")


@pytest.fixture
def far(rig: Rig, credentials: Credentials) -> Iterator[Child]:
    """A combiner that knows nothing of the site but what the guide gives it; at the end nothing was denied to it."""
    child = far_combiner(rig, credentials)
    yield child
    child.stop()  # while its credentials still hold
    assert_nothing_denied(child)


def assert_nothing_denied(child: Child) -> None:
    said = child.log.read_text()
    for word in ("permission denied", "InsufficientPrivilege", "NOPERM", "loop_failed"):
        assert word not in said, said[-3000:]


def trains_attempt(site: WireClient, attempt: int, value: float) -> bool:
    """Its next task, if it is of that attempt of the round, is answered; others are let be."""
    task = site.next_task()
    if Assignment.objects.get(pk=task.assignment_id).round.attempt < attempt:
        return False
    return bool(site.upload(task, update(value)).status == ACCEPTED)


def far_combiner(rig: Rig, credentials: Credentials, spool: Path | None = None) -> Child:
    return rig.combiner(
        "far",
        spool=spool,
        DATABASE_URL=credentials.database,
        REDIS_URL=credentials.redis,
        STORAGE_URL=settings.STORAGE_URL,
        STUDIO_TOKEN_PEPPER_1=settings.TOKEN_PEPPERS[1],
        STUDIO_DATA=str(rig.folder / "far-data"),
    )


def test_it_runs_whole_rounds_for_our_own_clients(rig: Rig, far: Child) -> None:
    one, two = (rig.connect(far, rig.client(name)[1]) for name in ("one", "two"))
    session = rig.session(rounds=2, min_clients=2, validate=True)
    for number in (1, 2):
        for value, site in enumerate((one, two), start=1):
            task = site.next_task()
            assert (task.round, bool(site.arrays(task))) == (number, True)
            site.say(progress=wire.Progress(assignment_id=task.assignment_id, fraction=0.5))
            site.say(metrics=wire.Metrics(assignment_id=task.assignment_id, values={"loss": 0.5}, step=1))
            site.say(telemetry=wire.Telemetry(values={"memory_bytes": 1e6}))
            metadata = {"num_examples": value, "lr": 0.1}
            assert site.upload(task, update(value), num_examples=value, metadata=metadata).status == ACCEPTED
        for site in (one, two):
            assert site.validate(site.next_task("validate"), accuracy=0.9).status == "accepted"
    rig.until_session(session, "finished")
    assert_same(rig.arrays_of(session.current_model), mean([(update(1), 1), (update(2), 2)]))
    rig.wait_until(lambda: Telemetry.objects.exists() and Metric.objects.filter(name="loss").exists())
    assert Event.objects.filter(kind="client.connected").count() == 2
    rig.wait_until(lambda: "cpu_percent" in Combiner.objects.get().load, 20, "its load")
    assert "hint.lost" not in far.log.read_text() and "hints.away" not in far.log.read_text()


def test_it_runs_rounds_of_every_mode(rig: Rig, far: Child) -> None:
    """Collected updates, fixed order, guided choice, and rounds that the acceptance itself closes and opens."""
    one, two = (rig.connect(far, rig.client(name)[1]) for name in ("one", "two"))
    modes = (
        {"aggregator": "fedmedian"},
        {"deterministic": True},
        {"selection": {"strategy": "guided"}, "requested_clients": 2},
        {"asynchronous": {"buffer_size": 2}},
    )
    for mode in modes:
        session = rig.session(rounds=2, min_clients=2, **mode)
        for _ in range(2):
            for value, site in enumerate((one, two), start=1):
                task = site.next_task()
                metadata = {"num_examples": 1, "loss": 0.5}
                assert site.upload(task, update(value), metadata=metadata).status == ACCEPTED, mode
        rig.until_session(session, "finished")


def test_it_says_what_failed_owns_up_to_a_lost_disk_and_takes_its_name_over(
    rig: Rig, far: Child, credentials: Credentials
) -> None:
    tokens = [rig.client(name)[1] for name in ("one", "two")]
    one, two = (rig.connect(far, token) for token in tokens)
    session = rig.session(min_clients=2, max_failed_rounds=3, round_timeout_s=300)
    assert one.upload(one.next_task(), update(9)).status == ACCEPTED
    held = two.next_task()

    again = far_combiner(rig, credentials, spool=rig.folder / "another-disk")
    assert far.process.wait(30) != 0  # a newer one of its name runs
    assert CombinerShare.objects.get(round__session=session).status == "abandoned"
    one, two = (rig.connect(again, token, holds=(held.assignment_id,)) for token in tokens)
    one.next_task()  # what was lost is trained again
    assert two.fail(held).status == "failed"  # the round cannot succeed any more: another attempt
    for value, site in ((1, one), (3, two)):
        while not trains_attempt(site, 2, value):  # no task within 20 s is a failure
            pass
    rig.until_session(session, "finished")
    assert_same(rig.arrays_of(session.current_model), update(2))
    again.stop()
    assert_nothing_denied(again)


def test_it_serves_published_clients(rig: Rig, far: Child) -> None:
    token = enrolment(rig)[0]
    fedn = FednWire(far.address, registered(token, "fedn-site").pk).open()
    client, tickets = enrolled(token, "scaleout-site")
    scaleout = ScaleoutWire(far.address, client.pk, tickets.access)
    try:
        scaleout.poll()
        session = rig.session(min_clients=2)
        assert fedn.train([update(2)["w"], update(2)["b"]], examples=1) == "accepted"
        scaleout.train([update(4)["w"], update(4)["b"]], examples=1)
        rig.until_session(session, "finished")
        assert rig.arrays_of(session.current_model)["w"].mean() == 3
    finally:
        fedn.close()


def test_it_may_not_read_passwords_or_change_who_may_do_what(credentials: Credentials, rig: Rig) -> None:
    forbidden = (
        "select password from projects_user",
        "update projects_user set is_superuser = true",
        "update projects_membership set role = 'owner'",
        "delete from projects_project",
        "insert into projects_auditevent (actor, verb, target, data, at) values ('x', 'y', '', '{}', now())",
        "update tokens_token set digest = ''",
        "update federation_models_model set key = ''",
        "select 1 from django_session",
        "create table mine (n integer)",
        "delete from federation_sessions_session",
    )
    with psycopg.connect(credentials.database, autocommit=True) as far:
        for statement in forbidden:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                far.execute(statement)
        assert far.execute("select count(*) from tokens_token").fetchone()
