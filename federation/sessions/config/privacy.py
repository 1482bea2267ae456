"""Differential privacy of clients, as a session asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from federation.aggregation.aggregators import AGGREGATORS, aggregator_named
from federation.aggregation.privacy import HIGHEST_CLIP, LOWEST_CLIP
from federation.sessions.accounting import epsilon_of_one
from federation.sessions.config.fields import flag, known_only, number
from foundation.errors import invalid

if TYPE_CHECKING:
    from federation.sessions.config.session import SessionConfig

LEAST_NOISE = 1e-3  # below it nothing is protected, and epsilon is above half a million
LEAST_DELTA = 1e-12  # what the accountant can tell from zero


@dataclass(frozen=True)
class PrivacySettings:
    """Each client's change is clipped to an L2 norm of `clip_norm`; Gaussian noise of `noise_multiplier * clip_norm` is
    added to their sum, which is divided by the fixed `expected_clients` (DP-FedAvg: McMahan et al., ICLR 2018). With
    `adaptive`, the clip follows the `target_quantile` of the norms (Andrew et al., NeurIPS 2021), starting at
    `clip_norm`. The session ends before (epsilon, delta) would pass `max_epsilon`."""

    clip_norm: float = 1.0
    noise_multiplier: float = 1.0
    expected_clients: int | None = None  # None: as many as are asked or named, or are drawn on average
    adaptive: bool = False
    target_quantile: float = 0.5
    clip_learning_rate: float = 0.2
    delta: float = 1e-5
    max_epsilon: float | None = None

    @classmethod
    def parse(cls, value: Any) -> PrivacySettings | None:
        """None: without privacy. Raises StudioError 400 with a sentence."""
        if value in (None, "", False):
            return None
        values: Mapping[str, Any] = {} if value is True else value
        known_only(values, "privacy", {f.name for f in fields(cls)})
        d = cls()
        clip_norm = number(values, "clip_norm", d.clip_norm, 0, HIGHEST_CLIP, above=True)
        noise = number(values, "noise_multiplier", d.noise_multiplier, 0, 1e6)
        delta = number(values, "delta", d.delta, 0, 0.5, above=True)
        _at_least("clip_norm", clip_norm, LOWEST_CLIP)
        _at_least("delta", delta, LEAST_DELTA)
        if noise:
            _at_least("noise_multiplier", noise, LEAST_NOISE, "0 (clipping without noise) or ")
        return cls(
            clip_norm=clip_norm,
            noise_multiplier=noise,
            expected_clients=number(values, "expected_clients", None, 1, 10_000_000, whole=True),
            adaptive=flag(values, "adaptive", d.adaptive),
            target_quantile=number(values, "target_quantile", d.target_quantile, 0, 1),
            clip_learning_rate=number(values, "clip_learning_rate", d.clip_learning_rate, 0, 10, above=True),
            delta=delta,
            max_epsilon=number(values, "max_epsilon", None, 0, 1e6, above=True),
        )

    def check_together(self, config: SessionConfig) -> None:
        """Raises StudioError 400 where it does not go with the session's other settings (asynchronous ones say so
        themselves)."""
        if not aggregator_named(config.aggregator).private:
            fit = ", ".join(name for name, one in AGGREGATORS.items() if one.private)
            raise invalid(
                "privacy",
                f"Privacy needs an aggregator that is computed from one clipped and noised sum: {fit}; "
                f"{config.aggregator} looks at the updates themselves.",
            )
        if config.selection.strategy == "guided":
            raise invalid(
                "privacy",
                "Privacy goes with random or Poisson selection: guided selection follows what clients report "
                "about their data, which no noise protects.",
            )
        if config.deterministic and self.noise_multiplier:
            raise invalid(
                "privacy",
                "Privacy and deterministic exclude each other: noise that can be repeated hides nothing.",
            )
        self._check_sampling(config)
        self._check_budget(config)

    def _check_sampling(self, config: SessionConfig) -> None:
        if config.selection.strategy == "poisson" and config.selection.fraction is None:
            raise invalid(
                "selection.fraction",
                "Poisson sampling with privacy needs a fraction: every client's probability must stay the same "
                "when clients join or leave.",
            )
        known = (
            self.expected_clients
            or config.requested_clients
            or config.selection.fraction
            or len(config.client_ids)
        )
        if not known:
            raise invalid(
                "privacy.expected_clients",
                "Privacy divides the sum of changes by a fixed number, not by how many answered: give "
                "expected_clients (or requested_clients, a fraction, or the clients by name).",
            )

    def _check_budget(self, config: SessionConfig) -> None:
        if self.max_epsilon is None:
            return
        if not self.noise_multiplier:
            raise invalid(
                "privacy.max_epsilon",
                "Without noise no epsilon is kept: give a noise_multiplier, or leave max_epsilon out.",
            )
        first = epsilon_of_one(self.noise_multiplier, self.sampling_rate(config), self.delta)
        if first > self.max_epsilon:
            raise invalid(
                "privacy.max_epsilon",
                f"The first round alone would spend epsilon {first:.3g} at delta {self.delta:g}, more than max_epsilon "
                f"{self.max_epsilon:g}: more noise (noise_multiplier), or a higher budget.",
            )

    def sampling_rate(self, config: SessionConfig) -> float:
        """Probability with which a client takes part, where its own coin decides; 1 under every other selection, which
        amplifies nothing."""
        poisson = config.selection.strategy == "poisson"
        return (config.selection.fraction or 1.0) if poisson else 1.0


def _at_least(name: str, value: float, least: float, otherwise: str = "") -> None:
    if value < least:
        raise invalid(
            name,
            f"{name} must be {otherwise}at least {least:g}, not {value:g}: less cannot be computed with.",
        )
