"""Model files as FEDn's helpers write and read them: arrays by number, and bare floats without a header."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.aggregation.codecs import (
    check_update,
    load_arrays,
    raw_to_canonical,
    save_arrays,
    to_canonical,
    to_npz,
    to_raw,
)
from federation.aggregation.layout import DTYPES, FLOATS, Layout, TensorSpec
from foundation.errors import StudioError
from tests.random_models import assert_is_rounded, draw_arrays, layouts

CAP = 10**9
WIDTHS = sorted(FLOATS)


def for_npz(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 2**32))
def test_a_model_goes_out_by_number_and_its_update_comes_back_under_the_models_names(layout, seed):
    arrays = draw_arrays(layout, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_arrays(arrays, folder / "model")
        to_npz(folder / "model", folder / "out.npz", positional=True)
        with np.load(folder / "out.npz") as sent:
            assert sent.files == [str(place) for place in range(len(arrays))]
            for key, array in zip(sent.files, arrays.values()):
                assert sent[key].dtype == for_npz(array).dtype
                assert sent[key].tobytes() == for_npz(array).tobytes()
        update = {str(place): for_npz(array) for place, array in enumerate(arrays.values())}
        np.savez_compressed(folder / "update.npz", **update)
        found = to_canonical(folder / "update.npz", folder / "back", max_bytes=CAP, expected=layout)
        assert found == layout
        assert (folder / "back").read_bytes() == (folder / "model").read_bytes()


def test_numbers_are_names_where_the_model_has_them_or_has_another_count_of_tensors(tmp_path):
    update = {str(place): np.full(2, place, np.float32) for place in range(3)}
    np.savez(tmp_path / "update.npz", **update)
    own = Layout(tuple(TensorSpec(name, "F32", (2,)) for name in ("2", "0", "1")))
    assert (
        own.difference(to_canonical(tmp_path / "update.npz", tmp_path / "a", max_bytes=CAP, expected=own))
        is None
    )
    assert load_arrays(tmp_path / "a")["2"].tolist() == [2, 2]
    two = Layout(tuple(TensorSpec(name, "F32", (2,)) for name in ("w", "b")))
    kept = to_canonical(tmp_path / "update.npz", tmp_path / "b", max_bytes=CAP, expected=two)
    assert [spec.name for spec in kept.tensors] == ["0", "1", "2"]


@pytest.mark.parametrize("keys", [("0", "2"), ("1", "2"), ("0", "01"), ("0", "b")])
def test_names_that_are_no_places_from_zero_are_taken_as_they_are(tmp_path, keys):
    np.savez(tmp_path / "update.npz", **{key: np.ones(2, np.float32) for key in keys})
    model = Layout(tuple(TensorSpec(name, "F32", (2,)) for name in ("w", "b")))
    found = to_canonical(tmp_path / "update.npz", tmp_path / "out", max_bytes=CAP, expected=model)
    assert {spec.name for spec in found.tensors} == set(keys)


def test_safetensors_says_names_and_is_never_read_by_place(tmp_path):
    save_arrays({"0": np.ones(2), "1": np.ones(2)}, tmp_path / "update")
    model = Layout((TensorSpec("w", "F64", (2,)), TensorSpec("b", "F64", (2,))))
    found = to_canonical(tmp_path / "update", tmp_path / "out", max_bytes=CAP, expected=model)
    assert [spec.name for spec in found.tensors] == ["0", "1"]


@settings(max_examples=80, deadline=None)
@given(
    held=st.sampled_from(WIDTHS),
    sent=st.sampled_from(WIDTHS),
    shape=st.sampled_from([(), (0,), (3, 5), (70_001,)]),
    seed=st.integers(0, 2**32),
    places=st.booleans(),
)
def test_floats_take_the_width_that_the_model_holds_rounded_once(held, sent, shape, seed, places):
    model = Layout((TensorSpec("layer/w", held, shape), TensorSpec("steps", "I64", ())))
    given_arrays = draw_arrays(Layout((TensorSpec("layer/w", sent, shape), model.tensors[1])), seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if places:
            given_arrays = {key: for_npz(array) for key, array in given_arrays.items()}
            np.savez(folder / "update", **dict(zip("01", given_arrays.values())))
            (folder / "update.npz").rename(folder / "update")
        else:
            save_arrays(given_arrays, folder / "update")
        found = to_canonical(folder / "update", folder / "out", max_bytes=CAP, expected=model)
        assert found == model
        check_update(folder / "out", model, max_bytes=CAP)
        values = given_arrays["layer/w"].astype(np.float64)
        got = load_arrays(folder / "out")["layer/w"]
        if held == "BF16":  # numpy has no word on it: none of its neighbours may be nearer
            assert_is_rounded(got, values.astype(np.longdouble), 0.0)
        else:
            assert got.tobytes() == values.astype(DTYPES[held]).tobytes()
        assert load_arrays(folder / "out")["steps"] == given_arrays["steps"]


@pytest.mark.parametrize(("sent", "held", "large"), [
    (np.float64, "F32", 3.5e38), (np.float32, "F16", 65520.0), (np.float64, "F16", -1e6), (np.float32, "BF16", 3.4e38),
])  # fmt: skip
def test_a_number_too_large_for_the_models_width_is_refused_by_the_models_own_name(
    tmp_path, sent, held, large
):
    model = Layout((TensorSpec("first", held, (2,)), TensorSpec("second", held, (70_000,))))
    values = np.ones(70_000, sent)
    values[-1] = large
    np.savez(tmp_path / "update.npz", **{"0": np.ones(2, sent), "1": values})
    with pytest.raises(StudioError, match=f"'second' holds a number too large for {held}") as refused:
        to_canonical(tmp_path / "update.npz", tmp_path / "out", max_bytes=CAP, expected=model)
    assert (refused.value.code, refused.value.data) == ("not_finite", {"tensor": "second"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sent", "held"), [("F32", "I64"), ("I64", "F32"), ("I32", "I64"), ("U8", "BOOL"), ("BOOL", "F16")]
)
def test_integers_and_booleans_are_never_converted(tmp_path, sent, held):
    save_arrays(draw_arrays(Layout((TensorSpec("n", sent, (3,)),)), 1), tmp_path / "update")
    model = Layout((TensorSpec("n", held, (3,)),))
    found = to_canonical(tmp_path / "update", tmp_path / "out", max_bytes=CAP, expected=model)
    assert model.difference(found) == f"Tensor 'n' has dtype {sent}; it should be {held}."


def test_a_tensor_of_another_shape_is_not_widened_on_its_way_to_a_refusal(tmp_path):
    np.savez(tmp_path / "update.npz", **{"0": np.ones((4, 1000), np.float16)})
    model = Layout((TensorSpec("w", "F64", (2, 2)),))
    found = to_canonical(tmp_path / "update.npz", tmp_path / "out", max_bytes=8000, expected=model)
    assert found.nbytes == 8000
    assert model.difference(found) == "Tensor 'w' has dtype F16; it should be F64."


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(["F64", "F32"]),
    size=st.sampled_from([1, 3, 65_536, 70_001]),
    seed=st.integers(0, 2**32),
)
def test_bare_numbers_are_one_flat_tensor_and_leave_as_they_came(dtype, size, seed):
    numbers = np.random.default_rng(seed).standard_normal(size).astype(DTYPES[dtype])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        numbers.tofile(folder / "seed.bin")
        layout = raw_to_canonical(
            folder / "seed.bin", folder / "model", dtype=dtype, max_bytes=numbers.nbytes
        )
        assert layout == Layout((TensorSpec("0", dtype, (size,)),))
        assert load_arrays(folder / "model")["0"].tobytes() == numbers.tobytes()
        save_arrays({"0": numbers}, folder / "same")
        assert (folder / "model").read_bytes() == (folder / "same").read_bytes()
        to_raw(folder / "model", folder / "back.bin", dtype=dtype)
        assert (folder / "back.bin").read_bytes() == numbers.tobytes()


@settings(max_examples=40, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 2**32), dtype=st.sampled_from(["F64", "F32"]))
def test_a_model_of_many_tensors_leaves_as_their_numbers_one_after_another(layout, seed, dtype):
    arrays = draw_arrays(layout, seed)
    with tempfile.TemporaryDirectory() as name:
        save_arrays(arrays, Path(name) / "model")
        to_raw(Path(name) / "model", Path(name) / "out.bin", dtype=dtype)
        flat = np.concatenate([array.astype(np.float64).reshape(-1) for array in arrays.values()])
        assert (Path(name) / "out.bin").read_bytes() == flat.astype(DTYPES[dtype]).tobytes()


def test_a_number_too_large_for_bare_float32_is_refused(tmp_path):
    save_arrays({"a": np.ones(2), "b": np.array([1.0, 1e39])}, tmp_path / "model")
    with pytest.raises(StudioError, match="'b' holds a number too large for F32"):
        to_raw(tmp_path / "model", tmp_path / "out.bin", dtype="F32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has 0 bytes"),
        (b"1234567", "has 7 bytes; bare numbers of F64 need a multiple of 8"),
        (np.array([1.0, np.nan]).tobytes(), "'0' holds NaN or infinity"),
        (np.ones(5).tobytes(), "claims 40 bytes of numbers; at most 32"),
    ],
)
def test_a_file_that_is_no_row_of_numbers_is_refused_and_leaves_no_file(tmp_path, content, sentence):
    (tmp_path / "seed.bin").write_bytes(content)
    with pytest.raises(StudioError, match=sentence):
        raw_to_canonical(tmp_path / "seed.bin", tmp_path / "out", dtype="F64", max_bytes=32)
    assert [path.name for path in tmp_path.iterdir()] == ["seed.bin"]


def test_an_update_by_number_makes_the_same_file_as_one_by_name(tmp_path):
    arrays = {
        "dense/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "dense/bias": np.ones(3, np.float32),
    }
    layout = save_arrays(arrays, tmp_path / "named")
    np.savez(tmp_path / "update.npz", *[array.astype(np.float64) for array in arrays.values()])
    with np.load(tmp_path / "update.npz") as by_numpy:
        np.savez(
            tmp_path / "numbered.npz", **{str(at): by_numpy[key] for at, key in enumerate(by_numpy.files)}
        )
    to_canonical(tmp_path / "numbered.npz", tmp_path / "out", max_bytes=CAP, expected=layout)
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("named", "out")}
    assert len(digests) == 1
