"""Epsilon: dp-accounting's loss distributions against closed forms, published figures and a Rényi bound."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from scipy import integrate, stats

from federation.sessions.accounting import (
    Release,
    epsilon,
    epsilon_bound,
    epsilon_of_one,
    gaussian_delta,
    gaussian_epsilon,
    renyi_epsilon,
)

DELTA = 1e-5


def test_a_hundred_sampled_rounds_have_the_known_epsilon() -> None:
    """q = 0.1, z = 1, delta = 1e-5: 7.05 by loss distributions, 7.90 by Rényi divergences."""
    assert epsilon([Release(1.0, 0.1, 100)], DELTA) == pytest.approx(7.05, abs=0.01)
    assert renyi_epsilon([Release(1.0, 0.1, 100)], DELTA) == pytest.approx(7.95, abs=0.06)


@pytest.mark.parametrize(
    ("noise", "delta"), [(0.3, 1e-3), (1.0, 1e-5), (4.2, 1e-9), (30.0, 1e-6), (0.05, 1e-5)]
)
def test_one_gaussian_has_the_epsilon_at_which_its_tails_differ_by_delta(noise: float, delta: float) -> None:
    """Balle & Wang's formula against the integral that defines delta: of max(0, p - exp(epsilon) q)."""
    found = gaussian_epsilon(noise, delta)

    def excess(x: float) -> float:
        p, q = stats.norm.logpdf(x, 1, noise), stats.norm.logpdf(x, 0, noise)
        return max(0.0, math.exp(p) - math.exp(min(found + q, 700.0)))

    threshold = noise * noise * found + 0.5
    integral, _ = integrate.quad(excess, threshold, threshold + 12 * noise, epsabs=delta * 1e-9, limit=500)
    assert integral == pytest.approx(delta, rel=1e-6)
    assert gaussian_delta(noise, found) == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize("noise", [0.2, 1.0, 7.0])
@pytest.mark.parametrize("rounds", [2, 30, 1000])
def test_rounds_without_sampling_compose_to_one_gaussian(noise: float, rounds: int) -> None:
    exact = gaussian_epsilon(noise / math.sqrt(rounds), DELTA)
    assert epsilon([Release(noise, 1.0, rounds)], DELTA) == pytest.approx(exact, rel=1e-3)
    assert epsilon_bound([Release(noise, 1.0, rounds)], DELTA) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.1), (0.5, 0.01), (5.0, 0.5), (0.3, 0.9)])
def test_one_sampled_round_in_closed_form_is_what_the_loss_distribution_says(
    noise: float, rate: float
) -> None:
    from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=1e-4)
    accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)))
    assert epsilon_of_one(noise, rate, DELTA) == pytest.approx(accountant.get_epsilon(DELTA), abs=2e-4)


@pytest.mark.parametrize("noise", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("rate", [0.005, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("rounds", [2, 50, 2000])
def test_epsilon_lies_below_the_renyi_bound_and_above_one_round(
    noise: float, rate: float, rounds: int
) -> None:
    spent = epsilon([Release(noise, rate, rounds)], DELTA)
    assert epsilon_of_one(noise, rate, DELTA) <= spent
    assert spent <= renyi_epsilon([Release(noise, rate, rounds)], DELTA) * (1 + 1e-9)


def test_sampling_amplifies_and_more_noise_or_a_larger_delta_costs_less() -> None:
    def at(noise: float = 1.0, rate: float = 0.1, delta: float = DELTA) -> float:
        return epsilon([Release(noise, rate, 20)], delta)

    assert at(rate=0.01) < at(rate=0.1) < at(rate=1.0)
    assert at(noise=2.0) < at(noise=1.0) < at(noise=0.5)
    assert at(delta=1e-3) < at(delta=1e-5) < at(delta=1e-8)


def test_every_round_adds_and_how_rounds_are_listed_does_not_matter() -> None:
    spent = [epsilon([Release(1.1, 0.2, rounds)], DELTA) for rounds in range(1, 12)]
    assert all(before < after for before, after in pairwise(spent))
    one_by_one = epsilon([Release(1.1, 0.2) for _ in range(11)], DELTA)
    assert one_by_one == spent[-1]
    assert epsilon([], DELTA) == 0


def test_rounds_with_other_settings_are_composed_with_them() -> None:
    both = [Release(1.0, 1.0, 3), Release(2.0, 1.0, 5)]
    exact = gaussian_epsilon(1 / math.sqrt(3 / 1 + 5 / 4), DELTA)
    assert epsilon(both, DELTA) == pytest.approx(exact, rel=1e-3)
    mixed = epsilon([Release(1.0, 0.1, 10), Release(1.0, 1.0, 1)], DELTA)
    assert epsilon_of_one(1.0, 1.0, DELTA) < mixed < gaussian_epsilon(1 / math.sqrt(11), DELTA)


def test_one_round_without_noise_leaves_no_bound() -> None:
    assert epsilon([Release(1.0, 0.1, 10), Release(0.0, 0.1, 1)], DELTA) == math.inf
    assert epsilon_of_one(0.0, 1.0, DELTA) == math.inf


@pytest.mark.parametrize("noise", [1e-3, 1e-2, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("rate", [1e-4, 0.3, 1.0])
@pytest.mark.parametrize("rounds", [1, 100_000])
def test_every_setting_that_is_allowed_has_a_number_and_takes_little_memory(
    noise: float, rate: float, rounds: int
) -> None:
    """The step of the distributions follows epsilon: with a fixed one, little noise took 19 GB."""
    import resource

    for delta in (1e-12, DELTA, 0.5):
        spent = epsilon([Release(noise, rate, rounds)], delta)
        assert 0 <= spent < math.inf
        assert spent <= epsilon_bound([Release(noise, rate, rounds)], delta)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1_500_000  # KiB


def test_pages_and_combiners_do_not_wait_for_the_accountant_to_be_imported() -> None:
    script = (
        "import os, sys, django; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'; django.setup()\n"
        "import federation.sessions.privacy, federation.sessions.tasks, federation.combiner.core\n"
        "from federation.sessions.accounting import epsilon_of_one; epsilon_of_one(1.0, 0.1, 1e-5)\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('dp_accounting', 'scipy', 'tree')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_figures_of_the_documentation_are_what_is_accounted() -> None:
    page = (Path(__file__).parent.parent / "docs" / "privacy.md").read_text()
    rows = page.split("<!-- epsilon -->")[1].split("<!-- end -->")[0].strip().splitlines()[2:]
    rate, seen = 1.0, 0
    for row in rows:
        words, *figures = row.strip("| ").split(" | ")
        if "fraction" in words:
            rate = float(words.split("fraction ")[1].split(",")[0])
        noise = float(words.split("z = ")[1])
        for rounds, figure in zip((1, 10, 100, 1000), figures, strict=True):
            assert float(figure) == pytest.approx(epsilon([Release(noise, rate, rounds)], DELTA), rel=5e-3)
            seen += 1
    assert seen == 24
