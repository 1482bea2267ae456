"""Noise of differential privacy, and the clip that follows the clients: numbers against closed forms.

The statistical bounds lie beyond six deviations of the statistic, so a right implementation fails once in 10**9 runs.
"""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

from federation.aggregation.blocks import BLOCK_ELEMENTS
from federation.aggregation.privacy import (
    HIGHEST_CLIP,
    LOWEST_CLIP,
    GaussianNoise,
    clip_factor,
    count_deviation,
    next_clip_norm,
    noised_share,
    sum_noise_multiplier,
)

DRAWS = 1_000_000
SIGMAS = 6.5


def drawn(std: float, count: int = DRAWS) -> np.ndarray:
    block = np.zeros(count)
    GaussianNoise(std).add_to(block)
    return block


def test_noise_has_the_mean_the_deviation_and_the_shape_of_the_normal_distribution() -> None:
    noise = drawn(0.25, 4 * DRAWS)
    root = 2 * math.sqrt(DRAWS)
    assert abs(noise.mean()) < SIGMAS * 0.25 / root
    assert abs(noise.std() / 0.25 - 1) < SIGMAS / math.sqrt(2) / root
    scaled = noise / 0.25
    assert abs((scaled**3).mean()) < SIGMAS * math.sqrt(15) / root
    assert abs((scaled**4).mean() - 3) < SIGMAS * math.sqrt(96) / root
    # Kolmogorov: sup |F_n - F| exceeds 3.3 / sqrt(n) with probability 2 exp(-2 * 3.3^2) < 1e-9
    ordered = np.sort(scaled)
    normal = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in ordered[::200]])
    reached = np.arange(noise.size)[::200] / noise.size
    assert np.abs(normal - reached).max() < 3.3 / root


def test_coordinates_are_independent_of_each_other_within_a_block_and_across_blocks() -> None:
    noise = drawn(1.0)
    for lag in (1, 2, 7, BLOCK_ELEMENTS // 2, BLOCK_ELEMENTS):
        products = noise[:-lag] * noise[lag:]
        assert abs(products.mean()) < SIGMAS / math.sqrt(products.size)
        # the two numbers of a pair share their radius when the method is wrong: squares tell
        squares = (noise[:-lag] ** 2 - 1) * (noise[lag:] ** 2 - 1)
        assert abs(squares.mean()) < SIGMAS * 2 / math.sqrt(products.size)
    assert np.unique(noise).size > DRAWS * 0.99


def test_blocks_of_every_size_get_noise_once() -> None:
    noise = GaussianNoise(1.0)
    seen = []
    for size in (0, 1, 2, 3, 1000, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 1, 5):
        block = np.zeros(size)
        noise.add_to(block)
        seen.append(block)
    every = np.concatenate(seen)
    assert np.all(every != 0) and np.unique(every).size > every.size * 0.99


def test_noise_comes_from_the_operating_systems_cryptographic_source() -> None:
    asked = []

    def bits(count: int) -> bytes:
        asked.append(count)
        return os.urandom(count)

    assert GaussianNoise(1.0)._bits is os.urandom
    GaussianNoise(1.0, bits).add_to(np.zeros(1000))
    # 64 bits for each of the two coordinates of a point of the square
    assert sum(asked) >= 1000 * 8


def test_the_same_bits_give_the_same_noise_and_others_do_not() -> None:
    def noise_of(bits: bytes) -> np.ndarray:
        rest = iter([bits[at : at + 1 << 14] for at in range(0, len(bits), 1 << 14)])
        block = np.zeros(100)
        GaussianNoise(1.0, lambda count: next(rest)[:count]).add_to(block)
        return block

    first, second = os.urandom(1 << 16), os.urandom(1 << 16)
    assert np.array_equal(noise_of(first), noise_of(first))
    assert not np.array_equal(noise_of(first), noise_of(second))


@pytest.mark.parametrize("std", [1e-9, 0.0123, 1.0, 7.5, 1e9])
def test_a_noised_change_lies_on_a_grid_that_does_not_depend_on_it(std: float) -> None:
    """Otherwise the low bits of a result tell which change it came from (Mironov 2012)."""
    noise = GaussianNoise(std)
    assert std * 2.0**-31 < noise.grid <= std * 2.0**-30
    for scale in (0.0, 0.3, math.pi, 1000.1):
        block = np.full(1000, scale * std)
        noise.add_to(block)
        steps = block / noise.grid
        assert np.array_equal(steps, np.rint(steps))
    exact = np.array([0.1, -0.2]) * std
    rounded = np.rint(exact / noise.grid) * noise.grid
    assert np.abs(exact - rounded).max() <= noise.grid / 2


def test_the_change_itself_stays_in_the_middle_of_its_noise() -> None:
    block = np.full(DRAWS, 3.0)
    GaussianNoise(0.5).add_to(block)
    assert abs(block.mean() - 3.0) < SIGMAS * 0.5 / math.sqrt(DRAWS)


def test_no_noise_changes_nothing_at_all() -> None:
    block = np.array([0.1, 1 / 3, 1e300, -0.0])
    before = block.copy()
    GaussianNoise(0.0).add_to(block)
    assert block.tobytes() == before.tobytes()


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_a_deviation_that_is_none_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="deviation of noise"):
        GaussianNoise(std)


def test_a_change_within_the_clip_is_kept_and_a_longer_one_shortened_to_it() -> None:
    assert clip_factor(0.0, 2.0) == clip_factor(2.0, 2.0) == 1.0
    assert clip_factor(8.0, 2.0) == 0.25
    assert clip_factor(1e300, 1e-9) * 1e300 == pytest.approx(1e-9)
    for norm in (math.nan, -1.0):
        with pytest.raises(ValueError, match="norm of a change"):
            clip_factor(norm, 1.0)


@pytest.mark.parametrize(("multiplier", "divisor"), [(1.0, 100), (0.5, 10), (1.1, 3), (4.0, 1), (0.8, 2000)])
def test_the_count_and_the_sum_together_spend_what_one_gaussian_would(
    multiplier: float, divisor: float
) -> None:
    """Two Gaussians with sensitivities 1/2 and 1 compose to one with the summed squares (theorem 1)."""
    count, total = count_deviation(multiplier, divisor), sum_noise_multiplier(multiplier, divisor)
    assert 1 / total**2 + (0.5 / count) ** 2 == pytest.approx(1 / multiplier**2)
    assert multiplier < total <= multiplier * 2 / math.sqrt(3) * (1 + 1e-12)
    if divisor / 20 > multiplier:
        assert count == divisor / 20


def test_without_noise_the_count_has_none_either() -> None:
    assert count_deviation(0.0, 100) == sum_noise_multiplier(0.0, 100) == 0.0
    assert noised_share(3, 4, 4, GaussianNoise(0.0)) == 0.75
    assert noised_share(0, 0, 4, GaussianNoise(0.0)) == 0.5  # nobody answered: neither longer nor shorter


def test_the_noised_share_is_that_of_all_who_are_expected() -> None:
    noise = GaussianNoise(count_deviation(1.0, 400))
    shares = np.array([noised_share(300, 400, 400, noise) for _ in range(10_000)])
    assert abs(shares.mean() - 0.75) < SIGMAS * 0.05 / 100
    assert abs(shares.std() / 0.05 - 1) < SIGMAS / math.sqrt(2) / 100


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.1, 100.0])
def test_the_clip_finds_the_quantile_of_the_norms(start: float, quantile: float) -> None:
    norms = np.random.default_rng(7).lognormal(0.5, 0.7, 1000)
    noise, clip, path = GaussianNoise(count_deviation(1.0, 1000)), start, []
    for _ in range(400):
        share = noised_share(int((norms <= clip).sum()), 1000, 1000, noise)
        clip = next_clip_norm(clip, share, quantile, 0.2)
        path.append(clip)
    settled = float(np.exp(np.log(path[250:]).mean()))
    assert float((norms <= settled).mean()) == pytest.approx(quantile, abs=0.05)


def test_the_clip_moves_by_a_factor_and_stays_within_what_can_be_computed_with() -> None:
    assert next_clip_norm(2.0, 1.0, 0.5, 0.2) == pytest.approx(2 * math.exp(-0.1))
    assert next_clip_norm(2.0, 0.0, 0.5, 0.2) == pytest.approx(2 * math.exp(0.1))
    assert next_clip_norm(2.0, 0.5, 0.5, 0.2) == 2.0
    assert next_clip_norm(1e-9, 1e9, 0.5, 10) == LOWEST_CLIP
    assert next_clip_norm(1e12, -1e9, 0.5, 10) == HIGHEST_CLIP
