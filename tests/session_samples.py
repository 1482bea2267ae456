"""One value of every setting of a session that is not its default, and what must be asked for along with it."""

from __future__ import annotations

from typing import Any

from federation.sessions.config import SessionConfig
from federation.sessions.config.words import settings

SAMPLES: dict[str, Any] = {
    "round_timeout_s": 90.5,
    "min_clients": 2,
    "requested_clients": 4,
    "min_updates": 3,
    "goal": 3,
    "grace_s": 7.5,
    "client_ids": [],  # ids of rows: filled in by whoever has some
    "reserves": 2,
    "validate": False,
    "client_settings": {"lr": 0.5},
    "target": {"metric": "accuracy", "value": 0.9, "direction": "max"},
    "max_failed_rounds": 7,
    "start_timeout_s": 30.0,
    "closing_timeout_s": 12.0,
    "lost_after_s": 20.0,
    "aggregator": "fedopt",
    "aggregator_kwargs": {"serveropt": "yogi", "learning_rate": 0.5, "beta1": 0.8, "beta2": 0.9, "tau": 0.01},
    "deterministic": True,
    "compression": "int8",
    "selection.strategy": "guided",
    "selection.where": "region=eu and gpu>=1",
    "selection.fraction": 0.25,
    "selection.over_commitment": 1.5,
    "selection.seed": 42,
    "selection.max_times": 3,
    "selection.exploration": 0.5,
    "selection.exploration_decay": 0.9,
    "selection.exploration_floor": 0.1,
    "selection.cut_off": 0.8,
    "selection.speed_penalty": 1.0,
    "selection.duration_percentile": 50.0,
    "selection.pacer_step": 5,
    "selection.pacer_delta": 10.0,
    "asynchronous.buffer_size": 4,
    "asynchronous.concurrency": 9,
    "asynchronous.max_staleness": 2,
    "asynchronous.staleness_exponent": 1.0,
    "privacy.clip_norm": 0.5,
    "privacy.noise_multiplier": 2.0,
    "privacy.expected_clients": 50,
    "privacy.adaptive": True,
    "privacy.target_quantile": 0.7,
    "privacy.clip_learning_rate": 0.3,
    "privacy.delta": 1e-6,
    "privacy.max_epsilon": 8.0,
}
NEEDS: dict[str, dict[str, Any]] = {
    "aggregator_kwargs": {"aggregator": "fedopt"},
    **{
        f"privacy.{name}": {"privacy.expected_clients": 50}
        for name in ("clip_norm", "noise_multiplier", "adaptive", "delta", "max_epsilon")
    },
    "privacy.target_quantile": {"privacy.adaptive": True, "privacy.expected_clients": 50},
    "privacy.clip_learning_rate": {"privacy.adaptive": True, "privacy.expected_clients": 50},
    "selection.strategy": {"selection.fraction": 0.25},
    "selection.over_commitment": {"selection.fraction": 0.25},
    **{
        place: {"selection.strategy": "guided", "selection.fraction": 0.25}
        for place in SAMPLES
        if place.startswith("selection.")
        and place.partition(".")[2]
        not in ("strategy", "where", "fraction", "over_commitment", "seed", "max_times")
    },
}


def asked(*places: str) -> dict[str, Any]:
    """The samples of these settings and what they need, nested as REST takes them."""
    found: dict[str, Any] = {}
    for place in places:
        for name, value in {**NEEDS.get(place, {}), place: SAMPLES[place]}.items():
            group, _, leaf = name.rpartition(".")
            if group:
                found.setdefault(group, {})[leaf] = value
            else:
                found[leaf] = value
    return found


def kept(config: dict[str, Any], place: str) -> Any:
    """The value of a setting in `Session.config`."""
    value: Any = SessionConfig.from_json(config).to_json()
    for name in place.split("."):
        value = value[name]
    return value


def unsampled() -> set[str]:
    return set(settings()) ^ set(SAMPLES)
