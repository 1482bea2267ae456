"""What noised sums tell about one client: (epsilon, delta) of a session's rounds.

Adding or removing all of one client's data moves a round's sum of clipped changes by at most the clip norm, so a round
is a Gaussian mechanism of sensitivity 1 and deviation `noise_multiplier`; when each client takes part by its own coin,
a Poisson-subsampled one. Rounds are composed by their privacy loss distributions with dp-accounting (Koskela, Jälkö,
Honkela, AISTATS 2020; Doroshenko et al., PETS 2022), every rounding upwards. dp-accounting takes a second or more to
import, so only `epsilon` does, in the worker that reduces; what a page must know before a session exists,
`epsilon_of_one`, has a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

# Steps of a privacy loss distribution from 0 to epsilon: the result is about a thousandth too high at most, for some
# 100,000 numbers of memory. A fixed step would take gigabytes where there is little noise.
STEPS_TO_EPSILON = 20_000
STEPS_OF_ONE_ROUND = 50_000
LEAST_STEP = 1e-7
# A larger bound says nothing; it is shown, but not computed more precisely.
PRECISE_UP_TO = 10_000.0
ORDERS = (*(1 + n / 2 for n in range(1, 4)), *range(3, 64), 80, 100, 128, 192, 256, 512)


@dataclass(frozen=True, order=True)
class Release:
    """Rounds alike: noise of `noise_multiplier` clip norms on the sum, each client in it with `sampling_rate` (1: all
    count as if they took part every time)."""

    noise_multiplier: float
    sampling_rate: float = 1.0
    rounds: int = 1


def epsilon(releases: Iterable[Release], delta: float) -> float:
    """The epsilon (an upper bound) of all `releases` together at `delta`; infinite when one had no noise, 0 for none.
    From some 20 ms to a second, by the fineness that it takes; the same question is answered from memory."""
    counts: dict[tuple[float, float], int] = {}
    for one in releases:
        alike = (one.noise_multiplier, one.sampling_rate)
        counts[alike] = counts.get(alike, 0) + one.rounds
    return _epsilon(
        tuple(sorted(Release(*alike, rounds) for alike, rounds in counts.items() if rounds)), delta
    )


@lru_cache(maxsize=1024)
def _epsilon(releases: tuple[Release, ...], delta: float) -> float:
    if any(one.noise_multiplier <= 0 for one in releases):
        return math.inf
    if [one.rounds for one in releases] == [1]:
        return epsilon_of_one(releases[0].noise_multiplier, releases[0].sampling_rate, delta)
    bound = epsilon_bound(releases, delta)
    if not 0 < bound <= PRECISE_UP_TO:
        return bound
    floor = max(LEAST_STEP, *(_largest_loss(one) / STEPS_OF_ONE_ROUND for one in releases))
    found = min(bound, _by_loss_distributions(releases, delta, max(bound / STEPS_TO_EPSILON, floor)))
    if found < bound / 4:  # the bound was far off, and with it the step
        found = min(found, _by_loss_distributions(releases, delta, max(found / STEPS_TO_EPSILON, floor)))
    return found


def _largest_loss(one: Release) -> float:
    """How much one round may tell, but for one time in 10**12."""
    beyond = 7 / one.noise_multiplier + 0.5 / one.noise_multiplier**2
    return math.log1p(one.sampling_rate * math.expm1(beyond)) if beyond < 500 else beyond


def _by_loss_distributions(releases: tuple[Release, ...], delta: float, step: float) -> float:
    from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=step)
    for one in releases:
        noise = GaussianDpEvent(one.noise_multiplier)
        sampled = noise if one.sampling_rate >= 1 else PoissonSampledDpEvent(one.sampling_rate, noise)
        accountant.compose(sampled, one.rounds)
    return float(accountant.get_epsilon(delta))


def epsilon_of_one(noise_multiplier: float, sampling_rate: float, delta: float) -> float:
    """The exact epsilon of a single round: log(1 + q (exp(epsilon') - 1)), epsilon' that of the Gaussian mechanism at
    delta / q (Balle, Barthe, Gaboardi, NeurIPS 2018, theorem 8)."""
    if noise_multiplier <= 0:
        return math.inf
    if delta >= sampling_rate:
        return 0.0
    whole = gaussian_epsilon(noise_multiplier, delta / sampling_rate)
    if whole > 500:  # exp() would overflow; the two differ by log(q)
        return whole + math.log(sampling_rate)
    return math.log1p(sampling_rate * math.expm1(whole))


def epsilon_bound(releases: Iterable[Release], delta: float) -> float:
    """An upper bound without dp-accounting: as if all clients took part always, or by Rényi divergences, whichever is
    lower. Exact where no sampling amplifies."""
    rows = list(releases)
    if any(one.noise_multiplier <= 0 for one in rows):
        return math.inf
    if not rows:
        return 0.0
    together = math.sqrt(sum(one.rounds / one.noise_multiplier**2 for one in rows))
    bound = gaussian_epsilon(1.0 / together, delta)
    return bound if all(one.sampling_rate >= 1 for one in rows) else min(bound, renyi_epsilon(rows, delta))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The exact epsilon of one Gaussian mechanism of sensitivity 1 (Balle & Wang, ICML 2018, theorem 8)."""
    low, high = 0.0, 1.0
    while gaussian_delta(noise_multiplier, high) > delta:
        low, high = high, high * 2
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if gaussian_delta(noise_multiplier, middle) > delta else (low, middle)
    return 0.0 if gaussian_delta(noise_multiplier, 0.0) <= delta else high


def gaussian_delta(noise_multiplier: float, at: float) -> float:
    """delta of one Gaussian mechanism at epsilon `at`: Phi(mu/2 - e/mu) - exp(e) Phi(-mu/2 - e/mu), mu = 1 / z."""
    mu = 1.0 / noise_multiplier
    within, beyond = at / mu - mu / 2, at / mu + mu / 2
    return math.exp(_log_tail(within)) - math.exp(at + _log_tail(beyond))


def _log_tail(x: float) -> float:
    """log of the probability that a standard normal lies above x."""
    if x < 25:
        return math.log(math.erfc(x / math.sqrt(2)) / 2)
    square = 1 / (x * x)  # asymptotic series; the next term is below 1e-9 of it
    series = 1 - square * (1 - 3 * square * (1 - 5 * square * (1 - 7 * square)))
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log(series)


def renyi_epsilon(releases: Iterable[Release], delta: float) -> float:
    """The bound by Rényi divergences: of order a, n rounds of the sampled Gaussian mechanism (Mironov, Talwar, Zhang,
    2019, section 3.3, whole orders) add up; turned into epsilon after Canonne, Kamath, Steinke (NeurIPS 2020,
    proposition 12)."""
    rows = list(releases)
    best = math.inf
    for order in ORDERS:
        divergence = sum(one.rounds * _renyi(one, order) for one in rows)
        spent = divergence + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        best = min(best, spent)
    return max(best, 0.0)


def _renyi(one: Release, order: float) -> float:
    q, z = one.sampling_rate, one.noise_multiplier
    if q >= 1:
        return order / (2 * z * z)
    if order != int(order):
        return math.inf
    whole = int(order)
    terms = [
        math.lgamma(whole + 1)
        - math.lgamma(k + 1)
        - math.lgamma(whole - k + 1)
        + (whole - k) * math.log1p(-q)
        + k * math.log(q)
        + k * (k - 1) / (2 * z * z)
        for k in range(whole + 1)
    ]
    top = max(terms)
    return max(0.0, (top + math.log(math.fsum(math.exp(term - top) for term in terms))) / (whole - 1))
