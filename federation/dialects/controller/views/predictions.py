"""Predictions: no round of this server asks for any yet, so there are none."""

from __future__ import annotations

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from federation.dialects.controller.asked import fields_of
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.nouns.models import MODELS
from federation.dialects.controller.view import ControllerView, answer
from foundation.errors import StudioError, invalid


class Predictions(ControllerView):
    def get(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        return answer({"count": 0, "result": []})


class PredictionsByBody(ControllerView):
    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        fields_of(request)
        return answer({"count": 0, "result": []})


class PredictionsCount(ControllerView):
    def get(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        return answer(0)

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        fields_of(request)
        return answer(0)


class OnePrediction(ControllerView):
    def get(self, request: HttpRequest, caller: Caller, pk: str) -> HttpResponseBase:
        raise StudioError("not_found", f"Entity with id: {pk[:200]} not found", 404)


class StartPredictions(ControllerView):
    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        given = fields_of(request)
        if not given.get("prediction_id"):
            raise invalid("prediction_id", "prediction_id is required")
        if given.get("model_id"):
            MODELS.row(caller, str(given["model_id"]))
        raise StudioError("not_offered", "Predictions by clients are not offered here yet.", 400)
