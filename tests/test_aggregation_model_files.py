"""A model comes in as .npz or .safetensors, is kept in one canonical form, and goes out unchanged."""

from __future__ import annotations

import hashlib
import math
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.aggregation.codecs import (
    check_num_examples,
    check_update,
    detect_format,
    load_arrays,
    read_npz_header,
    read_safetensors_header,
    save_arrays,
    to_canonical,
    to_npz,
)
from federation.aggregation.layout import Layout, TensorSpec
from foundation.errors import StudioError
from tests.random_models import draw_arrays, layouts

CAP = 10**9


def same(found: dict[str, np.ndarray], given: dict[str, np.ndarray]) -> bool:
    return list(found) == list(given) and all(
        found[name].dtype == array.dtype
        and found[name].shape == array.shape
        and found[name].tobytes() == array.tobytes()
        for name, array in given.items()
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 2**32))
def test_saved_arrays_come_back_equal_and_read_only_and_the_reference_reader_agrees(layout, seed):
    arrays = draw_arrays(layout, seed)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model"
        assert save_arrays(arrays, path) == layout
        found = load_arrays(path)
        assert same(found, arrays)
        assert not any(array.flags.writeable for array in found.values())
        assert all(array.flags.aligned for array in found.values())
        for key, entry in safetensors.deserialize(path.read_bytes()):
            spec = layout.by_name[key]
            assert (entry["dtype"], tuple(entry["shape"])) == (spec.dtype, spec.shape)
            assert bytes(entry["data"]) == arrays[key].tobytes()
        assert read_safetensors_header(path, max_bytes=layout.nbytes)[0] == layout


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 2**32), compressed=st.booleans())
def test_the_same_tensors_make_the_same_bytes_whatever_file_they_came_in(layout, seed, compressed):
    arrays = draw_arrays(layout, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_arrays(arrays, folder / "canonical")
        (folder / "reference").write_bytes(safetensors.numpy.save(arrays, metadata={"format": "pt"}))
        reference = to_canonical(folder / "reference", folder / "from_reference", max_bytes=CAP)
        assert reference.difference(layout) is None
        assert to_canonical(folder / "canonical", folder / "again", max_bytes=CAP) == layout
        assert sha256(folder / "again") == sha256(folder / "canonical")
        if reference == layout:
            assert sha256(folder / "from_reference") == sha256(folder / "canonical")
        if not any("/" in spec.name for spec in layout.tensors):
            to_npz(folder / "canonical", folder / "model.npz", compressed=compressed)
            back = to_canonical(folder / "model.npz", folder / "back", max_bytes=CAP, expected=layout)
            assert back == layout
            assert sha256(folder / "back") == sha256(folder / "canonical")


def test_an_npz_by_numpy_is_read_whatever_its_byte_order_memory_order_and_compression(tmp_path):
    rng = np.random.default_rng(1)
    plain = {
        "w": rng.standard_normal((300, 257)),
        "b": rng.standard_normal((3, 4, 5)).astype(np.float32),
        "n": np.array(7),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 3), np.float16),
    }
    save_arrays(plain, tmp_path / "plain")
    odd = {
        "w": np.asfortranarray(plain["w"]).astype(">f8", order="F"),
        "b": np.asfortranarray(plain["b"]),
        "n": plain["n"].astype(">i8"),
        "flags": plain["flags"],
        "none": plain["none"],
    }
    assert odd["w"].flags.f_contiguous
    np.savez(tmp_path / "odd.npz", **odd)
    np.savez_compressed(tmp_path / "squeezed.npz", **odd)
    for name in ("odd.npz", "squeezed.npz"):
        layout = to_canonical(tmp_path / name, tmp_path / "out", max_bytes=CAP)
        assert layout == read_npz_header(tmp_path / name, max_bytes=CAP)
        assert (tmp_path / "out").read_bytes() == (tmp_path / "plain").read_bytes()


def test_numbered_tensors_are_in_numeric_order_and_named_ones_in_file_order(tmp_path):
    np.savez(tmp_path / "numbered.npz", **{str(n): np.float32([n]) for n in (0, 10, 2, 1, 11)})
    np.savez(tmp_path / "named.npz", **{name: np.float32([0]) for name in ("w2", "w10", "b")})
    numbered = read_npz_header(tmp_path / "numbered.npz", max_bytes=CAP)
    assert [spec.name for spec in numbered.tensors] == ["0", "1", "2", "10", "11"]
    named = read_npz_header(tmp_path / "named.npz", max_bytes=CAP)
    assert [spec.name for spec in named.tensors] == ["w2", "w10", "b"]
    to_canonical(tmp_path / "numbered.npz", tmp_path / "canonical", max_bytes=CAP)
    to_npz(tmp_path / "canonical", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as out:
        assert out.files == ["0", "1", "2", "10", "11"]
        assert [float(out[name][0]) for name in out.files] == [0, 1, 2, 10, 11]


def test_bfloat16_goes_out_as_float32_and_a_float32_answer_comes_back_as_bfloat16(tmp_path):
    model = {"w": np.float32([1.5, -2.25, 3e38]).astype(ml_dtypes.bfloat16), "s": np.float32([0.1])}
    layout = save_arrays(model, tmp_path / "model")
    to_npz(tmp_path / "model", tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as out:
        assert out["w"].dtype == np.float32
        assert out["w"].tolist() == model["w"].astype(np.float32).tolist()
    as_sent = to_canonical(tmp_path / "model.npz", tmp_path / "as_sent", max_bytes=CAP)
    assert layout.difference(as_sent) == "Tensor 'w' has dtype F32; it should be BF16."
    assert to_canonical(tmp_path / "model.npz", tmp_path / "back", max_bytes=CAP, expected=layout) == layout
    assert (tmp_path / "back").read_bytes() == (tmp_path / "model").read_bytes()


def test_the_format_is_told_by_content_not_by_name(tmp_path):
    save_arrays({"x": np.ones(2)}, tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.ones(2))
    (tmp_path / "b.npz").rename(tmp_path / "b.safetensors")
    assert detect_format(tmp_path / "a.npz") == "safetensors"
    assert detect_format(tmp_path / "b.safetensors") == "npz"


def test_a_model_with_nan_is_refused_unless_asked_for_and_leaves_no_file(tmp_path):
    np.savez(tmp_path / "m.npz", fine=np.ones(3, np.float32), broken=np.float32([1, np.nan]))
    with pytest.raises(StudioError, match="'broken' holds NaN") as refused:
        to_canonical(tmp_path / "m.npz", tmp_path / "out", max_bytes=CAP)
    assert refused.value.code == "not_finite"
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]
    to_canonical(tmp_path / "m.npz", tmp_path / "out", max_bytes=CAP, require_finite=False)
    assert math.isnan(load_arrays(tmp_path / "out")["broken"][1])


def test_a_failed_conversion_leaves_the_model_that_was_there(tmp_path):
    save_arrays({"x": np.ones(3)}, tmp_path / "out")
    before = (tmp_path / "out").read_bytes()
    np.savez(tmp_path / "m.npz", x=np.full(3, np.inf))
    with pytest.raises(StudioError):
        to_canonical(tmp_path / "m.npz", tmp_path / "out", max_bytes=CAP)
    assert (tmp_path / "out").read_bytes() == before


def test_a_name_with_a_slash_cannot_leave_as_npz_and_the_sentence_says_what_can(tmp_path):
    save_arrays({"dense/kernel": np.ones(3)}, tmp_path / "model")
    with pytest.raises(StudioError, match=r"'dense/kernel' has a slash.*\.safetensors"):
        to_npz(tmp_path / "model", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


EXPECTED = Layout((TensorSpec("w", "F32", (2, 3)), TensorSpec("b", "F32", ())))


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ([("b", "F32", ()), ("w", "F32", (2, 3))], None),
        ([("w", "F32", (2, 3))], "Tensor 'b' (F32 []) is missing."),
        ([("w", "F16", (2, 3)), ("b", "F32", ())], "Tensor 'w' has dtype F16; it should be F32."),
        ([("w", "F32", (3, 2)), ("b", "F32", ())], "Tensor 'w' has shape [3, 2]; it should be [2, 3]."),
        (
            [("w", "F32", (2, 3)), ("b", "F32", ()), ("extra", "I8", (1,))],
            "Tensor 'extra' is unexpected; the model has 2 tensors and none of that name.",
        ),
    ],
)
def test_an_update_of_another_shape_is_told_which_tensor_differs_and_how(tmp_path, tensors, sentence):
    other = Layout(tuple(TensorSpec(*tensor) for tensor in tensors))
    assert EXPECTED.difference(other) == sentence
    assert Layout.from_json(other.to_json()) == other
    save_arrays(draw_arrays(other, 1), tmp_path / "update")
    if sentence is None:
        check_update(tmp_path / "update", EXPECTED, max_bytes=CAP)
        return
    with pytest.raises(StudioError) as refused:
        check_update(tmp_path / "update", EXPECTED, max_bytes=CAP)
    assert refused.value.code == "layout_mismatch"
    assert sentence in refused.value.message


@pytest.mark.parametrize(
    "obj",
    [None, {}, [], [1], [{"name": "x"}], [{"name": "x", "dtype": "F32", "shape": [True]}]]
    + [[{"name": "x", "dtype": "F32", "shape": shape}] for shape in ([-1], ["2"], [1.0], None)]
    + [
        [{"name": name, "dtype": "F32", "shape": [1]}]
        for name in ("", None, 3, "__metadata__", "a\n", "\ud800")
    ],
)
def test_a_layout_that_is_none_is_refused(obj):
    with pytest.raises(StudioError):
        Layout.from_json(obj)


@settings(max_examples=40, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 2**32), scale=st.sampled_from([1e-3, 1.0, 100.0]))
def test_the_norm_of_an_update_is_that_of_all_its_floats(layout, seed, scale):
    arrays = draw_arrays(layout, seed, scale)
    floats = [array.astype(np.float64) for array in arrays.values() if array.dtype.kind in "fV"]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "update"
        save_arrays(arrays, path)
        found = check_update(path, layout, max_bytes=layout.nbytes).norm
    assert found == pytest.approx(math.sqrt(sum(float((a * a).sum()) for a in floats)), rel=1e-12)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e200, 1e307])
def test_the_norm_is_right_where_squares_leave_the_range_of_float64(tmp_path, size):
    layout = save_arrays({"x": np.full(4, size)}, tmp_path / "update")
    assert check_update(tmp_path / "update", layout, max_bytes=CAP).norm == pytest.approx(
        2 * size, rel=1e-12, abs=0
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_one_number_that_is_not_finite_is_found_and_its_tensor_named(tmp_path, value, dtype):
    update = {f"layer{i}": np.ones(70_000, dtype) for i in range(3)}
    update["layer1"][69_999] = value
    layout = save_arrays(update, tmp_path / "update")
    with pytest.raises(StudioError, match="'layer1'") as refused:
        check_update(tmp_path / "update", layout, max_bytes=CAP)
    assert refused.value.code == "not_finite"


def test_a_boolean_that_is_neither_0_nor_1_is_refused(tmp_path):
    layout = save_arrays({"w": np.ones(1), "mask": np.array([True, True])}, tmp_path / "update")
    raw = (tmp_path / "update").read_bytes()
    (tmp_path / "update").write_bytes(raw[:-1] + b"\x02")
    for check in (
        lambda: check_update(tmp_path / "update", layout, max_bytes=CAP),
        lambda: to_canonical(tmp_path / "update", tmp_path / "out", max_bytes=CAP),
    ):
        with pytest.raises(StudioError, match="'mask' is BOOL"):
            check()


@pytest.mark.parametrize("value", [1, 0.5, 1e12, np.int64(3), np.float32(2)])
def test_a_positive_number_of_examples_is_a_weight(value):
    assert check_num_examples(value) == float(value)


@pytest.mark.parametrize(
    "value",
    [
        0,
        5e-324,
        -1,
        True,
        None,
        "12",
        math.nan,
        math.inf,
        1.1e12,
        10**400,
        [1],
        np.float64("nan"),
        np.bool_(1),
    ],
)
def test_anything_else_is_refused_with_what_would_be_right(value):
    with pytest.raises(StudioError, match="above 0, from 1e-12 to 1e12"):
        check_num_examples(value)


def test_checking_and_converting_a_64_mb_model_takes_a_few_blocks_of_memory(tmp_path):
    layout = save_arrays({str(i): np.full(2_000_000, i, np.float32) for i in range(8)}, tmp_path / "model")
    tracemalloc.start()
    try:
        to_npz(tmp_path / "model", tmp_path / "model.npz")
        to_canonical(tmp_path / "model.npz", tmp_path / "out", max_bytes=layout.nbytes)
        to_canonical(tmp_path / "model", tmp_path / "out", max_bytes=layout.nbytes)
        check_update(tmp_path / "out", layout, max_bytes=layout.nbytes)
        load_arrays(tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert zipfile.ZipFile(tmp_path / "model.npz").testzip() is None


def test_an_npz_of_more_arrays_than_a_plain_zip_can_count_is_read(tmp_path):
    save_arrays({str(i): np.ones(1, np.int8) for i in range(66_000)}, tmp_path / "model")
    to_npz(tmp_path / "model", tmp_path / "model.npz")
    assert len(read_npz_header(tmp_path / "model.npz", max_bytes=CAP).tensors) == 66_000
