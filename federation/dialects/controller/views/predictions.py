"""Asking clients for predictions, outside any session."""

from __future__ import annotations

import uuid

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from federation.dialects.controller.asked import as_uuid, fields_of
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.nouns.models import MODELS
from federation.dialects.controller.nouns.predictions import NAME
from federation.dialects.controller.view import ControllerView, answer
from federation.models.selectors import active_model
from federation.sessions.choices import CommandKind
from federation.sessions.commands import CommandSpec, start_command
from foundation.errors import StudioError, invalid

_LONGEST = 200


class StartPredictions(ControllerView):
    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        """All clients that are online predict with a model: the named one, else the newest."""
        given = fields_of(request)
        name = given.get("prediction_id")
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST:
            raise invalid("prediction_id", "prediction_id is required")
        if given.get("model_id"):
            model_id = _known(caller, str(given["model_id"]))
        else:
            model = active_model(caller.project)
            if model is None:
                raise StudioError("invalid", "No models available", 400)
            model_id = model.pk
        spec = CommandSpec(
            kind=CommandKind.PREDICT, model_id=model_id, parameters={NAME: name}, command_id=as_uuid(name)
        )
        start_command(actor=caller.actor, project=caller.project, spec=spec)
        return answer({"message": "Prediction session started"})


def _known(caller: Caller, model_id: str) -> uuid.UUID:
    try:
        found: uuid.UUID = MODELS.row(caller, model_id).pk
        return found
    except StudioError:
        raise StudioError("not_found", f"Model {model_id[:200]} not found", 404) from None
