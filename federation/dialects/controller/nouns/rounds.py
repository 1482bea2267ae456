"""Rounds, numbered through all sessions of the project as FEDn does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from federation.dialects.controller.asked import Lookup, as_number, by_id, by_word, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape
from federation.dialects.controller.nouns.sessions import config_shape
from federation.models.selectors import helper_of
from federation.sessions.config import SessionConfig
from federation.sessions.models import CombinerShare, Round
from federation.sessions.selectors import assignment_counts, round_places, rounds_in, shares_of

STATUS = {
    "training": "Pending",
    "closing": "Pending",
    "reducing": "Pending",
    "finished": "Finished",
    "failed": "Failed",
    "stopped": "Terminated",
}
INSIDE: dict[str, list[Any]] = {
    "pending": ["training", "closing", "reducing"],
    "finished": ["finished"],
    "success": ["finished"],
    "failed": ["failed"],
    "terminated": ["stopped"],
}


def rows(caller: Caller) -> Any:
    return rounds_in(caller.actor, caller.project)


def shaped(caller: Caller, found: Sequence[Round]) -> list[Shape]:
    ids = [row.pk for row in found]
    places, shares, asked = round_places(caller.project), shares_of(ids), assignment_counts(ids)
    helper = helper_of(caller.project) or "numpyhelper"
    shapes = []
    for row in found:
        place = str(places[row.pk])
        config = {
            **config_shape(row.session, helper),
            "session_id": str(row.session_id),
            "task": "training",
            "round_id": place,
            "model_id": str(row.input_model_id),
            "client_settings": SessionConfig.from_json(row.session.config).client_settings,
            "is_sl_inference": False,
            "selected_clients": None,
        }
        expected = sum(asked.get(row.pk, {}).values())
        shapes.append(
            {
                "round_id": place,
                "status": STATUS[row.status],
                "reason": row.reason,
                "round_config": config,
                "round_data": _round_data(row),
                "combiners": [
                    _combiner(row, share, place, config, expected) for share in shares.get(row.pk, [])
                ],
                "model_id": str(row.output_model_id) if row.output_model_id else None,
                "committed_at": when(row.created_at),
                "updated_at": when(row.ended_at or row.created_at),
            }
        )
    return shapes


def _round_data(row: Round) -> Shape | None:
    if row.ended_at is None:
        return None
    reducing = row.timings.get("reducing_s", 0.0)
    reduce = {"time_fetch_model": 0.0, "time_load_model": 0.0, "time_aggregate_model": reducing}
    return {"time_commit": row.timings.get("total_s", 0.0), "reduce": reduce}


def _combiner(row: Round, share: CombinerShare, place: str, config: Shape, expected: int) -> Shape:
    closing = row.timings.get("closing_s", 0.0)
    return {
        "name": share.combiner.name,
        "model_id": str(row.output_model_id) if row.output_model_id else None,
        "round_id": place,
        "status": {"finished": "Success", "abandoned": "Failed"}.get(share.status, "Pending"),
        "time_exec_training": row.timings.get("training_s", 0.0),
        "config": config,
        "data": {
            "nr_expected_updates": expected,
            "nr_required_updates": row.min_updates,
            "timeout": config["round_timeout"],
            "time_combination": closing,
            "aggregation_time": {
                "nr_aggregated_models": share.updates,
                "time_model_load": 0.0,
                "time_model_aggregation": closing,
            },
        },
    }


def _at(caller: Caller, places: list[str]) -> list[Any]:
    wanted = {number for place in places if (number := as_number(place)) is not None}
    return [pk for pk, place in round_places(caller.project).items() if place in wanted]


def find(caller: Caller, name: str) -> Lookup | None:
    found = _at(caller, [name])
    return {"pk": found[0]} if found else None


ROUNDS = Noun(
    "rounds",
    rows,
    shaped,
    find,
    filters={
        "status": by_word("status", INSIDE),
        "round_config.session_id": by_id("session_id"),
        "session_id": by_id("session_id"),
        "round_config.model_id": by_id("input_model_id"),
        "model_id": by_id("output_model_id"),
    },
    order={"round_id": "pk", "status": "status", "updated_at": "ended_at"},
)
