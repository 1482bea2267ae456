"""How the updates of a session count: what clients must know and send, and each one's weight in the fold."""

from __future__ import annotations

from typing import Any

from federation.aggregation import aggregators
from federation.aggregation.aggregators import AGGREGATORS, Aggregator, Privacy, UpdateFacts
from federation.sessions.config import SessionConfig


def aggregator_of(config: SessionConfig) -> Aggregator | None:
    """None: there is none of that name any more; the reduction says so."""
    return AGGREGATORS.get(config.aggregator)


def collects(config: SessionConfig) -> bool:
    """Whether the combiners copy updates to storage as they came, and the worker reads them there."""
    aggregator = aggregator_of(config)
    return config.deterministic or (aggregator is not None and aggregator.collects)


def needs_delta_norm(config: SessionConfig) -> bool:
    """Whether it matters how far an update lies from the model that it answers."""
    aggregator = aggregator_of(config)
    return config.privacy is not None or (aggregator is not None and aggregator.needs_delta_norm)


def adopts_partial(config: SessionConfig) -> bool:
    """Whether the partial of a combiner that was alone in a round is the round's model as it is."""
    aggregator = aggregator_of(config)
    return (
        aggregator is not None
        and aggregator.plain_mean
        and config.privacy is None
        and config.asynchronous is None
        and not collects(config)
    )


def settings_of_clients(config: SessionConfig) -> dict[str, Any]:
    """The session's client settings, and what its aggregator adds where they say nothing."""
    aggregator = aggregator_of(config)
    given = aggregator.client_settings(config.aggregator_kwargs) if aggregator is not None else {}
    return {**given, **(config.client_settings or {})}


def fold_weight(facts: UpdateFacts, config: SessionConfig, privacy: Privacy | None) -> float:
    """Weight of an update in the sum, from 0, by the session's aggregator, its privacy and the update's staleness.

    Raises StudioError when it can have none.
    """
    aggregator = aggregator_of(config)
    if aggregator is None:
        return facts.num_examples
    return aggregators.fold_weight(
        aggregator,
        facts,
        config.aggregator_kwargs,
        privacy=privacy,
        staleness_exponent=config.asynchronous.staleness_exponent if config.asynchronous else None,
    )


def check_countable(facts: UpdateFacts, config: SessionConfig) -> None:
    """Raises StudioError with a sentence when the update lacks what it counts by, or can have no weight."""
    aggregator = aggregator_of(config)
    if aggregator is not None:
        aggregator.check_metadata(facts.metadata)
        aggregators.fold_weight(
            aggregator, facts, config.aggregator_kwargs, privacy=None, staleness_exponent=None
        )
