"""What an update counts: settled as it is accepted, kept in its row, and what its combiner folds by."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from clients_app.models import Client
from clients_app.presence import CombinerLease
from federation.sessions import assignments
from federation.sessions.models import Assignment, CombinerShare, Session
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.rounds.rows import Rows, again, assert_same, mean, update
from tests.wire_client import ACCEPTED, REJECTED

pytestmark = pytest.mark.django_db

AGGREGATOR: dict[str, Any] = {"aggregator": "normclip", "aggregator_kwargs": {"max_norm": 2.0}}


def two_accepted(
    rows: Rows, *said: dict[str, Any], **settings: Any
) -> tuple[Session, CombinerLease, list[Client]]:
    """A round with one combiner where each client sent what `said` says of its update."""
    lease = rows.lease()
    clients = rows.online(lease, *"abcdef"[: len(said)])
    session = rows.running(min_clients=len(said), **settings)
    for client, words in zip(clients, said, strict=True):
        assert rows.accept(lease, rows.task(session, client), **words)[0].accepted
    session.refresh_from_db()
    return session, lease, clients


def weights(session: Session) -> list[float | None]:
    rows = Assignment.objects.filter(round__session=session).order_by("client__name")
    return list(rows.values_list("weight", flat=True))


def test_an_update_counts_by_its_examples_unless_the_aggregator_says_otherwise(rows: Rows) -> None:
    session, _, _ = two_accepted(rows, {"examples": 3}, {"examples": 5})
    assert weights(session) == [3.0, 5.0]


def test_the_aggregators_weight_is_kept_in_the_row_and_summed_in_the_share(rows: Rows) -> None:
    """Four examples that changed twice too much count as two; the model's metadata tells examples all the same."""
    session, lease, _ = two_accepted(
        rows, {"value": 1, "examples": 4, "delta_norm": 4.0}, {"value": 3, "examples": 2, "delta_norm": 1.0},
        **AGGREGATOR,
    )  # fmt: skip
    assert weights(session) == [2.0, 2.0]
    rows.finish_share(lease)
    share = rows.share(session, lease)
    assert share.weight == 4.0 and share.updates == 2
    rows.reduce(session)
    assert again(session).current_model.metadata == {"updates": 2, "num_examples": 6.0}
    assert rows.round(session).reason == "made of 2 updates of 6 examples"
    assert rows.events(session, "round.finished") == [
        f"Round 1 of {session.name} finished: made of 2 updates of 6 examples."
    ]
    # x + sum n f (x_i - x) / sum n, from a model of zeros
    wanted = (4 * 0.5 * 1 + 2 * 1 * 3) / 6
    assert_same(rows.arrays_of(session.current_model), update(wanted))


def test_the_weight_settled_at_acceptance_is_the_one_folded(rows: Rows) -> None:
    _, lease, _ = two_accepted(
        rows, {"value": 1, "examples": 4, "delta_norm": 4.0}, {"value": 3, "examples": 2, "delta_norm": 1.0},
        **AGGREGATOR,
    )  # fmt: skip
    (work,) = assignments.closing_shares(lease.combiner_id)
    assert [one.weight for one in work.accepted] == [2.0, 2.0]
    assert not work.is_model


def test_updates_accepted_before_weights_were_kept_count_by_their_examples(rows: Rows) -> None:
    session, lease, _ = two_accepted(rows, {"value": 1, "examples": 1}, {"value": 4, "examples": 3})
    Assignment.objects.update(weight=None)  # rows of an older version, found at an upgrade
    rows.finish_share(lease)
    rows.reduce(session)
    assert_same(rows.arrays_of(again(session).current_model), mean([(update(1), 1), (update(4), 3)]))


def nothing_counts(rows: Rows, combiners: int) -> tuple[Session, list[CombinerShare]]:
    """A round in which every update was given no weight, by rows that say so."""
    leases = [rows.lease(f"c{number}") for number in range(combiners)]
    clients = [rows.online(lease, f"site-{place}")[0] for place, lease in enumerate(leases)]
    session = rows.running(min_clients=combiners)
    for lease, client in zip(leases, clients, strict=True):
        rows.accept(lease, rows.task(session, client), value=7, examples=2)
        Assignment.objects.update(weight=0.0)
    for lease in leases:
        assert rows.finish_share(lease) == [True]
    return session, list(CombinerShare.objects.filter(round__session=session))


@pytest.mark.parametrize("combiners", [1, 2])
def test_a_round_in_which_nothing_has_weight_leaves_the_model_as_it_is(rows: Rows, combiners: int) -> None:
    """They are counted all the same: the round ends, and says how many there were."""
    session, shares = nothing_counts(rows, combiners)
    assert {(share.weight, share.updates, share.partial_key) for share in shares} == {(0.0, 1, "")}
    before = session.current_model.sha256
    round_ = rows.reduce(session)
    assert round_.status == "finished" and again(session).status == "finished"
    assert session.current_model.sha256 == before and session.current_model != session.seed_model
    assert session.current_model.metadata == {"updates": combiners, "num_examples": 2.0 * combiners}


def test_a_share_without_weight_changes_nothing_of_the_others(rows: Rows) -> None:
    leases = [rows.lease("c1"), rows.lease("c2")]
    a, b = rows.online(leases[0], "a")[0], rows.online(leases[1], "b")[0]
    session = rows.running(min_clients=2)
    rows.accept(leases[0], rows.task(session, a), value=50)
    Assignment.objects.filter(client=a).update(weight=0.0)
    rows.accept(leases[1], rows.task(session, b), value=3)
    for lease in leases:
        assert rows.finish_share(lease) == [True]
    rows.reduce(session)
    assert_same(rows.arrays_of(again(session).current_model), update(3))
    assert session.current_model.metadata["updates"] == 2


# --- what clients are told, and must tell -------------------------------------------------------------------------


def settings_of(rows: Rows, **settings: Any) -> dict[str, Any]:
    lease = rows.lease()
    (client,) = rows.online(lease, "a")
    rows.running(min_clients=1, **settings)
    (task,) = assignments.owed([client.pk])
    return task.settings


def test_clients_are_told_what_the_aggregator_needs_them_to_know(rows: Rows) -> None:
    told = settings_of(
        rows, aggregator="fedprox", aggregator_kwargs={"proximal_mu": 0.3}, client_settings={"epochs": 2}
    )
    assert told == {"proximal_mu": 0.3, "epochs": 2}


def test_what_the_session_itself_tells_its_clients_comes_first(rows: Rows) -> None:
    told = settings_of(
        rows, aggregator="fedprox", aggregator_kwargs={"proximal_mu": 0.3}, client_settings={"proximal_mu": 9}
    )
    assert told == {"proximal_mu": 9}


@pytest.mark.django_db(transaction=True)
def test_an_update_that_lacks_what_it_counts_by_is_rejected_and_the_round_goes_on(
    rig: Rig, combiner_here: Any, worker_here: WorkerHere
) -> None:
    combiner: CombinerHere = combiner_here()
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "ab"]
    session = rig.session(min_clients=2, min_updates=1, aggregator="fednova")
    tasks = [wire.next_task() for wire in wires]
    refused = wires[0].upload(tasks[0], update(50), metadata={"num_examples": 1})
    assert refused.status == REJECTED and "num_steps" in refused.reason
    assert wires[1].upload(tasks[1], update(2), num_examples=6, metadata={"num_steps": 3}).status == ACCEPTED
    rig.until_session(session, "finished")
    assert Assignment.objects.get(pk=tasks[1].assignment_id).weight == 2.0
    assert Assignment.objects.get(pk=tasks[0].assignment_id).status == "rejected"
    assert_same(rig.arrays_of(session.current_model), update(2))


@pytest.mark.django_db(transaction=True)
def test_the_distance_to_the_model_is_measured_where_the_session_needs_it(
    rig: Rig, combiner_here: Any, worker_here: WorkerHere
) -> None:
    """Two combiners, real uploads: clipped each by itself, the round is the flat sum."""
    combiners = [combiner_here("c1"), combiner_here("c2")]
    seed = {"w": np.full((4, 3), 1.0, np.float32), "b": np.full(3, 1.0, np.float32)}
    wires = [rig.connect(one, rig.client(name)[1]) for one, name in zip(combiners, "ab", strict=True)]
    session = rig.session(min_clients=2, seed=rig.model(seed), **AGGREGATOR)
    for wire, value in zip(wires, (1.1, 5.0), strict=True):
        assert wire.upload(wire.next_task(), update(value)).status == ACCEPTED
    rig.until_session(session, "finished")
    found = dict(Assignment.objects.values_list("client__name", "delta_norm"))
    assert found == pytest.approx({"a": 0.1 * 15**0.5, "b": 4 * 15**0.5}, rel=1e-5)
    clipped = [0.1, 4 * 2.0 / (4 * 15**0.5)]
    assert_same(rig.arrays_of(session.current_model), update(1 + sum(clipped) / 2), rtol=1e-5)


@pytest.mark.django_db(transaction=True)
def test_where_nothing_asks_for_the_distance_the_model_is_not_even_opened(
    rig: Rig, combiner_here: Any, worker_here: WorkerHere
) -> None:
    combiner: CombinerHere = combiner_here()
    wire = rig.connect(combiner, rig.client("a")[1])
    session = rig.session(min_clients=1)
    assert wire.upload(wire.next_task(), update(2)).status == ACCEPTED
    rig.until_session(session, "finished")
    assert Assignment.objects.get().delta_norm is None


def test_a_verdict_tells_the_weight_to_the_combiner(rows: Rows) -> None:
    lease = rows.lease()
    (a,) = rows.online(lease, "a")
    session = rows.running(min_clients=1, **AGGREGATOR)
    task = rows.task(session, a)
    (verdict,) = rows.accept(lease, task, examples=4, delta_norm=8.0)
    assert verdict.weight == 1.0 and verdict.round_id == task.round_id
    (copy,) = rows.accept(lease, task, examples=9, delta_norm=1.0)
    assert copy == dataclasses.replace(verdict, closing=None)
