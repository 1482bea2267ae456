"""Robust aggregators compare the updates themselves: hostile ones lose, ties are settled, and the work may be shared
out without changing a bit."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.aggregation import model_files
from federation.aggregation.aggregators import (
    AGGREGATORS,
    Collecting,
    Reduction,
    UpdateFacts,
    aggregator_named,
    assemble,
    part_ranges,
)
from federation.aggregation.aggregators.trimmedmean import trimmed
from federation.aggregation.codecs import save_arrays
from federation.aggregation.layout import Layout, TensorSpec
from foundation.errors import StudioError
from tests.aggregation_oracles import Arrays, wide
from tests.aggregation_rounds import Rounds
from tests.random_models import draw_arrays, layouts

COLLECTING = [name for name, one in AGGREGATORS.items() if one.collects]
MEASURING = [name for name in COLLECTING if AGGREGATORS[name].measures]


def reduction(
    folder: Path, x: Arrays, updates: list[Arrays], examples: list[float] | None = None
) -> Reduction:
    layout = save_arrays(x, folder / "x")
    paths = [folder / f"update{place}" for place in range(len(updates))]
    for path, update in zip(paths, updates, strict=True):
        save_arrays(update, path)
    said = examples or [1.0] * len(updates)
    facts = [UpdateFacts(f"{place:04}", said[place], {}, "x") for place in range(len(updates))]
    return Reduction(
        layout, lambda: folder / "x", folder / "out", folder / "state",
        updates=facts, collected=paths, model_id="x",
    )  # fmt: skip


# --- against attackers ----------------------------------------------------------------------------------------------
ATTACKS = {
    "far away": lambda rng, honest: np.full_like(honest, 1e30),
    "as far as floats go": lambda rng, honest: np.full_like(honest, 3e38),
    "the other way": lambda rng, honest: -100 * honest,
    "noise": lambda rng, honest: rng.standard_normal(honest.shape).astype(np.float32) * 1e4,
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", COLLECTING)
@pytest.mark.parametrize("first", [True, False])
def test_two_hostile_clients_of_eleven_hardly_move_the_model(tmp_path, name, attack, first):
    rng = np.random.default_rng(5)
    truth = rng.standard_normal(3000).astype(np.float32)
    honest = [{"w": truth + rng.standard_normal(3000).astype(np.float32) * 0.1} for _ in range(9)]
    hostile = [{"w": ATTACKS[attack](rng, truth)} for _ in range(2)]
    updates = hostile + honest if first else honest + hostile
    given = {"byzantine": 2} if name in ("krum", "multikrum", "bulyan") else {}
    found = Rounds.of(tmp_path, name, {"w": np.zeros(3000, np.float32)}, given).play(updates)
    error = np.abs(wide(found["w"]) - wide(truth))
    # An honest client alone is off by up to 0.1 * 4; plain averaging would be off by a fifth of the attack.
    assert error.max() < 0.6 and error.mean() < 0.1


def test_a_client_that_claims_all_examples_of_the_world_counts_like_any_other(tmp_path):
    for name in COLLECTING:
        updates = [{"w": np.array([float(place)])} for place in range(9)]
        alike = Rounds.of(tmp_path, name, {"w": np.zeros(1)}).play(updates)["w"].copy()
        claimed = Rounds.of(tmp_path, name, {"w": np.zeros(1)}).play(updates, examples=[1e12] + [1.0] * 8)[
            "w"
        ]
        assert alike == claimed, name


def test_one_update_from_far_away_does_not_drown_the_distances_between_the_others(tmp_path):
    """Were changes taken from their mean, the honest ones would all be 1e19 off, and equal in float64."""
    x = {"w": np.zeros(50)}
    honest = [{"w": np.full(50, value)} for value in (1.0, 2.0, 2.1, 2.2, 9.0)]
    rounds = Rounds.of(tmp_path, "krum", x)
    assert rounds.play([{"w": np.full(50, 1e20)}, *honest])["w"][0] == 2.0


@pytest.mark.parametrize("name", MEASURING)
def test_changes_too_long_to_be_squared_are_infinitely_far(tmp_path, name):
    updates = [
        {"w": np.array([value])} for value in (1e200, -1e200, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8)
    ]
    given = {"byzantine": 2} if name != "geometricmedian" else {}
    assert 0.9 < Rounds.of(tmp_path, name, {"w": np.zeros(1)}, given).play(updates)["w"][0] < 1.9


def test_no_geometric_median_is_made_up_where_nothing_can_be_measured(tmp_path):
    with pytest.raises(StudioError, match="too far from the model") as refused:
        Rounds.of(tmp_path, "geometricmedian", {"w": np.zeros(1)}).play([{"w": np.array([1e200])}] * 3)
    assert refused.value.code == "sum_not_finite"


# --- ties, few clients ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [3, 4, 5, 7, 11])
def test_of_equally_good_updates_krum_takes_the_first_clients(tmp_path, count):
    updates = [{"w": np.array([1.0, 0.0]), "n": np.array(place)} for place in range(count)]
    for name, arguments in (("krum", {"byzantine": 0}), ("multikrum", {"byzantine": 0, "keep": 1})):
        rounds = Rounds.of(tmp_path, name, {"w": np.zeros(2), "n": np.array(0)}, arguments)
        assert rounds.play(updates)["n"] == 0


def test_two_equal_pairs_are_settled_by_order(tmp_path):
    updates = [{"w": np.array([value])} for value in (5.0, 1.0, 1.5, 5.5, 100.0)]
    rounds = Rounds.of(tmp_path, "multikrum", {"w": np.zeros(1)}, {"byzantine": 1, "keep": 2})
    # n - f - 2 = 2 nearest: 5.0 has 0.25 + 12.25, 1.0 has 0.25 + 16, 1.5 has 0.25 + 12.25, 5.5 has 0.25 + 16
    assert rounds.play(updates)["w"][0] == (5.0 + 1.5) / 2


def test_krum_takes_one_update_whole_with_its_counters(tmp_path):
    updates = [draw_arrays(LAYOUT, seed) for seed in range(6)]
    found = Rounds.of(tmp_path, "krum", draw_arrays(LAYOUT, 99)).play(updates)
    assert any(all((found[name] == update[name]).all() for name in found) for update in updates)


LAYOUT = Layout(
    (
        TensorSpec("w", "F32", (33, 7)),
        TensorSpec("h", "BF16", (9,)),
        TensorSpec("steps", "I64", ()),
        TensorSpec("flag", "BOOL", (3,)),
    )
)


@pytest.mark.parametrize(
    ("name", "given", "least"),
    [
        ("krum", {"byzantine": 0}, 3),
        ("krum", {"byzantine": 3}, 9),
        ("multikrum", {"byzantine": 1, "keep": 0}, 5),
        ("multikrum", {"byzantine": 1, "keep": 4}, 7),
        ("bulyan", {"byzantine": 0}, 3),
        ("bulyan", {"byzantine": 2}, 11),
        ("fedmedian", {}, 1),
        ("trimmedmean", {"beta": 0.4}, 1),
        ("geometricmedian", {}, 1),
    ],
)
def test_the_papers_conditions_say_how_many_updates_are_needed(tmp_path, name, given, least):
    aggregator = aggregator_named(name)
    assert aggregator.least_updates(aggregator.check(given)) == least
    rounds = Rounds.of(tmp_path, name, {"w": np.zeros(2)}, given)
    assert np.isfinite(rounds.play([{"w": np.full(2, float(n))} for n in range(least)])["w"]).all()
    with pytest.raises(StudioError, match=f"needs at least {least} updates"):
        rounds.play([{"w": np.full(2, float(n))} for n in range(least - 1)])


@pytest.mark.parametrize(
    ("beta", "count", "cut"),
    [
        (0.2, 4, 0),
        (0.2, 5, 1),
        (0.29, 100, 29),
        (0.1, 10, 1),
        (0.49, 3, 1),
        (0.49, 2, 0),
        (0.49, 1, 0),
        (0, 9, 0),
    ],
)
def test_a_share_is_trimmed_as_it_was_typed(beta, count, cut):
    assert trimmed(beta, count) == cut


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("krum", {"byzantine": -1}, "byzantine must be a whole number from 0 to below 100000, not -1."),
        ("krum", {"byzantine": 1.5}, "byzantine must be a whole number from 0 .*, not 1.5."),
        ("bulyan", {"byzantine": "1"}, "byzantine must be a whole number .*, not '1'."),
        ("multikrum", {"keep": float("inf")}, "keep must be a whole number .*, not inf."),
        ("trimmedmean", {"beta": 0.5}, "beta must be a number from 0 to below 0.5, not 0.5."),
        ("geometricmedian", {"smoothing": 0}, "smoothing must be a number above 0, not 0."),
        ("geometricmedian", {"max_iterations": 0}, "max_iterations must be a whole number from 1 "),
        ("geometricmedian", {"weights": "mine"}, "weights must be one of alike, examples, not 'mine'."),
    ],
)
def test_an_argument_that_cannot_be_is_refused_with_what_would_be_right(name, given, sentence):
    with pytest.raises(StudioError, match=sentence):
        aggregator_named(name).check(given)


def test_a_whole_number_may_come_as_a_float_from_a_form():
    found = aggregator_named("krum").check({"byzantine": 2.0})["byzantine"]
    assert found == 2 and type(found) is int


def test_updates_that_are_not_all_there_are_never_combined(tmp_path):
    files = reduction(tmp_path, {"w": np.zeros(2)}, [{"w": np.ones(2)}] * 5)
    with pytest.raises(StudioError, match="not all there"):
        aggregator_named("fedmedian").reduce(dataclasses.replace(files, collected=files.collected[:4]), {})
    files.collected[2].unlink()
    with pytest.raises(FileNotFoundError):
        aggregator_named("fedmedian").reduce(files, {})
    assert not files.out.exists()


@pytest.mark.parametrize("name", COLLECTING)
def test_an_update_cut_short_or_of_another_model_is_refused_and_nothing_is_written(tmp_path, name):
    files = reduction(tmp_path, {"w": np.zeros(70_001)}, [{"w": np.ones(70_001)}] * 7)
    save_arrays({"v": np.ones(70_001)}, files.collected[3])
    arguments = aggregator_named(name).check({})
    with pytest.raises(StudioError, match="does not fit the model"):
        aggregator_named(name).reduce(files, arguments)
    save_arrays({"w": np.ones(70_001)}, files.collected[3])
    with files.collected[3].open("r+b") as file:
        file.truncate(300_000)
    with pytest.raises(StudioError) as refused:
        aggregator_named(name).reduce(files, arguments)
    assert refused.value.code == "invalid_model" and not files.out.exists()


# --- shared out -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", COLLECTING)
@settings(max_examples=12, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 2**32), data=st.data())
def test_parts_made_apart_are_the_bytes_of_the_whole(name, layout, seed, data):
    aggregator = AGGREGATORS[name]
    assert isinstance(aggregator, Collecting)
    arguments = aggregator.check({})
    count = aggregator.least_updates(arguments) + data.draw(st.integers(0, 4))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(model_files, "MIN_PART_ELEMENTS", data.draw(st.sampled_from([1, 7, 1000, 30_000])))
        patched.setattr(model_files, "PART_BYTES", 0)
        if layout.count > 1000:
            patched.setattr(model_files, "MIN_PART_ELEMENTS", 20_011)
        updates = [draw_arrays(layout, seed + place + 1) for place in range(count)]
        files = reduction(Path(folder), draw_arrays(layout, seed), updates)
        whole = aggregator.reduce(files, arguments)
        ranges = part_ranges(files.layout, count)
        assert [begin for begin, _ in ranges[1:]] == [end for _, end in ranges[:-1]]
        assert (ranges[0][0], ranges[-1][1]) == (0, layout.count)
        backwards = (
            {at: aggregator.measure(files, *at) for at in reversed(ranges)} if aggregator.measures else {}
        )
        measured = [backwards[at] for at in ranges] if aggregator.measures else []
        plan = json.loads(json.dumps(aggregator.plan(measured, files.updates, arguments)))
        parts = [Path(folder) / f"part{place}" for place in range(len(ranges))]
        for (begin, end), part in reversed(list(zip(ranges, parts, strict=True))):
            aggregator.combine(files, plan, begin, end, part)
        assert assemble(files.layout, parts, Path(folder) / "assembled") == whole
        assert (Path(folder) / "assembled").read_bytes() == files.out.read_bytes()


def test_parts_that_do_not_make_up_the_model_are_refused(tmp_path):
    layout = save_arrays({"w": np.ones(10)}, tmp_path / "x")
    (tmp_path / "part").write_bytes(bytes(72))
    with pytest.raises(StudioError, match="72 bytes; it should be 80"):
        assemble(layout, [tmp_path / "part"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_how_a_model_is_cut_depends_on_its_size_and_the_clients_alone():
    small = Layout((TensorSpec("w", "F32", (1000,)),))
    large = Layout((TensorSpec("w", "F32", (125_000_000,)),))  # 500 MB
    assert part_ranges(small, 5000) == [(0, 1000)]
    assert part_ranges(Layout((TensorSpec("w", "F32", (0,)),)), 3) == [(0, 0)]
    assert len(part_ranges(large, 1)) == 1
    cut = part_ranges(large, 100)
    assert 40 < len(cut) < 60 and cut == part_ranges(large, 100)
    assert all(end - begin >= model_files.MIN_PART_ELEMENTS for begin, end in cut[:-1])


@pytest.mark.parametrize("name", COLLECTING)
def test_the_same_updates_in_the_same_order_make_the_same_bytes_every_time(tmp_path, name):
    updates = [draw_arrays(LAYOUT, seed) for seed in range(9)]
    files = reduction(tmp_path, draw_arrays(LAYOUT, 50), updates)
    arguments = aggregator_named(name).check({})
    assert len({aggregator_named(name).reduce(files, arguments) for _ in range(3)}) == 1


def test_more_updates_than_may_be_open_at_once_are_compared_all_the_same(tmp_path, monkeypatch):
    files = reduction(tmp_path, draw_arrays(LAYOUT, 50), [draw_arrays(LAYOUT, seed) for seed in range(9)])
    for name in COLLECTING:
        arguments = aggregator_named(name).check({})
        wanted = aggregator_named(name).reduce(files, arguments)
        with monkeypatch.context() as patched:
            patched.setattr(model_files, "OPEN_FILES", 3)
            assert aggregator_named(name).reduce(files, arguments) == wanted


def test_updates_whose_files_keep_another_order_are_compared_by_name(tmp_path):
    a, b = np.arange(4, dtype=np.float32), np.arange(70_001, dtype=np.float32)
    updates = [{"a": a + n, "b": b - n} for n in range(7)]
    files = reduction(tmp_path, {"a": a, "b": b}, updates)
    for name in COLLECTING:
        arguments = aggregator_named(name).check({})
        wanted = aggregator_named(name).reduce(files, arguments)
        for update, path in zip(updates[::2], files.collected[::2], strict=True):
            save_arrays(dict(reversed(update.items())), path)
        assert aggregator_named(name).reduce(files, arguments) == wanted


@pytest.mark.parametrize("name", COLLECTING)
def test_comparing_20_updates_of_5_mb_takes_blocks_of_them_in_memory(tmp_path, name):
    x = {f"w{n}": np.full(312_500, n, np.float32) for n in range(4)}
    files = reduction(tmp_path, x, [{key: array + n for key, array in x.items()} for n in range(20)])
    arguments = aggregator_named(name).check({})
    aggregator_named(name).reduce(files, arguments)
    tracemalloc.start()
    try:
        aggregator_named(name).reduce(files, arguments)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
