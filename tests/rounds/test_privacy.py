"""Private rounds: each client's change is clipped, their sum noised and divided by a fixed number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld import pld_privacy_accountant

from clients_app.models import Client
from clients_app.presence import CombinerLease
from federation.sessions import engine, privacy, reduction
from federation.sessions.config import SessionConfig
from federation.sessions.models import Session
from foundation.errors import StudioError
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.rounds.rows import Rows, again, assert_same, give_up, past_deadline
from tests.wire_client import ACCEPTED

pytestmark = pytest.mark.django_db
# imported before the clock of a lease runs: it takes seconds
assert pld_privacy_accountant

SIGMAS = 6.5  # a right implementation fails once in 10**10 runs
Arrays = Mapping[str, Any]
SEED: Arrays = {
    "w": np.arange(12, dtype=np.float32).reshape(4, 3) / 8,
    "half": np.ones(5, np.float16),
    "steps": np.array([3, 7], np.int64),
    "seen": np.array([True, False]),
}


def begin(rows: Rows, clients: int = 3, combiners: int = 1, **settings: Any) -> tuple[Session, list[Site]]:
    """A running private session and its clients, each with the combiner that serves it."""
    leases = [rows.lease(f"c{n + 1}") for n in range(combiners)]
    sites = [
        (leases[n % combiners], rows.online(leases[n % combiners], f"site-{n}")[0]) for n in range(clients)
    ]
    defaults: dict[str, Any] = {
        "min_clients": 2,
        "requested_clients": clients,
        "seed": rows.model(dict(SEED)),
        "privacy": {},
    }
    return rows.running(**(defaults | settings)), sites


Site = tuple[CombinerLease, Client]


def change(rng: np.random.Generator, before: Arrays, size: float) -> dict[str, Any]:
    """An update whose floats lie about `size` from the model; its integers and booleans are anything."""
    floats = [name for name in before if before[name].dtype.kind == "f"]
    step = {name: rng.normal(size=before[name].shape) for name in floats}
    length = math.sqrt(sum(float((each**2).sum()) for each in step.values()))
    moved = {
        name: (before[name].astype("f8") + step[name] * size / length).astype(before[name].dtype)
        for name in floats
    }
    other = {name: np.flip(before[name]).copy() for name in before if name not in floats}
    return {name: moved[name] if name in moved else other[name] for name in before}


def distance(after: Arrays, before: Arrays) -> float:
    floats = [name for name in before if before[name].dtype.kind == "f"]
    return math.sqrt(
        sum(float(((after[n].astype("f8") - before[n].astype("f8")) ** 2).sum()) for n in floats)
    )


def expected(before: Arrays, updates: Sequence[Arrays], clip_norm: float, divisor: float) -> dict[str, Any]:
    """x + sum of min(1, C / |d_i|) d_i / divisor over the floats, in float64; nothing else moves."""
    model = {name: array.astype("f8") for name, array in before.items()}
    for update in updates:
        factor = min(1.0, clip_norm / distance(update, before))
        for name, array in before.items():
            if array.dtype.kind == "f":
                model[name] += factor * (update[name].astype("f8") - array.astype("f8")) / divisor
    return model


def answer(
    rows: Rows,
    session: Session,
    sites: list[Site],
    updates: Sequence[Arrays],
    examples: list[float] | None = None,
) -> None:
    """Each client sends its update; their combiners finish their shares."""
    before = rows.arrays_of(session.current_model)
    for n, ((lease, client), update) in enumerate(zip(sites, updates, strict=True)):
        (verdict,) = rows.accept(
            lease,
            rows.task(session, client),
            arrays=update,
            examples=examples[n] if examples else 1.0,
            delta_norm=distance(update, before),
        )
        assert verdict.accepted, verdict.reason
    for lease in {lease.combiner_id: lease for lease, _ in sites}.values():
        rows.finish_share(lease)


def play(rows: Rows, session: Session, sites: list[Site], *args: Any) -> None:
    """A whole round; the next one opens, if there is one."""
    answer(rows, session, sites, *args)
    rows.reduce(session)
    again(session)


NO_NOISE = {"noise_multiplier": 0, "clip_norm": 0.75}


@pytest.mark.parametrize("combiners", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"aggregator": "fedprox"}, {"deterministic": True}], ids=str)
def test_without_noise_a_round_is_the_sum_of_clipped_changes_over_the_fixed_number(
    rows: Rows, combiners: int, settings: dict[str, Any]
) -> None:
    session, sites = begin(rows, 3, combiners, privacy=NO_NOISE, **settings)
    rng = np.random.default_rng(1)
    updates = [change(rng, SEED, size) for size in (0.1, 2.0, 30.0)]
    play(rows, session, sites, updates)
    found = rows.arrays_of(session.current_model)
    wanted = expected(SEED, updates, 0.75, 3)
    assert_same({"w": found["w"]}, {"w": wanted["w"]})
    assert_same({"half": found["half"]}, {"half": wanted["half"]}, rtol=1e-3)


def test_integers_and_booleans_stay_as_they_are(rows: Rows) -> None:
    """Noise would ruin them, and without it they would tell."""
    session, sites = begin(rows, privacy={"clip_norm": 5.0})
    play(rows, session, sites, [change(np.random.default_rng(2), SEED, 1.0) for _ in sites])
    found = rows.arrays_of(session.current_model)
    for name in ("steps", "seen"):
        assert found[name].dtype == SEED[name].dtype and np.array_equal(found[name], SEED[name])
    assert not np.array_equal(found["w"], SEED["w"])


def test_how_many_examples_a_client_has_does_not_count(rows: Rows) -> None:
    """Weights by examples would let one client move the sum by more than the clip norm."""
    session, sites = begin(rows, privacy=NO_NOISE)
    updates = [change(np.random.default_rng(3), SEED, 1.0) for _ in sites]
    play(rows, session, sites, updates, [1.0, 50.0, 1e9])
    found = rows.arrays_of(session.current_model)
    assert_same({"w": found["w"]}, {"w": expected(SEED, updates, 0.75, 3)["w"]})


def test_the_divisor_stays_when_a_client_drops_out(rows: Rows) -> None:
    session, sites = begin(rows, privacy=NO_NOISE, min_updates=2)
    updates = [change(np.random.default_rng(4), SEED, 1.0) for _ in sites[:2]]
    give_up(rows, session, sites[2][1])
    play(rows, session, sites[:2], updates)
    found = rows.arrays_of(session.current_model)
    assert_same({"w": found["w"]}, {"w": expected(SEED, updates, 0.75, 3)["w"]})


def test_the_divisor_is_what_was_asked_for(rows: Rows) -> None:
    session, sites = begin(rows, privacy=NO_NOISE | {"expected_clients": 7})
    updates = [change(np.random.default_rng(5), SEED, 1.0) for _ in sites]
    play(rows, session, sites, updates)
    found = rows.arrays_of(session.current_model)
    assert_same({"w": found["w"]}, {"w": expected(SEED, updates, 0.75, 7)["w"]})


def test_the_divisor_is_fixed_when_the_first_round_opens_though_clients_join(rows: Rows) -> None:
    lease = rows.lease()
    rows.online(lease, "a", "b", "c", "d")
    session = rows.running(rounds=2, selection={"fraction": 0.5}, privacy=NO_NOISE)
    assert rows.round(session).plan["privacy"]["divisor"] == 2.0
    rows.online(lease, "e", "f", "g", "h")
    tasks = list(rows.round(session).assignments.all())
    rows.accept(lease, *tasks, delta_norm=1.0)
    rows.finish_share(lease)
    rows.reduce(session)
    again(session)
    second = rows.round(session)
    assert second.number == 2 and second.assignments.count() == 4
    assert second.plan["privacy"]["divisor"] == 2.0


@pytest.mark.parametrize(("multiplier", "clip_norm", "divisor"), [(1.0, 0.5, 2), (3.0, 2.0, 40)])
def test_the_committed_model_has_noise_of_the_settled_deviation(
    rows: Rows, multiplier: float, clip_norm: float, divisor: int
) -> None:
    seed = {"big": np.zeros(200_000, np.float32), "n": np.array(4, np.int32)}
    session, sites = begin(
        rows,
        2,
        seed=rows.model(seed),
        privacy={"noise_multiplier": multiplier, "clip_norm": clip_norm, "expected_clients": divisor},
    )
    updates = [change(np.random.default_rng(6), seed, 1.0) for _ in sites]
    play(rows, session, sites, updates)
    found = rows.arrays_of(session.current_model)["big"].astype("f8")
    noise = found - expected(seed, updates, clip_norm, divisor)["big"]
    std = multiplier * clip_norm / divisor
    assert abs(noise.mean()) < SIGMAS * std / math.sqrt(noise.size)
    assert abs(noise.std() / std - 1) < SIGMAS / math.sqrt(2 * noise.size)


@pytest.mark.parametrize("aggregator", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedopt"])
def test_server_optimisers_step_along_the_noised_change(rows: Rows, aggregator: str) -> None:
    """Two sessions with the same updates come to different models: the step has noise in it; without noise to one."""

    def model_of(noise: float) -> np.ndarray:
        session, sites = begin(
            rows, aggregator=aggregator, privacy={"noise_multiplier": noise, "clip_norm": 0.5}
        )
        play(rows, session, sites, [change(np.random.default_rng(7), SEED, 1.0) for _ in sites])
        assert session.status == "finished"
        return rows.arrays_of(session.current_model)["w"]

    assert np.array_equal(model_of(0.0), model_of(0.0))
    assert not np.array_equal(model_of(1.0), model_of(1.0))


def test_an_adaptive_clip_goes_to_the_quantile_of_the_norms_round_by_round(rows: Rows) -> None:
    settings = {
        "adaptive": True,
        "noise_multiplier": 0,
        "clip_norm": 8.0,
        "target_quantile": 0.5,
        "clip_learning_rate": 1.0,
    }
    session, sites = begin(rows, 4, rounds=6, privacy=settings)
    clip, rng = 8.0, np.random.default_rng(8)
    sizes = [0.5, 1.0, 3.0, 5.0]
    for _ in range(6):
        assert rows.round(session).plan["privacy"]["clip_norm"] == pytest.approx(clip)
        before = rows.arrays_of(session.current_model)
        updates = [change(rng, before, size) for size in sizes]
        within = sum(distance(one, before) <= clip for one in updates) / 4
        play(rows, session, sites, updates)
        clip *= math.exp(-1.0 * (within - 0.5))
        found = rows.arrays_of(session.current_model)
        used = session.rounds.get(number=session.rounds_done).plan["privacy"]["clip_norm"]
        assert_same({"w": found["w"]}, {"w": expected(before, updates, used, 4)["w"]}, rtol=1e-5)
    assert session.status == "finished" and 1.0 < clip < 5.0
    assert session.rounds.get(number=6).plan["privacy"]["next_clip_norm"] == pytest.approx(clip)


def test_with_an_adaptive_clip_the_sum_has_the_noise_that_the_count_leaves_it(rows: Rows) -> None:
    session, sites = begin(rows, privacy={"adaptive": True, "expected_clients": 40})
    plan = rows.round(session).plan["privacy"]
    assert plan["total_noise_multiplier"] == 1.0
    # sigma_b = 40 / 20; theorem 1 of Andrew et al.
    assert plan["noise_multiplier"] == pytest.approx((1 - 4.0**-2) ** -0.5)
    play(rows, session, sites, [change(np.random.default_rng(9), SEED, 0.5) for _ in sites])
    drawn = session.rounds.get().plan["privacy"]["next_clip_norm"]
    share = 0.5 - math.log(drawn) / 0.2
    # three within the clip of forty expected: (3 - 1.5) / 40 + 1/2, noise of 2 / 40
    assert drawn != 1.0 and abs(share - 0.5375) < SIGMAS * 0.05


def test_the_next_clip_norm_is_there_for_a_continued_session(rows: Rows) -> None:
    from federation.sessions.services import continue_session

    session, sites = begin(rows, privacy={"adaptive": True, "expected_clients": 40})
    play(rows, session, sites, [change(np.random.default_rng(10), SEED, 0.5) for _ in sites])
    assert session.status == "finished"
    wanted = session.rounds.get().plan["privacy"]["next_clip_norm"]
    continue_session(actor=rows.actor, session=session, rounds=1)
    again(session)
    assert rows.round(session).plan["privacy"]["clip_norm"] == wanted


def test_a_failed_attempt_leaves_clip_and_divisor_as_they_were(rows: Rows) -> None:
    session, sites = begin(rows, 3, rounds=2, privacy={"adaptive": True, "expected_clients": 40})
    play(rows, session, sites, [change(np.random.default_rng(11), SEED, 0.5) for _ in sites])
    settled = rows.round(session).plan["privacy"]
    past_deadline(rows, session)
    again(session)
    assert rows.round(session).attempt == 2 and rows.round(session).plan["privacy"] == settled


def test_a_private_model_does_not_say_how_many_took_part(rows: Rows) -> None:
    session, sites = begin(rows)
    play(rows, session, sites, [change(np.random.default_rng(12), SEED, 0.5) for _ in sites], [3.0, 4.0, 5.0])
    told = session.current_model.metadata
    assert set(told) == {"epsilon", "delta"} and told["epsilon"] == pytest.approx(4.377, abs=0.001)


def test_a_round_of_a_private_session_without_a_settled_clip_is_never_folded_or_reduced(rows: Rows) -> None:
    session, _ = begin(rows)
    round_ = rows.round(session)
    round_.plan = {}
    with pytest.raises(StudioError, match="not settled"):
        privacy.of_round(round_, SessionConfig.from_json(session.config))
    with pytest.raises(StudioError, match="not settled"):
        privacy.account(round_, SessionConfig.from_json(session.config))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("combiners", [1, 2])
def test_real_combiners_clip_and_fold_what_clients_send(
    rig: Rig, combiner_here: Callable[..., CombinerHere], worker_here: WorkerHere, combiners: int
) -> None:
    here = [combiner_here(f"c{n}") for n in range(combiners)]
    wires = [rig.connect(here[n % combiners], rig.client(f"site-{n}")[1]) for n in range(2)]
    seed = {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)}
    session = rig.session(
        min_clients=2, rounds=2, requested_clients=2, privacy={"noise_multiplier": 0, "clip_norm": 0.5}
    )
    before: Arrays = seed
    rng = np.random.default_rng(13)
    for number in (1, 2):
        updates = [change(rng, before, size) for size in (0.1, 4.0)]
        for place, wire in enumerate(wires):
            answered = wire.upload(wire.next_task(), updates[place], num_examples=1 + 100 * place)
            assert answered.status == ACCEPTED
        rig.wait_until(
            lambda number=number: Session.objects.get(pk=session.pk).rounds_done >= number, timeout=40
        )
        session.refresh_from_db()
        found = rig.arrays_of(session.current_model)
        assert_same(found, expected(before, updates, 0.5, 2), rtol=1e-5)
        before = found
    rig.until_session(session, "finished")
    assert session.rounds.latest("number").epsilon is None  # no noise, no bound
    for wire in wires:
        wire.close()


def test_two_attempts_to_reduce_draw_noise_of_their_own_and_one_is_published(rows: Rows) -> None:
    """Noise that was seen must not be drawn again for another model; what lost is deleted unseen."""
    models = []
    for _ in range(2):
        session, sites = begin(rows)
        answer(rows, session, sites, [change(np.random.default_rng(14), SEED, 0.5) for _ in sites])
        round_ = rows.round(session)
        reduction.reduce_round(round_.pk)
        reduction.reduce_round(round_.pk)
        engine.advance(session.pk)
        session.refresh_from_db()
        assert session.trail.count() == 1
        models.append(rows.arrays_of(session.current_model)["w"])
    assert not np.array_equal(*models)
