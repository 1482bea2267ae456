"""Differential privacy of a session's rounds: what is settled as one opens, what it has spent once it is committed.

The clip norm in force and the divisor are settled with the round (`Round.plan["privacy"]`), before any client answers.
What the noised model of a round spent, and the clip norm of the next, are written in the transaction that commits it:
a round that fails publishes nothing and spends nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q

from federation.aggregation.aggregators import Privacy
from federation.aggregation.privacy import (
    GaussianNoise,
    count_deviation,
    next_clip_norm,
    noised_share,
    sum_noise_multiplier,
)
from federation.sessions.accounting import Release, epsilon, epsilon_of_one
from federation.sessions.choices import AssignmentStatus, RoundStatus, ShareStatus
from federation.sessions.config import PrivacySettings, SessionConfig
from federation.sessions.models import Assignment, Round, Session
from federation.sessions.selection import population
from foundation.errors import StudioError


@dataclass(frozen=True)
class Spent:
    """What committing a round costs: the session's epsilon with it (None: no bound), and what its plan keeps."""

    epsilon: float | None
    plan: dict[str, Any]


def settle(session: Session, config: SessionConfig) -> dict[str, Any]:
    """What a round that opens now goes by, for its plan; {} without privacy. Session is locked.

    `noise_multiplier` is that of the sum; with an adaptive clip it is larger than `total_noise_multiplier`, the
    one that is accounted, since the noised count of clipped changes spends too.
    """
    settings = config.privacy
    if settings is None:
        return {}
    before = _last(session)
    divisor = before.get("divisor") or _divisor(session, config, settings)
    total = settings.noise_multiplier
    return {
        "privacy": {
            "clip_norm": before.get("next_clip_norm") or settings.clip_norm,
            "noise_multiplier": sum_noise_multiplier(total, divisor) if settings.adaptive else total,
            "total_noise_multiplier": total,
            "divisor": divisor,
            "sampling_rate": settings.sampling_rate(config),
        }
    }


def of_round(round_: Round, config: SessionConfig) -> Privacy | None:
    """What is folded and reduced by; None without privacy. No query. Raises StudioError 500 rather than let a round of
    a private session pass without."""
    if config.privacy is None:
        return None
    plan = round_.plan.get("privacy")
    if not plan:
        raise StudioError(
            "no_privacy", "It was not settled how this round of a private session is noised.", 500
        )
    return Privacy(
        clip_norm=plan["clip_norm"], noise_multiplier=plan["noise_multiplier"], divisor=plan["divisor"]
    )


def account(round_: Round, config: SessionConfig) -> Spent | None:
    """What the session will have spent once `round_` is committed, and the next round's clip norm, newly drawn: call it
    once for each attempt to reduce, outside of transactions (it may take a second). None without privacy."""
    settings = config.privacy
    if settings is None:
        return None
    of_round(round_, config)
    plan = dict(round_.plan["privacy"])
    this = Release(plan["total_noise_multiplier"], plan["sampling_rate"])
    rows = [Release(*row) for row in _last(round_.session).get("released", [])]
    released = _merged([*rows, this])
    plan["released"] = [[one.noise_multiplier, one.sampling_rate, one.rounds] for one in released]
    plan["next_epsilon"] = _finite(epsilon([*released, this], settings.delta))
    if settings.adaptive:
        plan["next_clip_norm"] = _next_clip(round_, settings, plan)
    plan["delta"] = settings.delta
    return Spent(_finite(epsilon(released, settings.delta)), {"privacy": plan})


def told(spent: Spent) -> dict[str, Any]:
    """What a noised model says of itself. How many took part, and with how many examples, is as private as they."""
    return {"epsilon": spent.epsilon, "delta": spent.plan["privacy"]["delta"]}


def budget_spent(session: Session, config: SessionConfig) -> str:
    """The sentence that says that one more round would pass the budget; empty: it would not."""
    settings = config.privacy
    if settings is None or settings.max_epsilon is None:
        return ""
    before = _last(session)
    if "next_epsilon" in before:
        after = before["next_epsilon"]
    else:
        after = _finite(
            epsilon_of_one(settings.noise_multiplier, settings.sampling_rate(config), settings.delta)
        )
    if after is not None and after <= settings.max_epsilon:
        return ""
    would = "would have no bound" if after is None else f"would come to {after:.4g}"
    return (
        f"Privacy budget spent: with another round epsilon {would}, above max_epsilon {settings.max_epsilon:g} "
        f"(delta {settings.delta:g})."
    )


def _last(session: Session) -> dict[str, Any]:
    """The plan of the session's last committed round."""
    row = (
        Round.objects.filter(session=session, status=RoundStatus.FINISHED)
        .order_by("-number")
        .values_list("plan", flat=True)
        .first()
    )
    return dict((row or {}).get("privacy") or {})


def _divisor(session: Session, config: SessionConfig, settings: PrivacySettings) -> float:
    """Who answers does not change it. Where clients are drawn, as many as are drawn on average of those that there are
    when the session's first round opens."""
    fraction = config.selection.fraction
    return float(
        settings.expected_clients
        or config.requested_clients
        or (fraction and max(1.0, fraction * population(session, config)))
        or len(config.client_ids)
        or config.min_clients
    )


def _merged(releases: list[Release]) -> list[Release]:
    rounds: dict[tuple[float, float], int] = {}
    for one in releases:
        alike = (one.noise_multiplier, one.sampling_rate)
        rounds[alike] = rounds.get(alike, 0) + one.rounds
    return [Release(*alike, count) for alike, count in rounds.items()]


def _next_clip(round_: Round, settings: PrivacySettings, plan: dict[str, Any]) -> float:
    counts = Assignment.objects.filter(
        share__round=round_, share__status=ShareStatus.FINISHED, status=AssignmentStatus.ACCEPTED
    ).aggregate(updates=Count("id"), unclipped=Count("id", filter=Q(delta_norm__lte=plan["clip_norm"])))
    noise = GaussianNoise(count_deviation(settings.noise_multiplier, plan["divisor"]))
    share = noised_share(counts["unclipped"], counts["updates"], plan["divisor"], noise)
    return next_clip_norm(plan["clip_norm"], share, settings.target_quantile, settings.clip_learning_rate)


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
