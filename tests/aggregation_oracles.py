"""What every aggregator should make of a round, written plainly from its paper on whole float64 arrays.

Nothing here knows of blocks, partials or Gram matrices. An oracle takes a `Played` round and returns the next model
before it is rounded to the dtypes; what it remembers from round to round it keeps in `memory`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import assume

from federation.aggregation.layout import FLOATS, Layout

Arrays = dict[str, np.ndarray]


@dataclass
class Played:
    """One round: the model, the updates with what their clients said, and the models that they answer."""

    layout: Layout
    x: Arrays
    updates: list[Arrays]
    examples: list[float]
    metadata: list[dict[str, Any]]
    arguments: dict[str, Any]
    bases: list[Arrays] = field(default_factory=list)  # of each update; empty: x
    discounts: list[float] = field(default_factory=list)  # for their staleness; empty: 1
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def floats(self) -> list[str]:
        return [spec.name for spec in self.layout.tensors if spec.dtype in FLOATS]

    @property
    def rest(self) -> list[str]:
        return [spec.name for spec in self.layout.tensors if spec.dtype not in FLOATS]

    def base(self, i: int) -> Arrays:
        return self.bases[i] if self.bases else self.x

    def discount(self, i: int) -> float:
        return self.discounts[i] if self.discounts else 1.0

    def change(self, i: int, name: str) -> np.ndarray:
        return wide(self.updates[i][name]) - wide(self.base(i)[name])

    def norm(self, i: int) -> float:
        return math.sqrt(sum(float((self.change(i, name) ** 2).sum()) for name in self.floats))

    @property
    def counted(self) -> list[float]:
        """Examples, less the discount of staleness: what counters and flags are averaged by."""
        return [n * self.discount(i) for i, n in enumerate(self.examples)]


Oracle = Callable[[Played], Arrays]


def wide(array: np.ndarray) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def mean(played: Played, weights: list[float], name: str) -> np.ndarray:
    total = sum(w * wide(update[name]) for w, update in zip(weights, played.updates, strict=True))
    return np.asarray(total / sum(weights))


def stepped(played: Played, D: Arrays, weights: list[float], step: Callable[[str, np.ndarray], np.ndarray]):
    """Floats take the step, counters and flags the mean by the weights of the sum."""
    new = {name: wide(played.x[name]) + step(name, D[name]) for name in played.floats}
    return new | {name: mean(played, weights, name) for name in played.rest}


def averaged_change(played: Played) -> Arrays:
    """sum_i s_i n_i (x_i - base_i) / sum_i n_i: as FedBuff, staleness is in the sum and not in what divides it"""
    return {
        name: sum((n * played.change(i, name) for i, n in enumerate(played.counted)), np.zeros(1))
        / sum(played.examples)
        for name in played.floats
    }


def fedavg(played: Played) -> Arrays:
    weights = played.counted
    return stepped(played, averaged_change(played), weights, lambda _, change: change)


def fednova(played: Played) -> Arrays:
    rho = played.arguments["local_momentum"]

    def a(tau: float) -> float:  # |a_i|_1, its entries (1 - rho^(tau - k)) / (1 - rho), summed one by one
        return sum((1 - rho ** (tau - k)) / (1 - rho) for k in range(int(tau)))

    norms = [a(one["num_steps"]) for one in played.metadata]
    p = [n / sum(played.examples) for n in played.examples]
    s = [played.discount(i) for i in range(len(p))]
    tau_eff = sum(p_i * norm for p_i, norm in zip(p, norms, strict=True))
    D = {
        name: tau_eff * sum(s[i] * p[i] * played.change(i, name) / norms[i] for i in range(len(p)))
        for name in played.floats
    }
    weights = [s[i] * p[i] / norms[i] for i in range(len(p))]
    return stepped(played, D, weights, lambda _, change: change)


def qfedavg(played: Played) -> Arrays:
    q, L = played.arguments["q"], 1 / played.arguments["learning_rate"]
    F = [one["loss"] + 1e-10 for one in played.metadata]
    s = [played.discount(i) for i in range(len(F))]
    h = [q * F[i] ** (q - 1) * (L * played.norm(i)) ** 2 + L * F[i] ** q for i in range(len(F))]
    D = {
        name: sum(s[i] * F[i] ** q * L * played.change(i, name) for i in range(len(F))) / sum(h)
        for name in played.floats
    }
    weights = [s[i] * F[i] ** q for i in range(len(F))]
    return stepped(played, D, weights, lambda _, change: change)


def normclip(played: Played) -> Arrays:
    f = [
        min(1.0, played.arguments["max_norm"] / played.norm(i)) if played.norm(i) else 1.0
        for i in range(len(played.updates))
    ]
    n = played.counted
    D = {
        name: sum(n[i] * f[i] * played.change(i, name) for i in range(len(n))) / sum(played.examples)
        for name in played.floats
    }
    return stepped(played, D, [n_i * f_i for n_i, f_i in zip(n, f, strict=True)], lambda _, change: change)


def momentum_step(
    arguments: dict[str, Any], memory: dict[str, Any]
) -> Callable[[str, np.ndarray], np.ndarray]:
    beta, eta = arguments["momentum"], arguments["learning_rate"]

    def step(name: str, D: np.ndarray) -> np.ndarray:
        memory[name] = beta * memory.get(name, 0.0) + D
        ahead = D + beta * memory[name] if arguments["kind"] == "nesterov" else memory[name]
        return np.asarray(eta * ahead)

    return step


def adaptive_step(
    kind: str, arguments: dict[str, Any], memory: dict[str, Any]
) -> Callable[[str, np.ndarray], np.ndarray]:
    eta, beta_1, tau = arguments["learning_rate"], arguments["beta1"], arguments["tau"]
    beta_2 = arguments.get("beta2", 0.0)

    def step(name: str, D: np.ndarray) -> np.ndarray:
        m, v = memory.get(name, (np.zeros_like(D), np.full_like(D, tau**2)))
        m = beta_1 * m + (1 - beta_1) * D
        if kind == "adagrad":
            v = v + D**2
        elif kind == "yogi":
            v = v - (1 - beta_2) * D**2 * np.sign(v - D**2)
        else:
            v = beta_2 * v + (1 - beta_2) * D**2
        memory[name] = (m, v)
        return np.asarray(eta * m / (np.sqrt(v) + tau))

    return step


def fedavgm(played: Played) -> Arrays:
    step = momentum_step(played.arguments, played.memory)
    return stepped(played, averaged_change(played), played.counted, step)


def adaptive(kind: str) -> Oracle:
    def oracle(played: Played) -> Arrays:
        which = played.arguments.get("serveropt", kind)
        step = adaptive_step(which, played.arguments, played.memory)
        return stepped(played, averaged_change(played), played.counted, step)

    return oracle


# --- robust ones: every tensor, counters too, by the same rule ------------------------------------------------------
def stacked(played: Played, name: str, chosen: list[int] | None = None) -> np.ndarray:
    which = range(len(played.updates)) if chosen is None else chosen
    return np.stack([wide(played.updates[i][name]) for i in which])


def each(played: Played, rule: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    return {spec.name: rule(stacked(played, spec.name)) for spec in played.layout.tensors}


def fedmedian(played: Played) -> Arrays:
    return each(played, lambda values: np.median(values, axis=0))


def trimmedmean(played: Played) -> Arrays:
    count = len(played.updates)
    cut = int(played.arguments["beta"] * count + 1e-9)
    return each(played, lambda values: np.sort(values, axis=0)[cut : count - cut].mean(axis=0))


def distances(played: Played) -> np.ndarray:
    """|x_i - x_j|^2 over float tensors, subtracted before they are squared."""
    flat = [
        np.concatenate([np.zeros(1), *(wide(update[name]).ravel() for name in played.floats)])
        for update in played.updates
    ]
    return np.array([[float(((a - b) ** 2).sum()) for b in flat] for a in flat])


def krum_order(squared: np.ndarray, f: int) -> list[int]:
    """Updates by their Krum score; rounds in which rounding could decide are not asked for."""
    count = len(squared)
    scores = [
        sum(sorted(squared[i][j] for j in range(count) if j != i)[: max(count - f - 2, 1)])
        for i in range(count)
    ]
    order = sorted(range(count), key=lambda i: (scores[i], i))
    for one, other in itertools.pairwise(order):
        gap = scores[other] - scores[one]
        assume(gap == 0 or gap > 1e-9 * float(squared.max()))
    return order


def multikrum(played: Played) -> Arrays:
    f = played.arguments["byzantine"]
    keep = played.arguments.get("keep", 1) or len(played.updates) - f - 2
    chosen = krum_order(distances(played), f)[:keep]
    return {spec.name: stacked(played, spec.name, chosen).mean(axis=0) for spec in played.layout.tensors}


def bulyan(played: Played) -> Arrays:
    f, count = played.arguments["byzantine"], len(played.updates)
    squared, left, chosen = distances(played), list(range(count)), []
    for _ in range(count - 2 * f):
        best = left[krum_order(squared[np.ix_(left, left)], f)[0]]
        chosen.append(best)
        left.remove(best)
    beta = count - 4 * f

    def near_the_median(values: np.ndarray) -> np.ndarray:
        smallest_first = np.sort(values, axis=0)
        far = np.abs(smallest_first - np.median(values, axis=0))
        nearest = np.argsort(far, axis=0, kind="stable")[:beta]
        return np.asarray(np.take_along_axis(smallest_first, nearest, axis=0).mean(axis=0))

    return {spec.name: near_the_median(stacked(played, spec.name, chosen)) for spec in played.layout.tensors}


def geometricmedian(played: Played) -> Arrays:
    arguments, count = played.arguments, len(played.updates)
    w = played.examples if arguments["weights"] == "examples" else [1.0] * count
    names = [spec.name for spec in played.layout.tensors]
    radii = [float(np.median(np.sqrt(row))) for row in distances(played)]
    v: Arrays = {}
    for _ in range(arguments["max_iterations"] + 1):
        c = [w_i / max(arguments["smoothing"], r) for w_i, r in zip(w, radii, strict=True)]
        older = v
        v = {
            name: sum((c[i] * wide(played.updates[i][name]) for i in range(count)), np.zeros(1)) / sum(c)
            for name in names
        }
        radii = [
            math.sqrt(sum(float(((v[name] - wide(update[name])) ** 2).sum()) for name in played.floats))
            for update in played.updates
        ]
        if older:
            step = math.sqrt(sum(float(((v[name] - older[name]) ** 2).sum()) for name in played.floats))
            if step <= arguments["tolerance"] * float(np.median(radii)):
                break
    return v


ORACLES: dict[str, Oracle] = {
    "fedavg": fedavg,
    "fedprox": fedavg,
    "fednova": fednova,
    "qfedavg": qfedavg,
    "normclip": normclip,
    "fedavgm": fedavgm,
    "fedadam": adaptive("adam"),
    "fedyogi": adaptive("yogi"),
    "fedadagrad": adaptive("adagrad"),
    "fedopt": adaptive(""),
    "fedmedian": fedmedian,
    "trimmedmean": trimmedmean,
    "krum": multikrum,
    "multikrum": multikrum,
    "bulyan": bulyan,
    "geometricmedian": geometricmedian,
}
