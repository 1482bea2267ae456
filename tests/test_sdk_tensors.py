"""Models on the client's side: read without copying, written canonically."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from studio_sdk import load_parameters, load_settings, save_metadata, save_metrics, save_parameters, tensors

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "flag": np.array([True, False]),
    "scalar": np.array(3.5, dtype=np.float64),
    "empty": np.zeros((0, 4), dtype=np.int64),
    "half": np.array([1.5, -2], dtype=np.float16),
    "count": np.array(7, dtype=np.uint8),
}


def test_a_written_model_is_read_by_the_reference_library(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_parameters(ARRAYS, path)
    found = safetensors.numpy.load_file(path)
    assert {name: (a.dtype, a.shape) for name, a in found.items()} == {
        name: (a.dtype, a.shape) for name, a in ARRAYS.items()
    }
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


def test_our_file_is_the_servers_canonical_one(tmp_path: Path) -> None:
    from federation.aggregation import safetensors_file

    path = tmp_path / "m.safetensors"
    save_parameters(ARRAYS, path)
    layout, start, _offsets = safetensors_file.read_safetensors_header(path, max_bytes=10**6)
    assert path.read_bytes()[:start] == safetensors_file.canonical_header(layout)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_package_gets_back_what_it_saved(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    save_parameters(ARRAYS, path)
    found = load_parameters(path)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_list_of_arrays_keeps_its_order_past_ten(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    save_parameters([np.full(2, i) for i in range(12)], path)
    assert [int(array[0]) for array in load_parameters(path).values()] == list(range(12))


def test_bfloat16_keeps_its_bits_even_as_plain_integers(tmp_path: Path) -> None:
    import ml_dtypes

    path = tmp_path / "m.safetensors"
    model = {"w": np.array([1.5, -3.0], dtype=ml_dtypes.bfloat16)}
    tensors.write_file(path, model)
    assert tensors.dtype_names(path) == {"w": "BF16"}
    again = tmp_path / "again.safetensors"
    tensors.write_file(again, {"w": model["w"].view(np.uint16)}, like=tensors.dtype_names(path))
    assert again.read_bytes() == path.read_bytes()


def test_a_model_is_mapped_not_copied_and_cannot_be_changed_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_parameters(ARRAYS, path)
    array = load_parameters(path)["a"]
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array += 1


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_parameters(path)


def test_an_update_of_text_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'words'"):
        save_parameters({"words": np.array(["a"])}, tmp_path / "m.safetensors")


def test_a_broken_file_gets_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="header ends beyond"):
        load_parameters(path)


def test_metadata_without_num_examples_is_refused_where_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_examples"):
        save_metadata({"epochs": 1}, tmp_path / "m.npz")


def test_numpy_numbers_are_written_as_json(tmp_path: Path) -> None:
    save_metadata({"num_examples": np.int64(3), "losses": np.array([0.5])}, tmp_path / "m")
    save_metrics({"accuracy": np.float32(0.5)}, tmp_path / "v.json")
    assert load_settings(tmp_path / "m") == {"num_examples": 3, "losses": [0.5]}
    assert (tmp_path / "v.json").read_text() == '{"accuracy": 0.5}'


def test_a_training_script_does_not_pay_for_grpc() -> None:
    import subprocess
    import sys

    code = "import sys, studio_sdk; print(sorted({'grpc', 'requests', 'click'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
