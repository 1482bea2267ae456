"""Server optimisers: what becomes of the mean change of a round, element by element, in float64.

Notation: x the model, D the mean change of its updates (the negative of a gradient), so that x + D is their mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .blocks import Float64s


class ServerOptimiser(ABC):
    """One step per round; `moments` name the float64 numbers per element that it remembers."""

    moments: ClassVar[tuple[str, ...]] = ()

    @property
    def at_first(self) -> tuple[float, ...]:
        """What every element's moments are before the first step."""
        return (0.0,) * len(self.moments)

    @abstractmethod
    def step(self, x: Float64s, change: Float64s, moments: Sequence[Float64s], scratch: Float64s) -> None:
        """Turn x and its moments, shape (n,), into those after the step, in place; `change` and `scratch` (n,) are
        overwritten."""


@dataclass(frozen=True)
class Plain(ServerOptimiser):
    """x_{t+1} = x_t + D"""

    def step(self, x: Float64s, change: Float64s, moments: Sequence[Float64s], scratch: Float64s) -> None:
        np.add(x, change, out=x)


@dataclass(frozen=True)
class Momentum(ServerOptimiser):
    """Server momentum (Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", 2019, section 3):

        v_t = momentum v_{t-1} + D,  v_0 = 0
        x_{t+1} = x_t + learning_rate v_t
        x_{t+1} = x_t + learning_rate (D + momentum v_t)      with Nesterov's look ahead (Sutskever et al., ICML 2013)
    """

    moments = ("first_moment",)
    learning_rate: float = 1.0
    momentum: float = 0.9
    nesterov: bool = False

    def step(self, x: Float64s, change: Float64s, moments: Sequence[Float64s], scratch: Float64s) -> None:
        (v,) = moments
        np.multiply(v, self.momentum, out=v)
        np.add(v, change, out=v)
        if self.nesterov:
            np.multiply(v, self.momentum, out=scratch)
            np.add(scratch, change, out=scratch)
            np.multiply(scratch, self.learning_rate, out=scratch)
        else:
            np.multiply(v, self.learning_rate, out=scratch)
        np.add(x, scratch, out=x)


@dataclass(frozen=True)
class Adaptive(ServerOptimiser):
    """FedAdam, FedYogi and FedAdagrad (Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2):

        m_t = beta1 m_{t-1} + (1 - beta1) D,  m_0 = 0
        v_t = v_{t-1} + D^2                                          adagrad,  v_0 = tau^2
            = v_{t-1} - (1 - beta2) D^2 sign(v_{t-1} - D^2)          yogi
            = beta2 v_{t-1} + (1 - beta2) D^2                        adam
        x_{t+1} = x_t + learning_rate m_t / (sqrt(v_t) + tau)

    There is no bias correction, as in the paper.
    """

    moments = ("first_moment", "second_moment")
    serveropt: str = "adam"
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-4

    @property
    def at_first(self) -> tuple[float, ...]:
        return 0.0, self.tau**2

    def step(self, x: Float64s, change: Float64s, moments: Sequence[Float64s], scratch: Float64s) -> None:
        m, v = moments
        np.multiply(m, self.beta1, out=m)
        np.multiply(change, 1.0 - self.beta1, out=scratch)
        np.add(m, scratch, out=m)
        squares = np.multiply(change, change, out=scratch)
        if self.serveropt == "adagrad":
            np.add(v, squares, out=v)
        elif self.serveropt == "yogi":
            signs = np.sign(np.subtract(v, squares, out=change), out=change)
            np.multiply(squares, 1.0 - self.beta2, out=squares)
            np.multiply(squares, signs, out=squares)
            np.subtract(v, squares, out=v)
        else:
            np.multiply(squares, 1.0 - self.beta2, out=squares)
            np.multiply(v, self.beta2, out=v)
            np.add(v, squares, out=v)
        np.add(np.sqrt(v, out=scratch), self.tau, out=scratch)
        np.divide(m, scratch, out=change)
        np.multiply(change, self.learning_rate, out=change)
        np.add(x, change, out=x)
