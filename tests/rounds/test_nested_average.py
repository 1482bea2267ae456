"""Several combiners serve one project: whatever goes through which, the model is the flat average of all updates."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.sessions import engine
from federation.sessions.models import Assignment, CombinerShare
from tests.rounds.rows import Rows, assert_same, mean

pytestmark = pytest.mark.django_db

SHAPES: dict[str, tuple[int, ...]] = {"w": (5, 3), "b": (3,), "scale": (), "none": (0, 2)}
DTYPES = {"w": np.float32, "b": np.float64, "scale": np.float32, "none": np.float32}


@dataclass(frozen=True)
class Site:
    """A client: its update is drawn from `seed` at `size`, it has so many examples, and is connected to one combiner;
    `moves_to`: where it goes with its work before it sends it."""

    seed: int
    size: float
    examples: float
    combiner: int
    moves_to: int | None


def arrays(site: Site) -> dict[str, Any]:
    generator = np.random.default_rng(site.seed)
    return {
        name: np.asarray(site.size * generator.standard_normal(shape), DTYPES[name])
        for name, shape in SHAPES.items()
    }


@st.composite
def networks(draw: Any) -> tuple[int, list[Site]]:
    combiners = draw(st.integers(1, 4))
    at = st.integers(0, combiners - 1)
    site = st.builds(
        Site,
        seed=st.integers(0, 2**32 - 1),
        size=st.sampled_from([1e-6, 1.0, 1.0, 1e4]),
        examples=st.one_of(st.integers(1, 10**6).map(float), st.floats(0.01, 1e6)),
        combiner=at,
        moves_to=st.one_of(st.none(), at),
    )
    return combiners, draw(st.lists(site, min_size=1, max_size=7))


def trained(rows: Rows, combiners: int, sites: list[Site]) -> tuple[dict[str, Any], int]:
    """The model of one round in that network, and how many shares it had."""
    leases = [rows.lease(f"{uuid.uuid4().hex[:6]}-{number}") for number in range(combiners)]
    names = [f"site-{uuid.uuid4().hex[:8]}" for _ in sites]
    clients = [rows.online(leases[site.combiner], name)[0] for site, name in zip(sites, names, strict=True)]
    seed = rows.model({name: np.zeros(shape, DTYPES[name]) for name, shape in SHAPES.items()})
    session = rows.running(
        seed=seed, min_clients=len(sites), client_ids=[str(client.pk) for client in clients]
    )
    for site, client, name in zip(sites, clients, names, strict=True):
        where = site.combiner if site.moves_to is None else site.moves_to
        if site.moves_to is not None:
            rows.online(leases[where], name)
        (verdict,) = rows.accept(
            leases[where], rows.task(session, client), arrays=arrays(site), examples=site.examples
        )
        assert verdict.accepted, verdict.reason
    for lease in leases:
        rows.finish_share(lease)
    rows.reduce(session)
    engine.advance(session.pk)
    session.refresh_from_db()
    assert session.status == "finished", session.reason
    shares = CombinerShare.objects.filter(round__session=session)
    assert {share.status for share in shares} == {"finished"}
    assert sum(share.updates for share in shares) == len(sites)
    for client in clients:  # out of the way of the next network
        rows.offline(client)
    return rows.arrays_of(session.current_model), len(shares)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(network=networks())
def test_nested_averaging_equals_the_flat_average(rows: Rows, network: tuple[int, list[Site]]) -> None:
    combiners, sites = network
    found, shares = trained(rows, combiners, sites)
    used = {site.combiner if site.moves_to is None else site.moves_to for site in sites}
    assert shares == len(used)
    flat = mean([(arrays(site), site.examples) for site in sites])
    largest = max(site.size for site in sites)
    for name, dtype in DTYPES.items():
        assert found[name].dtype == dtype and found[name].shape == SHAPES[name]
        # one rounding to the model's dtype; sums of updates of both signs may cancel, hence the absolute part
        np.testing.assert_allclose(
            found[name], flat[name], rtol=4 * float(np.finfo(dtype).eps), atol=1e-12 * largest, err_msg=name
        )


def test_the_same_updates_through_one_two_or_four_combiners_make_the_same_model(rows: Rows) -> None:
    """The partials are float64, so where the updates were folded shows in no digit of a float32 model."""
    sites = [Site(seed=n, size=1.0, examples=float(7 * n + 1), combiner=0, moves_to=None) for n in range(8)]
    models = []
    for combiners in (1, 2, 4):
        spread = [
            Site(site.seed, site.size, site.examples, number % combiners, None)
            for number, site in enumerate(sites)
        ]
        model, shares = trained(rows, combiners, spread)
        assert shares == combiners
        models.append(model)
    flat = mean([(arrays(site), site.examples) for site in sites])
    for model in models:
        assert_same(model, flat, rtol=4e-7)
        np.testing.assert_array_max_ulp(model["w"], models[0]["w"], maxulp=1)


def test_a_client_that_moves_in_between_counts_once_where_it_was_accepted(rows: Rows) -> None:
    one, two = rows.lease("c1"), rows.lease("c2")
    (a,), (b,) = rows.online(one, "a"), rows.online(one, "b")
    session = rows.running(min_clients=2)
    task = rows.task(session, a)
    rows.accept(one, task, value=1, examples=1)
    rows.online(two, "a")  # it never heard that it was accepted, and asks again elsewhere
    (again,) = rows.accept(two, task, value=1, examples=1)
    rows.online(two, "b")
    rows.accept(two, rows.task(session, b), value=4, examples=2)
    assert again.accepted and Assignment.objects.filter(status="accepted").count() == 2
    assert {share.combiner.name: share.assignments.count() for share in CombinerShare.objects.all()} == {
        "c1": 1,
        "c2": 1,
    }
    for lease in (one, two):
        rows.finish_share(lease)
    rows.reduce(session)
    session.refresh_from_db()
    assert_same(rows.arrays_of(session.current_model), {"w": np.full((4, 3), 3.0), "b": np.full(3, 3.0)})
