"""What an update counts, and how staleness, privacy and server optimisers go together in one step."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.aggregation.accumulate import WeightedSum, combine_partials, fold_in_order
from federation.aggregation.aggregators import (
    AGGREGATORS,
    Privacy,
    Reduction,
    UpdateFacts,
    aggregator_named,
    fold_weight,
)
from federation.aggregation.codecs import load_arrays, save_arrays
from federation.aggregation.safetensors_file import ModelSink
from foundation.errors import StudioError
from tests.aggregation_oracles import ORACLES, Arrays, Played, adaptive_step, momentum_step, stepped, wide
from tests.aggregation_rounds import THIS, Rounds, assert_is_near
from tests.random_models import draw_arrays, layouts

FOLDING = [name for name, one in AGGREGATORS.items() if not one.collects]
PRIVATE = [name for name in FOLDING if AGGREGATORS[name].private]
SLACK = 1e-8


def facts(**more: Any) -> UpdateFacts:
    return UpdateFacts(**{"key": "a", "num_examples": 10.0, "metadata": {}, "base": THIS, **more})


# --- weights --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "arguments", "update", "weight"),
    [
        ("fedavg", {}, facts(), 10.0),
        ("fedprox", {}, facts(), 10.0),
        ("fedadam", {}, facts(), 10.0),
        ("fednova", {}, facts(metadata={"num_steps": 4}), 2.5),
        ("fednova", {"local_momentum": 0.5}, facts(metadata={"num_steps": 2}), 10 / (1 + 1.5)),
        ("qfedavg", {"q": 2}, facts(metadata={"loss": 3}), 9.0),
        ("qfedavg", {"q": 0}, facts(metadata={"loss": 0}), 1.0),
        ("normclip", {"max_norm": 2}, facts(delta_norm=8.0), 2.5),
        ("normclip", {"max_norm": 2}, facts(delta_norm=1.0), 10.0),
        ("normclip", {"max_norm": 2}, facts(delta_norm=0.0), 10.0),
    ],
)
def test_an_update_counts_by_what_its_aggregator_goes_by(name, arguments, update, weight):
    aggregator = aggregator_named(name)
    found = fold_weight(
        aggregator, update, aggregator.check(arguments), privacy=None, staleness_exponent=None
    )
    assert found == pytest.approx(weight, rel=1e-9)


@pytest.mark.parametrize("name", FOLDING)
@pytest.mark.parametrize(("norm", "weight"), [(0.0, 1.0), (2.0, 1.0), (4.0, 0.5), (1e300, 2e-300)])
def test_under_privacy_an_update_counts_by_its_length_alone_whatever_its_client_says(name, norm, weight):
    aggregator, privacy = aggregator_named(name), Privacy(2.0, 1.0, 10.0)
    said = {"num_steps": 3, "loss": 0.1}
    for examples in (1.0, 1e12):
        found = fold_weight(
            aggregator,
            facts(num_examples=examples, metadata=said, delta_norm=norm),
            aggregator.check({}),
            privacy=privacy,
            staleness_exponent=None,
        )
        assert found == weight


@pytest.mark.parametrize(
    ("staleness", "exponent", "factor"), [(0, 0.5, 1), (3, 0.5, 0.5), (3, 0, 1), (1, 2, 0.25)]
)
def test_a_stale_update_counts_less(staleness, exponent, factor):
    aggregator = aggregator_named("fedavg")
    update = facts(staleness=staleness)
    assert fold_weight(aggregator, update, {}, privacy=None, staleness_exponent=exponent) == 10 * factor
    assert fold_weight(aggregator, update, {}, privacy=None, staleness_exponent=None) == 10


def test_a_length_that_is_not_known_is_never_taken_for_short():
    for norm in (None, math.nan, -1.0):
        with pytest.raises(StudioError, match="not known") as refused:
            fold_weight(
                aggregator_named("fedavg"), facts(delta_norm=norm), {},
                privacy=Privacy(1.0, 1.0, 1.0), staleness_exponent=None,
            )  # fmt: skip
        assert refused.value.code == "no_delta_norm"


HOSTILE = [None, "7", True, [3], {"a": 1}, -1, -0.5, math.nan, math.inf, -math.inf, 10**400, 1e13]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(("name", "entry"), [("fednova", "num_steps"), ("qfedavg", "loss")])
def test_metadata_that_cannot_be_counted_by_is_refused_saying_what_to_send(name, entry, value):
    with pytest.raises(StudioError, match=f"metadata must say {entry}: .* a number from") as refused:
        aggregator_named(name).check_metadata({entry: value} if value is not None else {})
    assert refused.value.code == "bad_metadata" and refused.value.data == {"field": entry}
    assert len(refused.value.message) < 300


def test_no_steps_at_all_cannot_be_normalised_but_no_loss_is_legal():
    with pytest.raises(StudioError, match="it is 0"):
        aggregator_named("fednova").check_metadata({"num_steps": 0})
    aggregator_named("qfedavg").check_metadata({"loss": 0})


@pytest.mark.parametrize("name", FOLDING)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    said=st.dictionaries(
        st.sampled_from(["num_steps", "loss"]),
        st.one_of(st.floats(), st.integers(-(10**30), 10**30), st.text(), st.none(), st.booleans()),
    ),
    norm=st.floats(0, allow_nan=False, allow_infinity=False),
    examples=st.floats(1e-12, 1e12),
)
def test_whatever_passes_the_check_of_metadata_makes_a_weight_and_a_scale(name, said, norm, examples):
    aggregator = aggregator_named(name)
    arguments = aggregator.check({})
    try:
        aggregator.check_metadata(said)
    except StudioError:
        return
    update = facts(num_examples=examples, metadata=said, delta_norm=norm)
    weight = fold_weight(aggregator, update, arguments, privacy=None, staleness_exponent=0.5)
    assert 0 <= weight < math.inf
    if weight > 0:
        scale = aggregator.scale([dataclasses.replace(update, weight=weight)], arguments)
        assert 0 <= scale < math.inf


# --- asynchronous rounds --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FOLDING)
@settings(max_examples=15, deadline=None)
@given(
    data=st.data(), layout=layouts(), seed=st.integers(0, 2**32), exponent=st.sampled_from([0.0, 0.5, 2.0])
)
def test_updates_of_older_models_move_the_newest_by_what_they_changed(name, data, layout, seed, exponent):
    arguments = aggregator_named(name).check({})
    memory: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        rounds = Rounds.of(
            Path(folder), name, draw_arrays(layout, seed), arguments, staleness_exponent=exponent
        )
        for number in range(2):
            x = {key: array.copy() for key, array in load_arrays(rounds.model).items()}
            older = [draw_arrays(layout, seed + 50 + age) for age in range(3)]
            ages = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
            bases = [(THIS, x, 0) if age == 0 else (f"old{age}", older[age - 1], age) for age in ages]
            updates = [draw_arrays(layout, seed + 100 * number + place + 1) for place in range(len(ages))]
            examples = [float(place + 1) for place in range(len(ages))]
            metadata = [{"num_steps": place + 1, "loss": 0.5 * place} for place in range(len(ages))]
            played = Played(
                rounds.layout, x, updates, examples, metadata, arguments,
                bases=[arrays for _, arrays, _ in bases],
                discounts=[(1 + age) ** -exponent for age in ages],
                memory=memory,
            )  # fmt: skip
            wanted = ORACLES[name](played)
            homes = [place % 2 for place in range(len(ages))]
            got = rounds.play(updates, examples=examples, metadata=metadata, homes=homes, bases=bases)
            assert_is_near(got, wanted, played, SLACK)


@pytest.mark.parametrize("name", ["fedavg", "fednova", "qfedavg", "normclip"])
def test_a_buffer_of_updates_that_are_all_stale_moves_the_model_less(tmp_path, name):
    """FedBuff, Algorithm 1: the sum of discounted changes is divided by how many they are, discounted or not."""
    x, old = {"w": np.zeros(3)}, {"w": np.full(3, 5.0)}
    said = [{"num_steps": 2, "loss": 1.0}] * 2
    arguments = {"q": 0} if name == "qfedavg" else {"max_norm": 100.0} if name == "normclip" else {}
    rounds = Rounds.of(tmp_path, name, x, arguments, staleness_exponent=0.5)
    updates = [{"w": np.full(3, 6.0)}, {"w": np.full(3, 8.0)}]
    got = rounds.play(updates, metadata=said, bases=[("old", old, 3)] * 2)
    np.testing.assert_allclose(got["w"], np.full(3, 0.5 * (1 + 3) / 2))


def test_an_update_whose_model_is_gone_fails_the_round_rather_than_being_taken_for_fresh(tmp_path):
    rounds = Rounds.of(tmp_path, "fedavg", {"w": np.zeros(3)}, staleness_exponent=0.5)
    files = Reduction(
        rounds.layout, lambda: rounds.model, tmp_path / "out", tmp_path / "state",
        partials=[(tmp_path / "never read", 1.0)],
        updates=[facts(base="gone", weight=1.0)],
        model_id=THIS,
    )  # fmt: skip
    with pytest.raises(StudioError, match="no longer there"):
        aggregator_named("fedavg").reduce(files, {})


# --- privacy --------------------------------------------------------------------------------------------------------
def optimiser_step(name: str, arguments: dict[str, Any], memory: dict[str, Any]):
    if name == "fedavgm":
        return momentum_step(arguments, memory)
    if name in ("fedavg", "fedprox"):
        return lambda _, change: change
    return adaptive_step(arguments.get("serveropt", name.removeprefix("fed")), arguments, memory)


@pytest.mark.parametrize("name", PRIVATE)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), layout=layouts(), seed=st.integers(0, 2**32), clip=st.sampled_from([0.1, 3.0, 1e3]))
def test_a_private_round_steps_by_the_clipped_sum_over_a_fixed_number(name, data, layout, seed, clip):
    """DP-FedAvg without its noise: D = (1 / divisor) sum_i min(1, C / |dx_i|) dx_i; counters keep their values."""
    privacy = Privacy(clip_norm=clip, noise_multiplier=0.0, divisor=7.0)
    memory: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        rounds = Rounds.of(Path(folder), name, draw_arrays(layout, seed), privacy=privacy)
        for number in range(2):
            x = {key: array.copy() for key, array in load_arrays(rounds.model).items()}
            count = data.draw(st.integers(1, 4))
            updates = [draw_arrays(layout, seed + 100 * number + place + 1) for place in range(count)]
            played = Played(rounds.layout, x, updates, [1.0] * count, [{}] * count, rounds.arguments)
            f = [min(1.0, clip / max(played.norm(i), 1e-300)) for i in range(count)]
            D = {
                key: sum((f[i] * played.change(i, key) for i in range(count)), np.zeros(1)) / 7.0
                for key in played.floats
            }
            step = optimiser_step(name, rounds.arguments, memory)
            wanted = stepped(played, D, f, step) | {key: wide(x[key]) for key in played.rest}
            examples = data.draw(st.lists(st.floats(1, 1e6), min_size=count, max_size=count))
            homes = [place % 3 for place in range(count)]
            got = rounds.play(updates, examples=examples, homes=homes)
            assert_is_near(got, wanted, played, SLACK)
            for key in played.rest:  # exactly, beyond what float64 can hold too
                assert (got[key] == x[key]).all()


def private_change(folder: Path, updates: list[Arrays], multiplier: float, name: str = "fedavg") -> Arrays:
    x = {"w": np.zeros(200_000, np.float32), "steps": np.array([2**62 + 1])}
    privacy = Privacy(clip_norm=2.0, noise_multiplier=multiplier, divisor=5.0)
    return Rounds.of(folder, name, x, privacy=privacy).play(updates)


@pytest.mark.parametrize("updates", [0, 1, 3])
def test_noise_has_the_deviation_that_is_accounted_also_in_a_round_that_drew_nobody(tmp_path, updates):
    sent = {"w": np.zeros(200_000, np.float32), "steps": np.array([7])}
    found = private_change(tmp_path, [sent] * updates, 1.5)
    noise = wide(found["w"])
    wanted = 1.5 * 2.0 / 5.0
    # Of 200,000 draws the mean strays by 1/447 of a deviation, the deviation by 1/632 of itself.
    assert abs(noise.mean()) < 6 * wanted / 447 and abs(noise.std() / wanted - 1) < 6 / 632
    assert found["steps"].tolist() == [2**62 + 1]


def test_every_private_round_draws_its_own_noise(tmp_path):
    first, second = (tmp_path / name for name in ("first", "second"))
    first.mkdir()
    second.mkdir()
    sent = {"w": np.zeros(200_000, np.float32), "steps": np.array([7])}
    assert not (private_change(first, [sent], 1.0)["w"] == private_change(second, [sent], 1.0)["w"]).any()


@pytest.mark.parametrize("name", PRIVATE)
def test_noise_passes_through_the_servers_optimiser(tmp_path, name):
    sent = {"w": np.zeros(200_000, np.float32), "steps": np.array([7])}
    found = wide(private_change(tmp_path, [sent], 1.0, name)["w"])
    arguments, deviation = aggregator_named(name).check({}), 2.0 / 5.0
    if name in ("fedavg", "fedprox", "fedavgm"):
        assert found.std() == pytest.approx(deviation, rel=0.02)
    else:  # an adaptive step is at most learning_rate (1 - beta1) / sqrt(1 - beta2) long, of either sign alike
        longest = arguments["learning_rate"] * (1 - arguments["beta1"])
        longest /= math.sqrt(1 - arguments["beta2"]) if "beta2" in arguments and name != "fedopt" else 0.1
        assert 0 < np.abs(found).max() <= longest * 1.001
        assert abs(np.sign(found).mean()) < 0.02


# --- nothing to fold ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FOLDING)
def test_updates_that_count_nothing_leave_the_model_and_no_update_at_all_is_refused(tmp_path, name):
    x = {"w": np.array([0.5, -2.0], np.float32), "steps": np.array([2**62 + 1])}
    layout = save_arrays(x, tmp_path / "x")
    files = Reduction(
        layout, lambda: tmp_path / "x", tmp_path / "out", tmp_path / "state", updates=[facts(weight=0.0)]
    )
    aggregator = aggregator_named(name)
    aggregator.reduce(files, aggregator.check({}))
    assert (tmp_path / "out").read_bytes() == (tmp_path / "x").read_bytes()
    with pytest.raises(StudioError) as refused:
        aggregator.reduce(dataclasses.replace(files, updates=[]), aggregator.check({}))
    assert refused.value.code == "no_updates"


def test_clients_of_fedprox_are_told_how_near_to_stay():
    prox = aggregator_named("fedprox")
    assert prox.client_settings(prox.check({"proximal_mu": 0.3})) == {"proximal_mu": 0.3}
    assert all(AGGREGATORS[name].client_settings({}) == {} for name in FOLDING if name != "fedprox")


def test_momentum_of_nothing_at_full_rate_is_fedavg(tmp_path):
    x, updates = {"w": np.zeros(9)}, [{"w": np.arange(9.0)}, {"w": np.ones(9)}]
    for folder in ("m", "avg"):
        (tmp_path / folder).mkdir()
    still = Rounds.of(tmp_path / "m", "fedavgm", x, {"momentum": 0, "learning_rate": 1})
    plain = Rounds.of(tmp_path / "avg", "fedavg", x)
    np.testing.assert_allclose(still.play(updates)["w"], plain.play(updates)["w"], rtol=1e-15)


# --- one order, two threads -----------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(
    layout=layouts(),
    weights=st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e9)), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
)
def test_updates_folded_in_order_from_files_are_the_bits_of_a_combiners_partial(layout, weights, seed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / str(place) for place in range(len(weights))]
        total = WeightedSum(layout)
        for place, path in enumerate(paths):
            save_arrays(draw_arrays(layout, seed + place), path)
            if weights[place]:
                total.fold(path, weights[place])
        if not any(weights):
            with pytest.raises(StudioError, match="No update was folded"):
                fold_in_order(paths, weights, layout, folder / "ordered")
            return
        wanted = total.write_mean(folder / "partial", partial=True)
        assert fold_in_order(paths, weights, layout, folder / "ordered") == wanted
        assert (folder / "ordered").read_bytes() == (folder / "partial").read_bytes()
        model = combine_partials([(folder / "ordered", math.fsum(weights))], layout, folder / "model")
        assert model == combine_partials([(folder / "partial", total.weight)], layout, folder / "model")


@settings(max_examples=40, deadline=None)
@given(
    layout=layouts(),
    homes=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
)
def test_a_tree_of_three_levels_gives_the_flat_average(layout, homes, seed):
    """Sites of combiners of clients: the partials of a site are folded into its own as updates are."""
    weights = [1.0 + 7 * place for place in range(len(homes))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        updates = [draw_arrays(layout, seed + place) for place in range(len(homes))]
        combiners: dict[tuple[int, int], WeightedSum] = {}
        for update, weight, home in zip(updates, weights, homes, strict=True):
            save_arrays(update, folder / "update")
            combiners.setdefault(home, WeightedSum(layout)).fold(folder / "update", weight)
        sites: dict[int, list[tuple[Path, float]]] = {}
        for (site, number), total in combiners.items():
            path = folder / f"partial{site}-{number}"
            total.write_mean(path, partial=True)
            sites.setdefault(site, []).append((path, total.weight))
        top = []
        for site, partials in sites.items():
            paths, sums = [path for path, _ in partials], [weight for _, weight in partials]
            fold_in_order(paths, sums, layout.as_float64(), folder / f"site{site}")
            top.append((folder / f"site{site}", math.fsum(sums)))
        combine_partials(top, layout, folder / "model")
        x = {key: np.zeros_like(array) for key, array in updates[0].items()}
        played = Played(layout, x, updates, weights, [{}] * len(updates), {})
        assert_is_near(load_arrays(folder / "model"), ORACLES["fedavg"](played), played)


def test_more_updates_than_may_be_open_at_once_are_folded_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("federation.aggregation.model_files.OPEN_FILES", 2)
    model = {"a": np.zeros(70_001, np.float32), "n": np.array(1), "h": np.ones(5, np.float16)}
    layout = save_arrays(model, tmp_path / "x")
    total, paths = WeightedSum(layout), [tmp_path / f"u{place}" for place in range(5)]
    for place, path in enumerate(paths):
        save_arrays(draw_arrays(layout, place), path)
        total.fold(path, place + 1.0)
    wanted = total.write_mean(tmp_path / "partial", partial=True)
    assert fold_in_order(paths, [place + 1.0 for place in range(5)], layout, tmp_path / "out") == wanted


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_that_share_an_update_make_the_bits_of_one(tmp_path, threads, monkeypatch):
    monkeypatch.setattr("federation.aggregation.accumulate.THREADS_FROM_BYTES", 0)
    model = {
        "w": np.zeros((301, 997), np.float32),
        "h": np.zeros(70_001, np.float16),
        "n": np.zeros(3, np.int64),
    }
    layout = save_arrays(model, tmp_path / "x")
    one, many = WeightedSum(layout), WeightedSum(layout, threads=threads)
    for seed in range(3):
        update = draw_arrays(layout, seed)
        if seed == 1:  # a file that keeps its tensors in another order
            update = dict(reversed(update.items()))
        save_arrays(update, tmp_path / "u")
        one.fold(tmp_path / "u", 0.1 + seed)
        many.fold(tmp_path / "u", 0.1 + seed)
    written = one.write_mean(tmp_path / "one", partial=True)
    assert many.write_mean(tmp_path / "many", partial=True) == written


def test_a_disk_that_is_full_fails_the_model_however_late_it_is_noticed(tmp_path):
    for size in (10, 600_000, 5_000_000):
        with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
            sink = ModelSink(full)
            sink.write(bytes(size))
            assert sink.sha256


def test_counters_and_flags_of_an_optimised_round_are_the_mean(tmp_path):
    x = {"w": np.zeros(2), "steps": np.array([10, 11]), "flag": np.array([True])}
    updates = [
        {"w": np.ones(2), "steps": np.array([20, 12]), "flag": np.array([False])},
        {"w": np.ones(2), "steps": np.array([40, 15]), "flag": np.array([True])},
    ]
    for name in FOLDING:
        found = Rounds.of(tmp_path, name, x).play(updates, metadata=[{"num_steps": 1, "loss": 1.0}] * 2,
                                                  homes=[0, 1])  # fmt: skip
        assert found["steps"].tolist() == [30, 14] and found["flag"].tolist() == [True], name
