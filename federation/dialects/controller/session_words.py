"""A session in the words of FEDn's `session_config`, and in ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from federation.dialects.controller.asked import truth
from federation.models.choices import PackageForm
from federation.models.selectors import active_model, active_package
from federation.sessions.config import SessionSpec, parse_spec
from foundation.errors import invalid
from foundation.plain_json import plain
from projects.models import Project

SPLIT_LEARNING = "splitlearningagg"
DEFAULT_ROUNDS = 5


def spec_from(given: Mapping[str, Any], project: Project) -> SessionSpec:
    """What POST sessions/ asks for. Raises StudioError 400 with a sentence."""
    sent = given.get("session_config")
    if not isinstance(sent, Mapping):
        raise invalid("session_config", "A session needs its settings in session_config.")
    seed = given.get("seed_model_id") or sent.get("model_id") or _seed_of(project)
    min_clients = whole_or_none(sent, "clients_required") or 1
    requested = whole_or_none(sent, "requested_clients")
    package = active_package(project, PackageForm.COMMAND) or active_package(project)
    offered = sent.get("aggregator") not in (None, "", SPLIT_LEARNING)
    values: dict[str, Any] = {
        "name": given.get("name"),
        "seed_model": seed,
        "package": package.pk if package else None,
        "rounds": whole_or_none(sent, "rounds") or DEFAULT_ROUNDS,
        "round_timeout_s": sent.get("round_timeout"),
        "min_clients": min_clients,
        # more clients needed than asked for can only mean: ask for so many
        "requested_clients": max(requested, min_clients) if requested else None,
        "validate": truth(sent.get("validate", True)),
        "client_settings": sent.get("client_settings"),
        "as_sent": plain(dict(sent)),
        "cannot_run": _cannot_run(sent),
    }
    if offered:
        values |= {"aggregator": sent.get("aggregator"), "aggregator_kwargs": sent.get("aggregator_kwargs")}
    buffered = whole_or_none(sent, "buffer_size")
    if buffered is not None and buffered > 0:
        # a round ends after so many updates, also when more clients than that must be there for it to begin
        values |= {"goal": buffered, "min_updates": min(buffered, min_clients)}
    return parse_spec(values)


def _cannot_run(sent: Mapping[str, Any]) -> str:
    """Why a session that is kept as it was sent cannot be run here; empty when it can."""
    if sent.get("server_functions"):
        return (
            "Server functions are kept with the session but not run here: this server runs nobody's code. "
            "Make the session without them."
        )
    if sent.get("aggregator") == SPLIT_LEARNING:
        return "Split learning is not offered here; the session is kept as it was sent."
    return ""


def whole_or_none(given: Mapping[str, Any], name: str) -> int | None:
    """A whole number, also as text; None when it is not there. Raises StudioError 400."""
    value = given.get(name)
    if value in (None, ""):
        return None
    try:
        number = float(value) if not isinstance(value, bool) else None
        if number is not None and number == int(number) and abs(number) < 1e9:
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise invalid(name, f"{name} must be a whole number.")


def _seed_of(project: Project) -> Any:
    model = active_model(project)
    if model is None:
        raise invalid("model_id", "Session seed model not found")
    return model.pk
