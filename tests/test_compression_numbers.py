"""Compressed updates as numbers: the client's rounding and the server's reading agree, and feedback loses nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from studio_sdk import compressed as client

from federation.aggregation import compressed as server
from federation.aggregation.codecs import load_arrays, save_arrays
from federation.aggregation.layout import DTYPES, FLOATS, Layout, TensorSpec
from federation.sessions.config.session import COMPRESSIONS
from tests.random_models import draw_arrays, layouts

FORMS = sorted(set(COMPRESSIONS) - {"none"})
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("numbers")


class Client:
    """A client's files for one session after another."""

    numbers: Iterator[int] = itertools.count()

    def __init__(self, folder: Path, form: str) -> None:
        self.folder = folder / str(next(self.numbers))
        self.folder.mkdir()
        self.form = form
        self.owed: Path | None = None
        self.layout: Layout

    def send(self, model: Arrays, update: Arrays, *, feedback: bool = True) -> Arrays:
        """Compress against the model; what the server makes of it. `sent` is the file that travels."""
        self.model, self.sent = self.folder / "model", self.folder / "sent"
        self.layout = save_arrays(model, self.model)
        save_arrays(update, self.folder / "update")
        owed = self.folder / f"owed-{next(self.numbers)}"
        change = client.Change(self.model, self.folder / "update", self.owed)
        self.sha256 = client.compress(change, self.form, self.sent, owed)
        self.owed = owed if feedback else None
        return read(self.folder, self.layout, self.form)


def read(folder: Path, layout: Layout, form: str) -> Arrays:
    plain = folder / "plain"
    with (folder / "model").open("rb", buffering=0) as model:
        server.decompress(folder / "sent", model, plain, layout, form)
    return load_arrays(plain)


def oracle(model: np.ndarray, change: np.ndarray, form: str) -> np.ndarray:
    """What the server should see of one tensor, in plain numpy: float64 throughout, rounded once."""
    largest = np.abs(change).max()
    if form == "int8":
        scale = largest / 127
        sent = np.clip(np.rint(change / scale), -127, 127) if scale else np.zeros_like(change)
    else:
        scale = 2.0 ** (np.frexp(largest)[1] - 15) if largest else 0.0
        scaled = change / scale if scale else np.zeros_like(change)
        sent = scaled.astype(np.float16).astype(np.float64) if form == "float16" else to_bfloat16(scaled)
    return np.asarray(sent * scale + model.astype(np.float64)).astype(model.dtype)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest of 8 significant bits, ties to even. (ml_dtypes goes by way of float32, and so rounds twice.)"""
    step = np.ldexp(1.0, np.maximum(np.frexp(values)[1], -125) - 8)
    return np.asarray(np.rint(values / step) * step)


def test_both_sides_know_every_compression_that_a_session_may_have() -> None:
    assert sorted(client.FORMS) == sorted(server.FORMS) == FORMS
    assert client.FORMS == server.FORMS


# with this seed a change lies so near the middle between two bfloat16s that float32 calls it the middle
ON_A_TIE = Layout(
    (
        TensorSpec("0", "BF16", ()),
        TensorSpec("1", "BOOL", ()),
        TensorSpec("2", "BF16", ()),
        TensorSpec("10", "F32", (70001,)),
    )
)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 2**32 - 1), power=st.integers(-30, 20))
@example(layout=ON_A_TIE, seed=16, power=0)
def test_any_model_comes_back_as_plain_numpy_says(
    folder: Path, form: str, layout: Layout, seed: int, power: int
) -> None:
    model = draw_arrays(layout, seed)
    update = draw_arrays(layout, seed + 1)
    rng = np.random.default_rng(seed)
    for spec in layout.tensors:
        if spec.dtype in FLOATS:
            moved = model[spec.name].astype(np.float64) + rng.standard_normal(spec.shape) * 2.0**power
            update[spec.name] = np.clip(moved, -6e4, 6e4).astype(DTYPES[spec.dtype])
    narrowed = {spec.name for spec in layout.tensors if server.is_narrowed(spec, form)}
    sender = Client(folder, form)
    if not narrowed:
        with pytest.raises(client.NotCompressible, match="smaller"):
            sender.send(model, update)
        return
    seen = sender.send(model, update)
    assert list(seen) == list(model)
    for name, array in seen.items():
        assert array.dtype == model[name].dtype and array.shape == model[name].shape
        if name not in narrowed:
            assert array.tobytes() == update[name].tobytes(), f"{name} travels as it is"
            continue
        change = update[name].astype(np.float64) - model[name].astype(np.float64)
        assert array.tobytes() == oracle(model[name], change, form).tobytes(), name
    plain = sum(array.nbytes for array in model.values())
    assert sum(array.nbytes for array in load_arrays(sender.sent).values()) < plain


NARROWING = [
    (form, dtype)
    for form in FORMS
    for dtype in sorted(FLOATS)
    if server.is_narrowed(TensorSpec("w", dtype, (300,)), form)
]


@pytest.mark.parametrize(("form", "dtype"), NARROWING)
def test_nothing_is_lost_in_the_long_run(folder: Path, form: str, dtype: str) -> None:
    """What the server saw, summed, and what is still owed, is the sum of all changes; and that debt stays small."""
    rng = np.random.default_rng(5)
    model = {"w": rng.standard_normal(300).astype(DTYPES[dtype]), "b": np.zeros(40, DTYPES[dtype])}
    fed, without = Client(folder, form), Client(folder, form)
    true, saw, saw_without = (np.zeros(300) for _ in range(3))
    steps = 2.0 ** np.linspace(-9, 0, 300)  # small changes beside large ones: what plain rounding forgets
    for _ in range(60):
        update = {
            name: (array.astype(np.float64) + 0.01 * (steps if name == "w" else 1)).astype(DTYPES[dtype])
            for name, array in model.items()
        }
        base = model["w"].astype(np.float64)
        true += update["w"].astype(np.float64) - base
        saw += fed.send(model, update)["w"].astype(np.float64) - base
        saw_without += without.send(model, update, feedback=False)["w"].astype(np.float64) - base
    assert fed.owed is not None
    kind = "<f8" if dtype == "F64" else "<f4"
    owed = np.frombuffer(fed.owed.read_bytes(), kind, 300).astype(np.float64)
    np.testing.assert_allclose(saw + owed, true, rtol=1e-5, atol=1e-7)
    largest = 0.01 + np.abs(owed).max()
    ulp = np.abs(model["w"].astype(np.float64)) * float(ml_dtypes.finfo(DTYPES[dtype]).eps)
    assert (np.abs(owed) <= largest / 127 + ulp).all(), "at most one rounding"
    assert np.abs(saw - true).max() <= np.abs(saw_without - true).max()
    if form == "int8" and dtype in ("F32", "F64"):
        assert np.abs(saw - true).max() < 0.1 * np.abs(saw_without - true).max()


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(NARROWING),
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8),
    power=st.integers(-20, 3),
)
def test_whatever_is_trained_round_after_round_is_seen_or_owed(
    folder: Path, kind: tuple[str, str], seeds: list[int], power: int
) -> None:
    """The model moves as well, and every change is another; what was seen and what is owed add up all the same."""
    form, dtype = kind
    sender = Client(folder, form)
    model = {"w": np.zeros(64, DTYPES[dtype])}
    true, saw, largest = np.zeros(64), np.zeros(64), 0.0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        base = model["w"].astype(np.float64)
        wide = base + rng.standard_normal(64) * 2.0 ** (power + rng.integers(-6, 6))
        update = {"w": wide.astype(DTYPES[dtype])}
        change = update["w"].astype(np.float64) - base
        true += change
        largest = max(largest, np.abs(change).max())
        seen = sender.send(model, update)["w"]
        saw += seen.astype(np.float64) - base
        model = {"w": np.array(seen)}
    assert sender.owed is not None
    owed = np.frombuffer(sender.owed.read_bytes(), "<f8" if dtype == "F64" else "<f4").astype(np.float64)
    np.testing.assert_allclose(saw + owed, true, rtol=0, atol=1e-6 * largest * len(seeds))
    ulp = np.abs(model["w"].astype(np.float64)).max() * float(ml_dtypes.finfo(DTYPES[dtype]).eps)
    # a debt is at most one rounding of a change that held the debt before: half a step, and a little of that
    assert np.abs(owed).max() <= (1.01 * largest) * 0.5 / 127 + ulp + 1e-300


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.floats(allow_nan=False, allow_infinity=False, width=32) | st.floats(-1e3, 1e3),
        min_size=1,
        max_size=40,
    )
)
def test_bfloat16_is_rounded_without_a_library_as_the_library_rounds(values: list[float]) -> None:
    wide = np.array(values)
    got = client._bfloat16(wide).view(ml_dtypes.bfloat16).astype(np.float64)
    # exact neighbours: the nearest of the three bfloat16s around
    guess = wide.astype(np.float32).astype(ml_dtypes.bfloat16)
    for step in (-1, 0, 1):
        bits = (guess.view(np.int16).astype(np.int32) + step).astype(np.int16)
        other = bits.view(ml_dtypes.bfloat16).astype(np.float64)
        fits = np.isfinite(other) & np.isfinite(got)
        assert (np.abs(got - wide)[fits] <= np.abs(other - wide)[fits]).all()


def test_a_tie_between_two_bfloat16s_is_not_rounded_twice() -> None:
    """1 + 2^-8 + 2^-40 lies above a tie; by way of float32 it would fall on it, and go down."""
    for number, bits in ((1 + 2.0**-8 + 2.0**-40, 0x3F81), (1 + 2.0**-8, 0x3F80), (1 + 3 * 2.0**-8, 0x3F82)):
        assert client._bfloat16(np.array([number]))[0] == bits
        assert client._bfloat16(np.array([-number]))[0] == bits | 0x8000


@pytest.mark.parametrize("form", FORMS)
def test_no_change_is_no_change(folder: Path, form: str) -> None:
    model = {"w": np.arange(50, dtype=np.float32), "tiny": np.full(50, 3e-45, np.float32)}
    sender = Client(folder, form)
    seen = sender.send(model, model)
    assert all(seen[name].tobytes() == model[name].tobytes() for name in model)
    assert sender.owed is not None and not any(sender.owed.read_bytes())


@pytest.mark.parametrize("form", FORMS)
def test_changes_at_the_ends_of_float64_are_sent_or_owed(folder: Path, form: str) -> None:
    model = {"w": np.zeros(50)}
    for largest in (5e-324, 1e-310, 1e300):
        update = {"w": np.linspace(-largest, largest, 50)}
        sender = Client(folder, form)
        seen = sender.send(model, update)["w"]
        assert sender.owed is not None
        owed = np.frombuffer(sender.owed.read_bytes(), "<f8")
        np.testing.assert_array_equal(seen + owed, update["w"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_travels_as_it_is_for_the_server_to_refuse(
    folder: Path, form: str, wrong: float
) -> None:
    model = {"w": np.zeros(50, np.float32)}
    update = {"w": np.zeros(50, np.float32)}
    update["w"][7] = wrong
    with pytest.raises(client.NotCompressible, match="finite"):
        Client(folder, form).send(model, update)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "update",
    [
        {"w": np.zeros((10, 5), np.float32)},
        {"w": np.zeros(50, np.float64)},
        {"v": np.zeros(50, np.float32)},
        {"w": np.zeros(50, np.float32), "v": np.zeros(50, np.float32)},
    ],
    ids=["shape", "dtype", "name", "more"],
)
def test_an_update_of_another_layout_travels_as_it_is_for_the_server_to_refuse(
    folder: Path, form: str, update: Arrays
) -> None:
    with pytest.raises(client.NotCompressible):
        Client(folder, form).send({"w": np.zeros(50, np.float32)}, update)


def test_a_debt_of_another_size_counts_for_nothing(folder: Path) -> None:
    model = {"w": np.zeros(50, np.float32)}
    update = {"w": np.linspace(0, 1, 50, dtype=np.float32)}
    fresh, odd = Client(folder, "int8"), Client(folder, "int8")
    odd.owed = folder / "odd"
    odd.owed.write_bytes(bytes(4 * 49))
    assert fresh.send(model, update)["w"].tobytes() == odd.send(model, update)["w"].tobytes()


def test_the_same_training_makes_the_same_bytes(folder: Path) -> None:
    model = draw_arrays(Layout.ordered([TensorSpec("w", "F32", (500,))]), 1)
    update = draw_arrays(Layout.ordered([TensorSpec("w", "F32", (500,))]), 2)
    one, other = Client(folder, "int8"), Client(folder, "int8")
    for sender in (one, other):
        sender.send(model, update)
        sender.send(model, update)
    assert one.sha256 == other.sha256
    assert one.sent.read_bytes() == other.sent.read_bytes()


def test_the_scales_never_take_a_name_of_the_models(folder: Path) -> None:
    model = {"scales": np.zeros(50, np.float32), "_scales": np.ones(50, np.float32)}
    update = {name: array + np.float32(0.5) for name, array in model.items()}
    sender = Client(folder, "int8")
    seen = sender.send(model, update)
    assert set(load_arrays(sender.sent)) == {"scales", "_scales", "__scales"}
    assert all(np.allclose(seen[name], update[name]) for name in model)
