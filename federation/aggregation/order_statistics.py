"""The middle of many updates, number by number.

Up to NETWORK_ROWS updates are sorted by a network of comparators (Batcher, "Sorting networks and their applications",
AFIPS 1968, odd-even merge), each one minimum and one maximum over whole rows, of which those that the result does not
depend on are left out; more updates are turned over and sorted column by column. Both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .blocks import Array, Float64s

NETWORK_ROWS = 32
_DEAD, _SUMMED, _KEPT = range(3)  # what becomes of a row of the sorted: nothing, a term of a sum, all of it
Comparator = tuple[
    int, int, bool, bool
]  # two rows; whether the smaller, whether the larger is looked at again


class MiddleMean:
    """The mean of the sorted values from place `low` to before `high`, of each column: of one or two places it is the
    median, of more a trimmed mean."""

    def __init__(self, rows: int, low: int, high: int) -> None:
        if not 0 <= low < high <= rows:
            raise ValueError(f"there are no places {low} to {high} among {rows}")
        self._rows, self._low, self._high = rows, low, high
        self._network = _pruned(_odd_even_merge(rows), rows, low, high) if rows <= NETWORK_ROWS else None

    def of(self, values: Array, out: Float64s) -> None:
        """Into `out`, float64 of shape (n,), the mean of every column of `values`, shape (rows, n), any real dtype
        that numpy sorts; they are overwritten. Values must be finite."""
        if self._network is not None:
            rows = run_network(values, self._network)
            middle = rows[self._low : self._high]
            np.copyto(out, middle[0])
            for row in middle[1:]:
                np.add(out, row, out=out)
        else:
            columns = np.ascontiguousarray(values.T)
            columns.sort(axis=1)
            columns[:, self._low : self._high].sum(axis=1, dtype=np.float64, out=out)
        if self._high - self._low > 1:
            np.divide(out, self._high - self._low, out=out)
        # -0 and 0 are equal, so which of them came out is chance: always 0.
        np.add(out, 0.0, out=out)


def median_places(rows: int) -> tuple[int, int]:
    """The place of the median among so many sorted values, or both middle ones: [low, high)."""
    return (rows - 1) // 2, rows // 2 + 1


def run_network(values: Array, network: Sequence[Comparator]) -> list[Array]:
    """The rows of `values` (overwritten) after all comparators; a row nobody looks at again is garbage."""
    rows = list(values)
    spare = np.empty_like(rows[0])
    for low, high, smaller, larger in network:
        if smaller and larger:
            np.minimum(rows[low], rows[high], out=spare)
            np.maximum(rows[low], rows[high], out=rows[high])
            rows[low], spare = spare, rows[low]
        elif smaller:
            np.minimum(rows[low], rows[high], out=rows[low])
        else:
            np.maximum(rows[low], rows[high], out=rows[high])
    return rows


def _odd_even_merge(count: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, that sort `count` rows when the smaller of each goes to i in turn."""
    top = 1 << max(count - 1, 0).bit_length()
    pairs: list[tuple[int, int]] = []
    length = 1
    while length < top:
        step = length
        while step:
            for first in range(step % length, top - step, 2 * step):
                for low in range(first, min(first + step, top - step)):
                    same = low // (2 * length) == (low + step) // (2 * length)
                    if same and low + step < count:
                        pairs.append((low, low + step))
            step //= 2
        length *= 2
    return pairs


def _pruned(pairs: Sequence[tuple[int, int]], rows: int, low: int, high: int) -> list[Comparator]:
    """Backwards: a comparator matters when its rows fare differently. Two that are both summed may change places."""
    fate = [_DEAD] * rows
    fate[low:high] = [_SUMMED if high - low > 1 else _KEPT] * (high - low)
    network: list[Comparator] = []
    for one, other in reversed(pairs):
        if fate[one] == fate[other] != _KEPT:
            continue
        network.append((one, other, fate[one] != _DEAD, fate[other] != _DEAD))
        fate[one] = fate[other] = _KEPT
    return network[::-1]


class NearMedianMean:
    """The mean of the `count` values of each column that lie nearest to the column's median; of two as near, the
    smaller counts."""

    def __init__(self, rows: int, count: int) -> None:
        if not 0 < count <= rows:
            raise ValueError(f"there are no {count} among {rows}")
        self._rows, self._count = rows, count
        whole = rows <= NETWORK_ROWS
        self._network = [(one, other, True, True) for one, other in _odd_even_merge(rows)] if whole else None

    def of(self, values: Array, out: Float64s) -> None:
        """As `MiddleMean.of`."""
        if self._network is not None:
            rows = run_network(values, self._network)
        else:
            columns = np.ascontiguousarray(values.T)
            columns.sort(axis=1)
            rows = list(np.ascontiguousarray(columns.T))
        wide = [row.astype(np.float64) for row in rows]
        low, high = median_places(self._rows)
        median = wide[low] if high - low == 1 else (wide[low] + wide[low + 1]) / 2
        # Those nearest lie side by side. Row k is not among them when it is farther than the row that comes after so
        # many; then that one is. (The distances from below only fall, those from above only rise.)
        left = self._rows - self._count
        farther = [median - wide[k] > wide[k + self._count] - median for k in range(left)]
        out.fill(0.0)
        for k, row in enumerate(wide):
            if k < left:
                np.multiply(row, ~farther[k], out=row)
            if k >= self._count:
                np.multiply(row, farther[k - self._count], out=row)
            np.add(out, row, out=out)
        np.divide(out, self._count, out=out)
        np.add(out, 0.0, out=out)
