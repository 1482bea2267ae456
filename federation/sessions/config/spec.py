"""A request for a session, checked whole: each value, and how they go together."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from federation.aggregation.aggregators import aggregator_named
from federation.sessions.config.asynchronous import AsyncSettings
from federation.sessions.config.fields import (
    choice,
    flag,
    json_object,
    number,
    row_id,
    storable,
    within,
)
from federation.sessions.config.privacy import PrivacySettings
from federation.sessions.config.selection import SelectionSettings
from federation.sessions.config.session import COMPRESSIONS, SessionConfig, Target
from foundation.errors import invalid

T = TypeVar("T")
MAX_NAMED_CLIENTS = 10_000
MAX_ROUNDS = 100_000
MAX_TIMEOUT_S = 7 * 86400.0


@dataclass(frozen=True)
class SessionSpec:
    """A request for a session: what it starts from and how it is to run."""

    name: str
    seed_model_id: uuid.UUID
    package_id: uuid.UUID | None
    rounds: int
    config: SessionConfig


def _target(value: Any) -> Target | None:
    if value in (None, "", {}):
        return None
    if (
        not isinstance(value, Mapping)
        or not isinstance(value.get("metric"), str)
        or not value["metric"].strip()
    ):
        raise invalid(
            "target", 'target must be like {"metric": "accuracy", "value": 0.95, "direction": "max"}.'
        )
    direction = value.get("direction", "max")
    if direction not in ("max", "min"):
        raise invalid("target", 'The direction of target must be "max" or "min".')
    goal = number({"target.value": value.get("value")}, "target.value", None, -1e300, 1e300)
    if goal is None:
        raise invalid("target", "target needs a value to reach.")
    return Target(value["metric"].strip()[:120], goal, direction)


def parse_client_ids(value: Any, *, needed: int) -> list[str]:
    """A list of client ids, or text with commas between them; empty: all. Raises StudioError 400."""
    given = value.split(",") if isinstance(value, str) else value or []
    if not isinstance(given, list) or len(given) > MAX_NAMED_CLIENTS:
        raise invalid(
            "client_ids", f"client_ids must be a list of at most {MAX_NAMED_CLIENTS} ids of clients."
        )
    try:
        ids = sorted({str(uuid.UUID(str(one).strip())) for one in given if str(one).strip()})
    except ValueError:
        raise invalid("client_ids", "client_ids must be ids of this project's clients.") from None
    if ids and len(ids) < needed:
        raise invalid("client_ids", f"client_ids names {len(ids)} clients, but a round needs {needed}.")
    return ids


def _group(values: Mapping[str, Any], name: str) -> Any:
    """A group of settings: true or false, or an object (or text) of them."""
    value = values.get(name)
    if value is None or isinstance(value, bool):
        return value
    return json_object(values, name, "settings") or (None if value == "" else {})


def _parsed(values: Mapping[str, Any], name: str, parse: Callable[[Any], T]) -> T:
    with within(name):
        return parse(_group(values, name))


def parse_spec(values: Mapping[str, Any]) -> SessionSpec:
    """Check the fields of a request for a session (JSON or form). Raises StudioError with a sentence."""
    name = str(values.get("name") or "").strip()
    if len(name) > 120:
        raise invalid("name", "The name of a session must be at most 120 characters.")
    seed = row_id(values, "seed_model")
    if seed is None:
        raise invalid(
            "seed_model", "A session needs a seed model: choose one of the project's models or upload one."
        )
    min_clients = number(values, "min_clients", 1, 1, 100_000, whole=True)
    requested = number(values, "requested_clients", None, 1, 100_000, whole=True)
    min_updates = number(values, "min_updates", None, 1, 100_000, whole=True)
    if requested is not None and requested < min_clients:
        raise invalid("requested_clients", "requested_clients must not be fewer than min_clients.")
    if min_updates is not None and min_updates > (requested or max(min_clients, min_updates)):
        raise invalid("min_updates", "min_updates must not be more than requested_clients.")
    goal = number(values, "goal", None, 1, 100_000, whole=True)
    if goal is not None and goal < (min_updates or min_clients):
        raise invalid("goal", "goal must not be fewer than min_updates, without which no round counts.")
    reserves = number(values, "reserves", 0, 0, 1000, whole=True)
    if goal is not None and reserves:
        raise invalid("reserves", "reserves and goal exclude each other: both ask for more than is needed.")
    aggregator = aggregator_named(values.get("aggregator") or SessionConfig.aggregator)
    spec = SessionSpec(
        name=name,
        seed_model_id=seed,
        package_id=row_id(values, "package"),
        rounds=number(values, "rounds", 5, 1, MAX_ROUNDS, whole=True),
        config=SessionConfig(
            round_timeout_s=number(values, "round_timeout_s", 180.0, 1, MAX_TIMEOUT_S),
            min_clients=min_clients,
            requested_clients=requested,
            min_updates=min_updates,
            goal=goal,
            grace_s=number(values, "grace_s", None, 0, MAX_TIMEOUT_S),
            client_ids=parse_client_ids(values.get("client_ids"), needed=max(min_clients, min_updates or 1)),
            selection=_parsed(values, "selection", SelectionSettings.parse),
            reserves=reserves,
            validate=flag(values, "validate", True),
            client_settings=storable(
                json_object(values, "client_settings", "hyper-parameters"), "client_settings"
            ),
            target=_target(values.get("target")),
            max_failed_rounds=number(values, "max_failed_rounds", 3, 1, 1000, whole=True),
            start_timeout_s=number(values, "start_timeout_s", 600.0, 1, 30 * 86400),
            closing_timeout_s=number(values, "closing_timeout_s", 30.0, 1, 3600),
            lost_after_s=number(values, "lost_after_s", 60.0, 5, 86400),
            aggregator=aggregator.name,
            aggregator_kwargs=aggregator.check(json_object(values, "aggregator_kwargs", "arguments")),
            asynchronous=_parsed(values, "asynchronous", AsyncSettings.parse),
            privacy=_parsed(values, "privacy", PrivacySettings.parse),
            deterministic=flag(values, "deterministic", False),
            compression=choice(values, "compression", COMPRESSIONS, "none"),
            as_sent=json_object(values, "as_sent", "settings"),
            cannot_run=str(values.get("cannot_run") or "")[:500],
        ),
    )
    if spec.config.asynchronous is not None:  # first: it says what is there in place of the others
        spec.config.asynchronous.check_together(spec.config)
    spec.config.selection.check_together(spec.config)
    if spec.config.privacy is not None:
        spec.config.privacy.check_together(spec.config)
    _check_enough_updates(spec.config)
    return spec


def _check_enough_updates(config: SessionConfig) -> None:
    aggregator = aggregator_named(config.aggregator)
    least = aggregator.least_updates(config.aggregator_kwargs)
    if config.asynchronous is None and config.needed_updates < least:
        raise invalid(
            "min_updates",
            f"{aggregator.title} needs at least {least} updates in a round with these arguments: "
            f"set min_updates to {least} or more.",
        )
