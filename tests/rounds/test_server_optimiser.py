"""A session with a server optimiser: one step per round, from a state that lives as long as the session."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.db import connection
from django.utils import timezone

from clients_app.models import Client
from clients_app.presence import CombinerLease
from federation.aggregation.codecs import save_arrays
from federation.models.models import Model
from federation.sessions import committing, engine, reduction
from federation.sessions.models import Round, Session
from federation.sessions.services import continue_session
from federation.sessions.sweeping import sweep
from foundation import storage
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.rounds.rows import Rows, ago, assert_same, mean, update
from tests.rounds.test_deaths_worker import killed_at_statement
from tests.wire_client import ACCEPTED

pytestmark = pytest.mark.django_db

KWARGS = {"serveropt": "adam", "learning_rate": 0.1, "beta1": 0.9, "beta2": 0.5, "tau": 0.01}
FEDOPT: dict[str, Any] = {"aggregator": "fedopt", "aggregator_kwargs": KWARGS}


class Adam:
    """FedAdam of the paper on one number that starts at 0, with KWARGS."""

    def __init__(self) -> None:
        self.x, self.m, self.v = 0.0, 0.0, 0.01**2

    def step(self, average: float) -> float:
        g = average - self.x
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.5 * self.v + 0.5 * g * g
        self.x = float(np.float32(self.x + 0.1 * self.m / (np.sqrt(self.v) + 0.01)))
        return self.x


def files(top: str) -> set[str]:
    root = Path(storage.artifacts().path(top))
    return {f"{top}/{path.relative_to(root)}" for path in root.rglob("*") if path.is_file()}


def states() -> set[str]:
    return set(Session.objects.exclude(aggregator_state="").values_list("aggregator_state", flat=True))


def begin(
    rows: Rows, combiners: int = 1, **settings: Any
) -> tuple[Session, list[tuple[CombinerLease, Client]]]:
    """A running FedOpt session of two clients, shared by so many combiners."""
    leases = [rows.lease(f"c{n + 1}") for n in range(combiners)]
    homes = [leases[0], leases[-1]]
    clients = [(lease, rows.online(lease, name)[0]) for lease, name in zip(homes, "ab", strict=True)]
    return rows.running(min_clients=2, **(FEDOPT | settings)), clients


def train(rows: Rows, session: Session, clients: list[tuple[CombinerLease, Client]], *values: float) -> None:
    """Every client answers with its value and as many examples as its place; the round is left to be reduced."""
    for place, ((lease, client), value) in enumerate(zip(clients, values, strict=True)):
        rows.accept(lease, rows.task(session, client), value=value, examples=place + 1)
    for lease in {lease.combiner_id: lease for lease, _ in clients}.values():
        assert rows.finish_share(lease) == [True]


def play(rows: Rows, session: Session, clients: list[tuple[CombinerLease, Client]], *values: float) -> None:
    """A whole round."""
    train(rows, session, clients, *values)
    rows.reduce(session)
    engine.advance(session.pk)
    session.refresh_from_db()


def weighted(a: float, b: float) -> float:
    return (a + 2 * b) / 3


def test_a_lone_combiners_partial_is_not_the_model_but_where_the_step_goes(rows: Rows) -> None:
    """A round with one Share adopts the partial with plain averaging only: the optimiser's step is taken here."""
    session, clients = begin(rows)
    train(rows, session, clients, 1, 4)
    share = rows.share(session, clients[0][0])
    assert not share.is_model and share.partial_key.startswith("partials/")
    partial_key = share.partial_key
    with storage.local(partial_key) as path:
        assert path.stat().st_size > 15 * 8  # float64 throughout
    rows.reduce(session)
    session.refresh_from_db()
    assert_same(rows.arrays_of(session.current_model), update(Adam().step(3)))
    assert {entry["dtype"] for entry in session.current_model.layout} == {"F32"}
    assert partial_key not in files("partials")


@pytest.mark.parametrize("combiners", [1, 2])
def test_the_state_goes_from_round_to_round_and_two_combiners_equal_one(rows: Rows, combiners: int) -> None:
    """Model and optimiser state are written under the attempt's UUID and committed together."""
    session, clients = begin(rows, combiners, rounds=3)
    adam, before = Adam(), ""
    for values in ((1, 4), (2, 2), (-5, 7)):
        play(rows, session, clients, *values)
        assert_same(rows.arrays_of(session.current_model), update(adam.step(weighted(*values))))
        assert Path(session.aggregator_state).stem == Path(session.current_model.key).stem
        assert session.aggregator_state != before
        before = session.aggregator_state
        assert files(f"states/{session.project_id}") == {before}  # what an earlier round knew is gone
    assert session.status == "finished"


def test_a_continued_session_goes_on_with_its_state(rows: Rows) -> None:
    session, clients = begin(rows)
    adam = Adam()
    play(rows, session, clients, 1, 4)
    assert session.status == "finished"
    adam.step(3)
    session = continue_session(actor=rows.actor, session=session, rounds=1)
    engine.advance(session.pk)
    play(rows, session, clients, 3, 3)
    assert_same(rows.arrays_of(session.current_model), update(adam.step(3)))


def test_each_session_has_a_state_of_its_own(rows: Rows) -> None:
    for _ in range(2):
        session, clients = begin(rows)
        play(rows, session, clients, 1, 4)
        assert_same(rows.arrays_of(session.current_model), update(Adam().step(3)))
    assert len(states()) == 2 and files("states") >= states()


def test_a_round_that_fails_leaves_the_state_for_its_next_attempt(rows: Rows) -> None:
    session, clients = begin(rows, rounds=2)
    adam = Adam()
    play(rows, session, clients, 1, 4)
    adam.step(3)
    kept = session.aggregator_state
    train(rows, session, clients, 5, 5)
    share = rows.share(session, clients[0][0])
    storage.put(share.partial_key, huge(rows))
    rows.reduce(session)
    assert rows.round(session).status == "failed" and "not finite" in rows.round(session).reason
    engine.advance(session.pk)
    play(rows, session, clients, 2, 2)
    assert rows.round(session).attempt == 2 and session.aggregator_state != kept
    assert_same(rows.arrays_of(session.current_model), update(adam.step(2)))


def test_an_aggregator_that_the_server_no_longer_has_fails_the_round_by_name(rows: Rows) -> None:
    session, clients = begin(rows, max_failed_rounds=1)
    Session.objects.filter(pk=session.pk).update(config=session.config | {"aggregator": "median"})
    train(rows, session, clients, 1, 4)
    rows.reduce(session)
    engine.advance(session.pk)
    session.refresh_from_db()
    assert session.status == "failed" and "no aggregator called 'median'" in rows.round(session).reason


def huge(rows: Rows) -> Path:
    """A partial that no step can be taken to."""
    path = rows.folder / "huge"
    save_arrays({name: array.astype("f8") + 1e300 for name, array in update(1).items()}, path)
    return path


@pytest.mark.django_db(transaction=True)
def test_a_worker_killed_anywhere_in_reduce_takes_one_step_and_not_two(live_rows: Rows) -> None:
    """worker, any point of reduce: the tick runs it again; one model per round; no orphan after the sweep."""
    for number in range(1, 200):
        session, clients = begin(live_rows, rounds=2)
        adam = Adam()
        play(live_rows, session, clients, 1, 4)
        adam.step(3)
        train(live_rows, session, clients, 2, 5)
        round_ = live_rows.round(session)
        died = killed_at_statement(number, lambda: reduction.reduce_round(round_.pk))  # noqa: B023
        Round.objects.filter(pk=round_.pk).update(reduce_until=ago(1), reducing_at=ago(3))
        reduction.reduce_round(round_.pk)
        engine.advance(session.pk)
        session.refresh_from_db()
        assert session.status == "finished" and session.trail.count() == 2
        assert_same(live_rows.arrays_of(session.current_model), update(adam.step(4)))
        if not died:
            break
    assert number > 8
    sweep(timezone.now() + dt.timedelta(days=2))
    assert files("states") == states()
    assert {Path(key).stem for key in files("models")} == {
        Path(key).stem for key in Model.objects.values_list("key", flat=True)
    }


@pytest.mark.django_db(transaction=True)
def test_two_reductions_at_once_take_one_step_and_the_loser_removes_only_its_own(live_rows: Rows) -> None:
    """Every key it writes contains an attempt's UUID, so a loser can only delete its own."""
    session, clients = begin(live_rows, rounds=2)
    adam = Adam()
    play(live_rows, session, clients, 1, 4)
    adam.step(3)
    train(live_rows, session, clients, 2, 5)
    round_ = live_rows.round(session)
    gate = threading.Barrier(3)

    def run() -> None:
        try:
            gate.wait(10)
            reduction.reduce_round(round_.pk)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    engine.advance(session.pk)
    session.refresh_from_db()
    assert session.status == "finished"
    assert_same(live_rows.arrays_of(session.current_model), update(adam.step(4)))
    assert files(f"states/{session.project_id}") == {session.aggregator_state}


def test_who_lost_the_claim_while_it_reduced_leaves_the_winners_state(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """commit_round answers nothing: somebody else has the round. Both files of this attempt go, no other's."""
    session, clients = begin(rows, rounds=2)
    adam = Adam()
    play(rows, session, clients, 1, 4)
    adam.step(3)
    kept = {session.aggregator_state, session.current_model.key}
    train(rows, session, clients, 2, 5)
    round_ = rows.round(session)
    commit = committing.commit_round

    def too_late(**given: Any) -> Model | None:
        Round.objects.filter(pk=round_.pk).update(reduce_owner=uuid.uuid4())
        return commit(**given)

    with monkeypatch.context() as patched:
        patched.setattr(committing, "commit_round", too_late)
        reduction.reduce_round(round_.pk)
    assert kept <= files("states") | files("models")
    assert files(f"states/{session.project_id}") == {session.aggregator_state}
    Round.objects.filter(pk=round_.pk).update(reduce_until=ago(1))
    reduction.reduce_round(round_.pk)
    session.refresh_from_db()
    assert_same(rows.arrays_of(session.current_model), update(adam.step(4)))


def test_the_sweeper_keeps_the_states_that_sessions_name(rows: Rows) -> None:
    session, clients = begin(rows)
    play(rows, session, clients, 1, 4)
    orphan = f"states/{session.project_id}/{uuid.uuid4()}.safetensors"
    storage.put(orphan, huge(rows))
    assert orphan in sweep(timezone.now() + dt.timedelta(hours=25))
    assert files(f"states/{session.project_id}") == {session.aggregator_state}


@pytest.mark.django_db(transaction=True)
def test_real_combiners_train_a_session_with_a_server_optimiser(
    rig: Rig, combiner_here: Callable[..., CombinerHere], worker_here: WorkerHere
) -> None:
    """First one combiner alone has both clients, then each client its own: the same steps."""
    for combiners in (1, 2):
        here = [combiner_here(f"c{n}-of-{combiners}") for n in range(combiners)]
        wires = [
            rig.connect(here[n % combiners], rig.client(f"site-{n}-of-{combiners}")[1]) for n in range(2)
        ]
        session = rig.session(min_clients=2, rounds=2, **FEDOPT)
        adam = Adam()
        for values in ((1.0, 4.0), (3.0, 0.0)):
            for place, (wire, value) in enumerate(zip(wires, values, strict=True)):
                answer = wire.upload(wire.next_task(), update(value), num_examples=place + 1)
                assert answer.status == ACCEPTED
            flat = mean([(update(value), place + 1) for place, value in enumerate(values)])
            adam.step(float(flat["b"][0]))
        rig.until_session(session, "finished")
        assert session.rounds.latest("number").shares.count() == combiners
        assert_same(rig.arrays_of(session.current_model), update(adam.x))
        for wire in wires:
            wire.close()
