"""How fast a model passes through the numerics: `python -m tests.bench.aggregation [MB]` prints JSON.

MB/s are 10**6 bytes of the model per second, the best of several passes over files in the page cache.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from federation.aggregation.accumulate import WeightedSum, combine_partials
from federation.aggregation.codecs import check_update, load_arrays, save_arrays, to_canonical, to_npz


def best_rate(work: Callable[[], object], megabytes: float, passes: int = 5) -> float:
    """MB/s of the fastest pass."""
    times = []
    for _ in range(passes):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return round(megabytes / min(times), 1)


def measure(megabytes: int, folder: Path) -> dict[str, float]:
    rng = np.random.default_rng(7)
    width = megabytes * 1_000_000 // 4 // 8
    model = folder / "model.safetensors"
    layout = save_arrays(
        {f"layer{i}.weight": rng.standard_normal(width, dtype=np.float32) for i in range(8)}, model
    )
    many = folder / "many.safetensors"
    many_layout = save_arrays(
        {f"t{i}": rng.standard_normal(500, dtype=np.float32) for i in range(megabytes * 500)}, many
    )
    half = folder / "half.safetensors"
    half_layout = save_arrays(
        {str(i): rng.standard_normal(width).astype(np.float16) for i in range(16)}, half
    )
    npz, squeezed = folder / "model.npz", folder / "squeezed.npz"
    out, partial = folder / "out.safetensors", folder / "partial.safetensors"
    total, many_total, half_total = WeightedSum(layout), WeightedSum(many_layout), WeightedSum(half_layout)
    size, cap = layout.nbytes / 1e6, 10 * layout.nbytes
    total.fold(model, 3.0)
    total.write_mean(partial, partial=True)
    return {
        "to_npz": best_rate(lambda: to_npz(model, npz), size),
        "to_npz_compressed": best_rate(lambda: to_npz(model, squeezed, compressed=True), size, 1),
        "fold_float32": best_rate(lambda: total.fold(model, 3.0), size),
        "fold_float32_in_500_element_tensors": best_rate(
            lambda: many_total.fold(many, 3.0), many_layout.nbytes / 1e6
        ),
        "fold_float16": best_rate(lambda: half_total.fold(half, 3.0), half_layout.nbytes / 1e6),
        "check_update_float32": best_rate(lambda: check_update(model, layout, max_bytes=cap), size),
        "check_update_float16": best_rate(
            lambda: check_update(half, half_layout, max_bytes=cap), half_layout.nbytes / 1e6
        ),
        "to_canonical_safetensors": best_rate(lambda: to_canonical(model, out, max_bytes=cap), size),
        "to_canonical_npz": best_rate(lambda: to_canonical(npz, out, max_bytes=cap), size),
        "to_canonical_npz_compressed": best_rate(lambda: to_canonical(squeezed, out, max_bytes=cap), size, 1),
        "write_mean": best_rate(lambda: total.write_mean(out, partial=False), size),
        "write_partial": best_rate(lambda: total.write_mean(out, partial=True), size),
        "combine_3_partials": best_rate(
            lambda: combine_partials([(partial, 1.0), (partial, 2.0), (partial, 5.0)], layout, out), size
        ),
        "load_arrays_and_sum": best_rate(
            lambda: [array.sum() for array in load_arrays(model).values()], size
        ),
    }


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(megabytes, Path(folder))
    where = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()}
    print(
        json.dumps(
            {"bench": "aggregation", "model_mb": megabytes, "unit": "MB/s", **where, "rates": rates}, indent=2
        )
    )


if __name__ == "__main__":
    main()
