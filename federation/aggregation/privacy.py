"""Differential privacy on the server: Gaussian noise, and a clip that follows the norms of the clients' changes.

The mechanism is DP-FedAvg (McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language
Models", ICLR 2018): every client's change is scaled to an L2 norm of at most C, the scaled changes are summed, noise
N(0, (z C)^2) is added to every coordinate of the sum, and the sum is divided by a number that does not depend on who
took part. One client more or less moves the sum by at most C: that is what z is accounted against.

Floating point. Noise computed in floats leaves gaps: some results are possible for one input only, and tell it
(Mironov, "On Significance of the Least Significant Bits for Differential Privacy", CCS 2012). Here both the change and
its noise are rounded to the same grid, `std` / 2**30 or finer, before they are added, so that every input reaches the
same results; what is built on their sum afterwards (the model, the optimiser's state) is only computed from it. What
stays: rounding moves each coordinate by at most half a step, so the sensitivity grows by a factor of at most
1 + z 2**-30 sqrt(coordinates) (a thousandth for 10**12 coordinates at z = 1); the noise follows the normal
distribution as closely as float64 does and ends where 64 random bits end, beyond 13 deviations, which adds less than
1e-38 per coordinate to delta; the sum over clients is itself a float64 sum, whose rounding (about 1e-16 of the
model's size) the clip does not bound. How long a draw takes depends on the random bits, never on the data.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np

from .blocks import BLOCK_ELEMENTS, Float64s

GRID_BITS = 30
LOWEST_CLIP, HIGHEST_CLIP = 1e-9, 1e12
# Of pairs in the square, pi / 4 lie in the circle; so many more are drawn that one draw is nearly always enough.
_SPARE = 1.31


class GaussianNoise:
    """Independent N(0, `std`^2) from the operating system's cryptographic source, block by block.

    Normals by Marsaglia's polar method ("A Convenient Method for Generating Normal Variables", SIAM Review 1964) from
    64-bit uniforms. `bits(n)` gives n random bytes. Memory: a few blocks. One caller at a time.
    """

    def __init__(self, std: float, bits: Callable[[int], bytes] = os.urandom) -> None:
        if not (math.isfinite(std) and std >= 0):
            raise ValueError(f"the deviation of noise is {std}; it must be finite and at least 0")
        self.std = std
        self._bits = bits
        # a power of two, so that scaling by it is exact
        self.grid = math.ldexp(1.0, math.frexp(std)[1] - 1 - GRID_BITS) if std else 0.0
        self._spare: Float64s = np.empty(0, dtype=np.float64)

    def add_to(self, block: Float64s) -> None:
        """Add noise to `block`, float64 of shape (n,), in place; the result lies on the grid. A deviation of 0 changes
        nothing."""
        if not self.std:
            return
        for at in range(0, block.size, BLOCK_ELEMENTS):
            part = block[at : at + BLOCK_ELEMENTS]
            noise = self._normals(part.size)
            np.multiply(noise, self.std / self.grid, out=noise)
            np.rint(noise, out=noise)
            np.multiply(noise, self.grid, out=noise)
            np.divide(part, self.grid, out=part)
            np.rint(part, out=part)
            np.multiply(part, self.grid, out=part)
            np.add(part, noise, out=part)

    def _normals(self, count: int) -> Float64s:
        """`count` standard normals, shape (count,), which the caller may overwrite; none is used twice."""
        found = [self._spare]
        have = self._spare.size
        while have < count:
            fresh = self._draw_pairs(int((count - have) * _SPARE / 2) + 16)
            found.append(fresh)
            have += fresh.size
        normals = np.concatenate(found)
        self._spare = normals[count:].copy()
        return normals[:count]

    def _draw_pairs(self, pairs: int) -> Float64s:
        whole = np.frombuffer(self._bits(pairs * 16), dtype=np.int64)
        # the middle of each of 2**64 cells: symmetric about zero, and never zero
        uniform = (whole.astype(np.float64) + 0.5) * 2.0**-63
        x, y = uniform[:pairs], uniform[pairs:]
        squared = x * x + y * y
        inside = squared < 1.0
        x, y, squared = x[inside], y[inside], squared[inside]
        scale = np.sqrt(np.log(squared) / squared * -2.0)
        return np.concatenate((x * scale, y * scale))


def clip_factor(delta_norm: float, clip_norm: float) -> float:
    """What a change of this L2 norm is multiplied by: min(1, C / norm) (McMahan et al., ICLR 2018, FlatClip)."""
    if not delta_norm >= 0:
        raise ValueError(f"the norm of a change is {delta_norm}; it must be a number of at least 0")
    return 1.0 if delta_norm <= clip_norm else clip_norm / delta_norm


def count_deviation(noise_multiplier: float, divisor: float) -> float:
    """Deviation of the noise on the count of unclipped changes: divisor / 20, the recommendation of Andrew et al.
    (section 3.1), but never below the noise multiplier, so that few clients leave the changes themselves at least
    z * 2 / sqrt(3) to be noised with. 0 without noise."""
    return max(divisor / 20.0, noise_multiplier) if noise_multiplier else 0.0


def sum_noise_multiplier(noise_multiplier: float, divisor: float) -> float:
    """Noise multiplier of the changes' sum that, together with that of the count, spends what `noise_multiplier` alone
    would: z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2) (Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private
    Learning with Adaptive Clipping", NeurIPS 2021, theorem 1)."""
    if not noise_multiplier:
        return 0.0
    count = 2.0 * count_deviation(noise_multiplier, divisor)
    return float((noise_multiplier**-2 - count**-2) ** -0.5)


def noised_share(unclipped: int, updates: int, divisor: float, noise: GaussianNoise) -> float:
    """b~: the share of changes within the clip, with noise: (sum of (b_i - 1/2) + N(0, sigma_b^2)) / divisor + 1/2.

    Halved bits make one client worth 1/2, which is what `sum_noise_multiplier` counts with (Andrew et al., theorem 1);
    clients that did not answer pull towards 1/2.
    """
    count = np.array([unclipped - updates / 2.0])
    noise.add_to(count)
    return float(count[0]) / divisor + 0.5


def next_clip_norm(clip_norm: float, share: float, quantile: float, rate: float) -> float:
    """C <- C exp(-rate (b~ - quantile)) (Andrew et al., section 2.1), kept within what can be computed with."""
    step = max(-50.0, min(50.0, -rate * (share - quantile)))
    return min(max(clip_norm * math.exp(step), LOWEST_CLIP), HIGHEST_CLIP)
