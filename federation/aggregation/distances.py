"""Which updates lie near which, from the products of their changes.

The Gram matrix G holds the scalar products of all changes d_i = x_i - x, float64, shape (n, n), over float tensors;
|x_i - x_j|^2 = G_ii + G_jj - 2 G_ij. The changes are taken from the model, never from their own mean: one update sent
from far away would shift that, and the others' distances would drown in its rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foundation.errors import StudioError

from .blocks import Float64s
from .layout import FLOATS, Layout
from .model_files import ModelFiles, stored_dtype, typed_blocks
from .safetensors_file import StrPath

BUFFER_ELEMENTS = 1 << 21  # of float64 over all updates: 16 MiB
MIN_BLOCK = 256


def gram(paths: Sequence[StrPath], model: StrPath, layout: Layout, begin: int, end: int) -> Float64s:
    """The part of the Gram matrix that elements [begin, end) make, float64 (n, n); the parts of neighbouring ranges add
    up to the whole. Memory: n x one block, and n x n.

    Raises StudioError `layout_mismatch`, `invalid_model`. A product beyond float64 is infinite or NaN.
    """
    clients = len(paths)
    total, part = np.zeros((clients, clients)), np.empty((clients, clients))
    limit = min(max(BUFFER_ELEMENTS // max(clients, 1), MIN_BLOCK), 64 * 1024)
    changes = np.empty((clients, limit))
    raw, origin = np.empty(limit * 8, dtype=np.uint8), np.empty(limit)
    with ModelFiles([*paths, model], layout) as files, np.errstate(over="ignore", invalid="ignore"):
        for dtype, start, size in typed_blocks(layout, begin, end, limit):
            if dtype not in FLOATS:
                continue
            stored = stored_dtype(dtype)
            read = raw[: size * stored.itemsize].view(stored)
            files.read(clients, start, read)
            np.copyto(origin[:size], read)
            for index in range(clients):
                files.read(index, start, read)
                np.subtract(read, origin[:size], out=changes[index, :size], dtype=np.float64)
            block = changes[:, :size]
            np.matmul(block, block.T, out=part)
            np.add(total, part, out=total)
    return total


def squared_distances(gram: Float64s) -> Float64s:
    """|x_i - x_j|^2, shape (n, n), at least 0; infinite where an update lies too far away to be measured."""
    squares = np.diagonal(gram)
    with np.errstate(over="ignore", invalid="ignore"):
        found = squares[:, None] + squares[None, :] - 2.0 * gram
    found = np.where(np.isfinite(found), np.maximum(found, 0.0), np.inf)
    found = np.minimum(found, found.T)  # G may differ from its transpose in the last bit: a tie must stay one
    np.fill_diagonal(found, 0.0)
    return found


def krum_scores(distances: Float64s, byzantine: int) -> Float64s:
    """Krum's score of each of n updates: the sum of squared distances to its n - byzantine - 2 nearest others, at least
    one of them (Blanchard et al., NeurIPS 2017, section 4); 0 for an update that is alone."""
    count = distances.shape[0]
    if count == 1:
        return np.zeros(1)
    others = distances.copy()
    np.fill_diagonal(others, np.inf)
    others.sort(axis=1)
    return np.asarray(others[:, : max(count - byzantine - 2, 1)].sum(axis=1), dtype=np.float64)


def best_by_krum(gram: Float64s, byzantine: int, keep: int) -> list[int]:
    """The `keep` updates with the lowest scores, lowest first; of equal ones the first in order."""
    scores = krum_scores(squared_distances(gram), byzantine)
    return [int(index) for index in np.argsort(scores, kind="stable")[:keep]]


def chosen_by_bulyan(gram: Float64s, byzantine: int) -> list[int]:
    """Bulyan's n - 2 byzantine updates, one after the other the best by Krum of those left (El Mhamdi et al., ICML
    2018, section 4), in the order of their being chosen."""
    distances = squared_distances(gram)
    left = list(range(distances.shape[0]))
    chosen: list[int] = []
    for _ in range(distances.shape[0] - 2 * byzantine):
        scores = krum_scores(distances[np.ix_(left, left)], byzantine)
        chosen.append(left.pop(int(np.argmin(scores))))
    return chosen


def geometric_median(
    gram: Float64s, weights: Sequence[float], *, smoothing: float, tolerance: float, max_iterations: int
) -> list[float]:
    """Coefficients c, summing to 1, of v = sum_j c_j x_j that is smallest in sum_i w_i |v - x_i|.

    The smoothed Weiszfeld algorithm (Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning", IEEE
    TSP 2022, Algorithm 2), wholly in coefficients: |v - x_i|^2 = c'Gc - 2 (Gc)_i + G_ii. A step makes c_i
    w_i / max(smoothing, |v - x_i|), normalised, until one is no longer than `tolerance` times the median of these
    distances, or for `max_iterations`. It differs from the paper in where it begins, with w_i over the median distance
    of x_i to all updates, and in when it ends: from their mean, or watching the sum of distances, one update sent from
    far enough away would have it end before it got back. Updates too far away to be measured count nothing. Raises
    StudioError `sum_not_finite` when that leaves none.
    """
    w = np.asarray(weights, dtype=np.float64)
    w = np.where(np.isfinite(np.diagonal(gram)), w, 0.0)
    known = np.flatnonzero(w > 0)
    if not known.size:
        raise StudioError("sum_not_finite", "Every update lies too far from the model to be compared.")
    G, w = gram[np.ix_(known, known)], w[known] / w[known].sum()
    squares = np.diagonal(G)
    radii = np.median(np.sqrt(squared_distances(G)), axis=1)
    c = np.zeros_like(w)
    for _ in range(max_iterations + 1):
        before = c
        c = w / np.maximum(radii, smoothing)
        c = c / c.sum()
        products = G @ c
        radii = np.sqrt(np.maximum(c @ products - 2.0 * products + squares, 0.0))
        step = c - before
        if np.sqrt(max(step @ G @ step, 0.0)) <= tolerance * np.median(radii):
            break
    found = np.zeros(gram.shape[0])
    found[known] = c
    return [float(one) for one in found]
