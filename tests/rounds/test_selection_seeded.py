"""A session can be replayed: draws depend on its seed and on nothing of the process that makes them; nor on how many
clients there are do the statements that they cost."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from clients_app.models import Client
from federation.sessions import engine
from federation.sessions.models import Session
from federation.sessions.selection.draw import dice, sample, seed_of
from tests.rig import ROOT
from tests.rounds.rows import Rows, again, ago, past_deadline

DRAW = """
import django
django.setup()
from federation.sessions.selection.draw import dice, sample
print(sample([f"c{n}" for n in range(50)], 6, dice(42, 3, 1)))
"""


def chosen(rows: Rows, session: Session) -> list[str]:
    return sorted(row.client.name for row in rows.round(session).assignments.all())


def crowd(rows: Rows, count: int, prefix: str = "c") -> list[Client]:
    """Clients that are online, written in one statement."""
    lease = rows.lease()
    return Client.objects.bulk_create(
        Client(
            project=rows.project,
            name=f"{prefix}{n:04}",
            combiner_id=lease.combiner_id,
            connection_epoch=lease.epoch,
            connection_id=str(uuid.uuid4()),
            attributes={"gpu": n % 2},
        )
        for n in range(count)
    )


def test_a_draw_is_the_same_in_every_process() -> None:
    """Whatever PYTHONHASHSEED is."""
    said = {
        subprocess.run(
            [sys.executable, "-c", DRAW],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hashed, "DJANGO_SETTINGS_MODULE": "studio.settings"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashed in ("0", "1", "977")
    }
    assert said == {f"{sample([f'c{n}' for n in range(50)], 6, dice(42, 3, 1))}\n"}


def test_two_sessions_of_one_seed_draw_the_same_clients_in_each_round(rows: Rows) -> None:
    crowd(rows, 30)
    one, two, other = (
        rows.running(requested_clients=5, selection={"seed": seed}, max_failed_rounds=9) for seed in (1, 1, 2)
    )
    told = []
    for session in (one, two, other):
        drawn = [chosen(rows, session)]
        for _ in range(3):
            past_deadline(rows, session)
            again(session)
            drawn.append(chosen(rows, session))
        told.append(drawn)
    assert told[0] == told[1] != told[2]
    assert len({tuple(draw) for draw in told[0]}) == 4  # each attempt draws anew


def test_the_seed_of_a_session_that_was_given_none_is_shown_and_repeats_it(rows: Rows) -> None:
    crowd(rows, 30)
    session = rows.running(requested_clients=5)
    seed = rows.round(session).plan["selection"]["seed"]
    assert seed == seed_of(session.pk, None)
    assert chosen(rows, rows.running(requested_clients=5, selection={"seed": seed})) == chosen(rows, session)


def statements(rows: Rows, count: int, **settings: Any) -> list[str]:
    """Those of the step that opens a second round, with as many clients in the first."""
    Client.objects.all().delete()
    crowd(rows, count)
    session = rows.running(max_failed_rounds=9, **settings)
    rows.round(session).assignments.update(status="failed", ended_at=ago(0), metadata={"loss": 1.0})
    Session.objects.filter(pk=session.pk).update(look_at=ago(1))
    with CaptureQueriesContext(connection) as queries:
        engine.advance(session.pk)
    assert rows.round(session).attempt == 2
    return [query["sql"][:60] for query in queries if "SAVEPOINT" not in query["sql"]]


def inserts_aside(found: list[str]) -> list[str]:
    """SQLite takes so many variables a statement, so that a bulk insert is several of them."""
    return [sql for sql in found if not sql.startswith("INSERT")]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"requested_clients": 8},
        {"selection": {"where": "gpu<2", "max_times": 5, "fraction": 0.9}},
        {"selection": {"strategy": "poisson", "fraction": 0.9}},
        {"selection": {"strategy": "guided", "fraction": 0.9}},
    ],
    ids=["all", "number", "where", "poisson", "guided"],
)
def test_opening_a_round_costs_as_many_statements_for_two_hundred_clients_as_for_ten(
    rows: Rows, settings: dict[str, Any]
) -> None:
    few, many = statements(rows, 10, **settings), statements(rows, 200, **settings)
    assert inserts_aside(few) == inserts_aside(many)
    if connection.vendor == "postgresql":
        assert few == many
    else:
        assert len(many) - len(few) < 20
