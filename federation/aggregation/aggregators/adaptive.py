"""What the adaptive server optimisers are told, each with its own defaults (Reddi et al., ICLR 2021)."""

from __future__ import annotations

from .arguments import Number


def learning_rate(default: float) -> Number:
    return Number(
        "learning_rate",
        "Server learning rate",
        default,
        "About how far a number of the model may move in a round.",
        above=0,
    )


def beta1(default: float) -> Number:
    return Number(
        "beta1",
        "Momentum (beta1)",
        default,
        "Share of earlier rounds in a step, from 0 to below 1.",
        at_least=0,
        below=1,
    )


def beta2(hint: str = "Share of earlier rounds in the scale, from 0 to below 1.") -> Number:
    return Number("beta2", "Memory of scale (beta2)", 0.99, hint, at_least=0, below=1)


def tau(default: float) -> Number:
    return Number(
        "tau",
        "Adaptivity (tau)",
        default,
        "Smaller is more adaptive; usual are 0.0001 to 0.1.",
        above=0,
        below=1e12,
    )
