"""Every aggregator that a session may name does what its paper says, on any model, and says what it needs."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.aggregation.aggregators import (
    AGGREGATORS,
    Argument,
    Choice,
    Collecting,
    Folding,
    UpdateFacts,
    aggregator_named,
)
from federation.aggregation.codecs import load_arrays
from federation.sessions.config import parse_spec
from foundation.errors import StudioError
from tests.aggregation_oracles import ORACLES, Played, wide
from tests.aggregation_rounds import Rounds, assert_is_near
from tests.random_models import draw_arrays, layouts

NAMES = list(AGGREGATORS)
LEARNING_RATES, BETAS = st.sampled_from([1e-3, 0.1, 1.0]), st.sampled_from([0.0, 0.5, 0.99])
ADAPTIVE = {"learning_rate": LEARNING_RATES, "beta1": BETAS, "tau": st.sampled_from([1e-3, 1e-2])}
HOSTILE = st.integers(0, 2)
ARGUMENTS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "fedavg": {},
    "fedprox": {"proximal_mu": st.sampled_from([0, 0.1])},
    "fednova": {"local_momentum": st.sampled_from([0.0, 0.5, 0.9])},
    "qfedavg": {"q": st.sampled_from([0, 0.2, 1, 5]), "learning_rate": st.sampled_from([0.01, 1.0])},
    "normclip": {"max_norm": st.sampled_from([1e-3, 1.0, 1e6])},
    "fedavgm": {
        "learning_rate": LEARNING_RATES,
        "momentum": BETAS,
        "kind": st.sampled_from(["classical", "nesterov"]),
    },
    "fedadam": {**ADAPTIVE, "beta2": BETAS},
    "fedyogi": {**ADAPTIVE, "beta2": BETAS},
    "fedadagrad": ADAPTIVE,
    "fedopt": {**ADAPTIVE, "beta2": BETAS, "serveropt": st.sampled_from(["adam", "yogi", "adagrad"])},
    "fedmedian": {},
    "trimmedmean": {"beta": st.sampled_from([0, 0.1, 0.25, 0.49])},
    "krum": {"byzantine": HOSTILE},
    "multikrum": {"byzantine": HOSTILE, "keep": st.integers(0, 4)},
    "bulyan": {"byzantine": HOSTILE},
    "geometricmedian": {
        "weights": st.sampled_from(["alike", "examples"]),
        "smoothing": st.sampled_from([1e-6, 0.1]),
        "tolerance": st.sampled_from([1e-9, 1e-3]),
        "max_iterations": st.sampled_from([1, 5, 40]),
    },
}
METADATA = st.fixed_dictionaries(
    {"num_steps": st.integers(1, 500), "loss": st.one_of(st.just(0), st.floats(1e-6, 1e3))}
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data(), layout=layouts(), seed=st.integers(0, 2**32))
def test_every_round_is_that_of_the_paper_however_many_combiners_share_it(name, data, layout, seed):
    arguments = aggregator_named(name).check(data.draw(st.fixed_dictionaries(ARGUMENTS[name])))
    least = aggregator_named(name).least_updates(arguments)
    count = data.draw(st.integers(least, least + 3))
    memory: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        rounds = Rounds.of(Path(folder), name, draw_arrays(layout, seed), arguments)
        for number in range(1 if rounds.arguments == {} or aggregator_named(name).collects else 3):
            x = {key: array.copy() for key, array in load_arrays(rounds.model).items()}
            updates = [draw_arrays(layout, seed + 100 * number + place + 1) for place in range(count)]
            examples = data.draw(st.lists(st.floats(0.5, 1e4), min_size=count, max_size=count))
            metadata = data.draw(st.lists(METADATA, min_size=count, max_size=count))
            homes = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
            played = Played(rounds.layout, x, updates, examples, metadata, arguments, memory=memory)
            wanted = ORACLES[name](played)
            try:
                got = rounds.play(updates, examples=examples, metadata=metadata, homes=homes)
            except StudioError as error:  # FedNova's step may leave what a float16 can hold, in the paper too
                assert error.code == "sum_not_finite" and beyond_range(rounds.layout, wanted)
                return
            assert hashlib.sha256(rounds.model.read_bytes()).hexdigest() == rounds.sha256
            assert_is_near(got, wanted, played, SLACK.get(name, 1e-11))


LARGEST = {"F16": 65504.0, "BF16": 3.38e38, "F32": 3.4e38, "F64": 1.7e308}


def beyond_range(layout, arrays) -> bool:
    """Whether some float tensor's exact numbers leave its dtype."""
    return any(
        float(np.abs(np.asarray(arrays[spec.name], np.float64)).max(initial=0.0)) >= LARGEST[spec.dtype]
        for spec in layout.tensors
        if spec.dtype in LARGEST
    )


# Where v is nearly 0 a rounding error in D is divided by tau; Weiszfeld stops by a comparison that rounding may turn.
SLACK = {"geometricmedian": 1e-4} | dict.fromkeys(
    ("fedadam", "fedyogi", "fedadagrad", "fedopt", "fednova"), 1e-08
)


def test_every_aggregator_has_an_oracle_and_arguments_to_try():
    assert set(ORACLES) == set(ARGUMENTS) == set(NAMES)
    for name, aggregator in AGGREGATORS.items():
        assert {argument.name for argument in aggregator.arguments} == set(ARGUMENTS[name])


@pytest.mark.parametrize("name", NAMES)
def test_every_aggregator_tells_its_paper_and_equation(name):
    aggregator = AGGREGATORS[name]
    text = type(aggregator).__doc__ or ""
    assert re.search(r"\((.|\n)*(19|20)\d\d(.|\n)*\)", text), "authors, title, venue and year"
    assert re.search(r"^ {8}.*(x_\{t\+1\}|F_i\(w\)).*$", text, re.MULTILINE), "the equation, indented"
    assert re.search(r"(19|20)\d\d", aggregator.paper)
    assert aggregator.family in ("averaging", "server optimiser", "robust")
    assert isinstance(aggregator, Collecting if aggregator.collects else Folding)
    assert type(aggregator).__module__.endswith(f".aggregators.{name}"), "one file, found by its name"


@pytest.mark.parametrize("name", NAMES)
def test_every_aggregator_survives_its_least_number_of_updates_and_refuses_one_fewer(tmp_path, name):
    x = {"w": np.zeros(5, np.float32), "steps": np.array(3)}
    updates = [{"w": np.full(5, float(n), np.float32), "steps": np.array(n)} for n in range(1, 200)]
    rounds = Rounds.of(tmp_path, name, x)
    least = AGGREGATORS[name].least_updates(rounds.arguments)
    said = {"num_steps": 3, "loss": 0.5}
    found = rounds.play(updates[:least], metadata=[said] * least)
    assert np.isfinite(found["w"]).all()
    if least > 1:
        with pytest.raises(
            StudioError, match=f"needs at least {least} updates .* there are {least - 1}"
        ) as refused:
            Rounds.of(tmp_path, name, x).play(updates[: least - 1], metadata=[said] * (least - 1))
        assert refused.value.code == "too_few_updates"


@pytest.mark.parametrize("name", NAMES)
def test_every_aggregator_leaves_a_model_that_nobody_changed_as_it_is(tmp_path, name):
    x = {
        "w": np.linspace(-2, 2, 1001, dtype=np.float32),
        "h": np.array([0.1, -65504], np.float16),
        "steps": np.array([5, -7]),
        "flag": np.array([True, False]),
    }
    rounds = Rounds.of(tmp_path, name, x)
    count = max(AGGREGATORS[name].least_updates(rounds.arguments), 4)
    for _ in range(2):
        rounds.play([x] * count, metadata=[{"num_steps": 2, "loss": 0.0}] * count)
        assert rounds.model.read_bytes() == (tmp_path / "model0").read_bytes()


def ends(argument: Argument) -> list[Any]:
    """The least and the largest that an argument takes, and what a person may type beyond all sense."""
    found: list[Any] = []
    tries: tuple[Any, ...] = (0, 1, 5e-324, 1e-200, 1e-12, 0.5, 1 - 1e-16, 1e6, 99_999, 1e99, 1e200, 1.7e308)
    for value in (*argument.words, "") if isinstance(argument, Choice) else tries:
        with contextlib.suppress(StudioError):
            found.append(argument.check(value))
    return found


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, one) for name, aggregator in AGGREGATORS.items() for one in aggregator.arguments],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_whatever_an_argument_takes_makes_a_model_or_a_sentence(
    tmp_path: Path, name: str, argument: Argument
) -> None:
    x: dict[str, Any] = {"w": np.zeros(5, np.float32), "h": np.ones(3, np.float16)}
    updates = [{"w": x["w"] + np.float32(n), "h": x["h"] * np.float16(n)} for n in range(1, 6)]
    said = [{"num_steps": n + 1, "loss": 0.5} for n in range(5)]
    assert ends(argument)
    for number, value in enumerate(ends(argument)):
        folder = tmp_path / str(number)
        folder.mkdir()
        rounds = Rounds.of(folder, name, x, {argument.name: value})
        if rounds.arguments.get("byzantine", 0) > 1 or rounds.arguments.get("keep", 0) > 3:
            continue  # needs more updates than are made here
        count = max(AGGREGATORS[name].least_updates(rounds.arguments), 5)
        try:
            for _ in range(2):
                made = rounds.play((updates * 2)[:count], metadata=(said * 2)[:count])
                assert all(np.isfinite(array).all() for array in made.values())
        except StudioError as error:
            assert error.code == "sum_not_finite", value


NASTY: dict[str, Any] = {
    "nothing": np.zeros((0, 3), np.float32),
    "scalar": np.array(1.5, np.float32),
    "bn.num_batches_tracked": np.array(7, np.int64),
    "mask": np.array([True, False]),
    "bytes": np.array([0, 255], np.uint8),
    "half": np.array([65504, -65504, 6e-8], np.float16),
    "brain": np.array([3.3e38, -1e-38], ml_dtypes.bfloat16),
    "single": np.array([3.4e38, -3.4e38, 1e-45], np.float32),
    "double": np.array([1e150, -1e-300], np.float64),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_aggregator_takes_any_layout_at_the_ends_of_its_dtypes_when_all_updates_are_equal(
    tmp_path: Path, name: str
) -> None:
    """One client, or many that agree, and ties in every score: the largest and smallest numbers of every dtype."""
    rounds = Rounds.of(tmp_path, name, NASTY)
    least = AGGREGATORS[name].least_updates(rounds.arguments)
    for count in {least, least + 1, 12}:
        made = rounds.play([NASTY] * count, metadata=[{"num_steps": 2, "loss": 1.0}] * count)
        assert {key: array.dtype for key, array in made.items()} == {k: a.dtype for k, a in NASTY.items()}
        for key, array in made.items():
            np.testing.assert_allclose(wide(array), wide(NASTY[key]), rtol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", [name for name, one in AGGREGATORS.items() if one.collects])
def test_no_number_of_a_hostile_client_moves_or_stops_a_robust_round(tmp_path: Path, name: str) -> None:
    x: dict[str, Any] = {"w": np.zeros(6), "h": np.zeros(3, np.float16), "n": np.array(3)}
    honest = [
        {"w": np.full(6, 1 + n / 100), "h": np.full(3, n, np.float16), "n": np.array(5 + n)} for n in range(9)
    ]
    for number, huge in enumerate((1.7e308, -1.7e308, 1e200, 1e154, 1e30, 5e-324)):
        folder = tmp_path / str(number)
        folder.mkdir()
        hostile = {
            "w": np.array([huge, -huge, huge, 0, huge, 1.0]),
            "h": np.full(3, -65504, np.float16),
            "n": np.array(np.iinfo(np.int64).max),
        }
        made = Rounds.of(folder, name, x).play([*honest[:4], hostile, *honest[4:]])
        assert ((made["w"] >= 0.99) & (made["w"] <= 1.09)).all(), (huge, made["w"])
        assert ((made["h"] >= -1) & (made["h"] <= 9)).all(), huge


@pytest.mark.parametrize("name", [name for name, one in AGGREGATORS.items() if one.collects])
def test_a_robust_round_tells_that_every_client_counts_alike(name: str) -> None:
    """Pages show an update's weight: its examples are not what it counts."""
    facts = UpdateFacts(key="a", num_examples=132.0, metadata={}, base="b")
    aggregator = AGGREGATORS[name]
    assert aggregator.fold_weight(facts, aggregator.check({})) == 1.0


def test_a_geometric_median_by_examples_tells_so() -> None:
    aggregator = AGGREGATORS["geometricmedian"]
    facts = UpdateFacts(key="a", num_examples=132.0, metadata={}, base="b")
    assert aggregator.fold_weight(facts, aggregator.check({"weights": "examples"})) == 132.0


@pytest.mark.parametrize("name", NAMES)
def test_a_session_that_could_end_a_round_with_too_few_updates_is_refused_when_it_is_asked_for(name):
    asked = {"seed_model": "00000000-0000-0000-0000-000000000001", "aggregator": name}
    least = AGGREGATORS[name].least_updates(AGGREGATORS[name].check({}))
    assert parse_spec({**asked, "min_clients": least}).config.aggregator == name
    assert parse_spec({**asked, "min_updates": least}).config.needed_updates == least
    if least > 1:
        with pytest.raises(StudioError, match=f"set min_updates to {least} or more") as refused:
            parse_spec({**asked, "min_clients": least - 1})
        assert refused.value.data == {"field": "min_updates"}
