"""What a session is asked to do, checked before it becomes a row."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from federation.aggregation.aggregators import aggregator_named
from foundation.errors import invalid

MAX_SETTINGS_BYTES = 64 * 1024
MAX_NAMED_CLIENTS = 10_000


@dataclass(frozen=True)
class Target:
    """Stop when the mean of `metric` over clients reaches `value`."""

    metric: str
    value: float
    direction: str = "max"

    def met_by(self, value: float) -> bool:
        return value >= self.value if self.direction == "max" else value <= self.value


@dataclass(frozen=True)
class SessionConfig:
    """Settings of a session, as kept in `Session.config`. Times in seconds."""

    round_timeout_s: float = 180.0
    min_clients: int = 1  # a round does not begin with fewer
    requested_clients: int | None = None  # all that are online
    min_updates: int | None = None  # as many as min_clients
    goal: int | None = None  # a round may end after so many updates; None: when everybody has answered
    client_ids: list[str] = field(default_factory=list)  # only these take part; empty: whoever is online
    reserves: int = 0  # clients that may be asked in place of ones that went away
    validate: bool = True
    client_settings: dict[str, Any] = field(default_factory=dict)
    target: Target | None = None
    target_from_round: int = 1
    max_failed_rounds: int = 3
    start_timeout_s: float = 600.0
    closing_timeout_s: float = 30.0
    lost_after_s: float = 60.0
    aggregator: str = "fedavg"
    aggregator_kwargs: dict[str, Any] = field(default_factory=dict)  # all of the aggregator's arguments
    as_sent: dict[str, Any] = field(default_factory=dict)  # what a foreign client asked for and reads back
    cannot_run: str = ""  # why a session that is kept as it was sent is never started, as a sentence

    @property
    def needed_updates(self) -> int:
        return self.min_updates or self.min_clients

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SessionConfig:
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in stored.items() if key in known}
        if values.get("target"):
            values["target"] = Target(**values["target"])
        return cls(**values)


@dataclass(frozen=True)
class SessionSpec:
    """A request for a session: what it starts from and how it is to run."""

    name: str
    seed_model_id: uuid.UUID
    package_id: uuid.UUID | None
    rounds: int
    config: SessionConfig


def _number(values: Mapping[str, Any], name: str, default: Any, low: float, high: float, whole: bool) -> Any:
    value = values.get(name, default)
    if value is None or value == "":
        return default
    kind = "a whole number" if whole else "a number"
    sentence = f"{name} must be {kind} from {low:g} to {high:g}, not {value!r}."
    if isinstance(value, bool):
        raise invalid(name, sentence)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise invalid(name, sentence) from None
    if not math.isfinite(number) or not low <= number <= high or (whole and number != int(number)):
        raise invalid(name, sentence)
    return int(number) if whole else number


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
    number = _number({"target.value": value.get("value")}, "target.value", None, -1e300, 1e300, whole=False)
    if number is None:
        raise invalid("target", "target needs a value to reach.")
    return Target(value["metric"].strip()[:120], number, direction)


def _json_object(values: Mapping[str, Any], name: str, what: str) -> dict[str, Any]:
    value = values.get(name)
    if value in (None, ""):
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise invalid(name, f"{name} is not valid JSON: {str(error)[:200]}.") from None
        if value is None:
            return {}
    if not isinstance(value, dict):
        raise invalid(name, f"{name} must be a JSON object of {what}.")
    if len(json.dumps(value)) > MAX_SETTINGS_BYTES:
        raise invalid(name, f"{name} must be at most 64 KiB of JSON.")
    return value


def _uuid(values: Mapping[str, Any], name: str) -> uuid.UUID | None:
    value = values.get(name)
    if value in (None, ""):
        return None
    try:
        return uuid.UUID(str(value))
    except ValueError:
        raise invalid(name, f"{name} must be the id of one of this project's rows.") from None


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


def parse_spec(values: Mapping[str, Any]) -> SessionSpec:
    """Check the fields of a request for a session (JSON or form). Raises StudioError with a sentence."""
    name = str(values.get("name") or "").strip()
    if len(name) > 120:
        raise invalid("name", "The name of a session must be at most 120 characters.")
    seed = _uuid(values, "seed_model")
    if seed is None:
        raise invalid(
            "seed_model", "A session needs a seed model: choose one of the project's models or upload one."
        )
    min_clients = _number(values, "min_clients", 1, 1, 100_000, whole=True)
    requested = _number(values, "requested_clients", None, 1, 100_000, whole=True)
    min_updates = _number(values, "min_updates", None, 1, 100_000, whole=True)
    if requested is not None and requested < min_clients:
        raise invalid("requested_clients", "requested_clients must not be fewer than min_clients.")
    if min_updates is not None and min_updates > (requested or max(min_clients, min_updates)):
        raise invalid("min_updates", "min_updates must not be more than requested_clients.")
    goal = _number(values, "goal", None, 1, 100_000, whole=True)
    if goal is not None and goal < (min_updates or min_clients):
        raise invalid("goal", "goal must not be fewer than min_updates, without which no round counts.")
    reserves = _number(values, "reserves", 0, 0, 1000, whole=True)
    if goal is not None and reserves:
        raise invalid("reserves", "reserves and goal exclude each other: both ask for more than is needed.")
    aggregator = aggregator_named(values.get("aggregator") or SessionConfig.aggregator)
    validate = values.get("validate", True)
    if isinstance(validate, str):
        validate = validate.lower() in ("true", "1", "on", "yes")
    return SessionSpec(
        name=name,
        seed_model_id=seed,
        package_id=_uuid(values, "package"),
        rounds=_number(values, "rounds", 5, 1, 100_000, whole=True),
        config=SessionConfig(
            round_timeout_s=_number(values, "round_timeout_s", 180.0, 1, 7 * 86400, whole=False),
            min_clients=min_clients,
            requested_clients=requested,
            min_updates=min_updates,
            goal=goal,
            client_ids=parse_client_ids(values.get("client_ids"), needed=max(min_clients, min_updates or 1)),
            reserves=reserves,
            validate=bool(validate),
            client_settings=_json_object(values, "client_settings", "hyper-parameters"),
            target=_target(values.get("target")),
            max_failed_rounds=_number(values, "max_failed_rounds", 3, 1, 1000, whole=True),
            start_timeout_s=_number(values, "start_timeout_s", 600.0, 1, 30 * 86400, whole=False),
            closing_timeout_s=_number(values, "closing_timeout_s", 30.0, 1, 3600, whole=False),
            lost_after_s=_number(values, "lost_after_s", 60.0, 5, 86400, whole=False),
            aggregator=aggregator.name,
            aggregator_kwargs=aggregator.check(_json_object(values, "aggregator_kwargs", "arguments")),
            as_sent=_json_object(values, "as_sent", "settings"),
            cannot_run=str(values.get("cannot_run") or "")[:500],
        ),
    )
