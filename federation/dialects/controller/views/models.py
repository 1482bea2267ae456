"""Models and how files of them are read."""

from __future__ import annotations

from pathlib import PurePosixPath

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from federation.dialects.controller.asked import as_number, fields_of
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.nouns.models import MODELS
from federation.dialects.controller.uploads import sent_file
from federation.dialects.controller.view import ControllerView, answer
from federation.dialects.controller.views.lists import Many
from federation.models.downloads import send_for_helper
from federation.models.selectors import helper_of, lineage
from federation.models.services import bring_model, set_helper
from foundation.errors import StudioError
from projects.choices import Action

_FEW = 10  # ancestors, unless X-Limit asks for more


class Models(Many):
    noun = MODELS

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        """A seed model comes up; sessions that name none start from it."""
        given = fields_of(request)
        with sent_file(request, caller, given) as file:
            stem = PurePosixPath((file.name if file is not None else "") or "").stem
            bring_model(
                actor=caller.actor,
                project=caller.project,
                name=str(given.get("name") or stem or "seed model"),
                helper=str(given.get("helper") or "") or helper_of(caller.project),
                upload=file,
            )
        return answer({"success": True, "message": "Model added successfully"})


class DownloadModel(ControllerView):
    def get(self, request: HttpRequest, caller: Caller, pk: str) -> HttpResponseBase:
        model = MODELS.row(caller, pk)
        return send_for_helper(request, model, helper_of(caller.project))


class Ancestors(ControllerView):
    def get(self, request: HttpRequest, caller: Caller, pk: str) -> HttpResponseBase:
        """A bare list: the model's parent and on to its seed, or the other way round."""
        line = lineage(MODELS.row(caller, pk))
        itself = request.GET.get("include_self", "").lower() == "true"
        most = as_number(request.headers.get("X-Limit")) or _FEW
        found = line[0 if itself else 1 : most + 1]
        if (request.headers.get("X-Reverse") or "").lower() == "true":
            found.reverse()
        return answer(MODELS.shaped(caller, found))


class ActiveHelper(ControllerView):
    def get(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        """A bare string. Status 400 makes the clients take numpyhelper; any other refusal makes them give up."""
        helper = helper_of(caller.project) if caller.may(Action.VIEW) else ""
        if not helper:
            raise StudioError("invalid", "No active helper", 400)
        return answer(helper)

    def put(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        helper = str(fields_of(request).get("helper") or "")
        set_helper(actor=caller.actor, project=caller.project, helper=helper)
        return answer({"message": "Active helper set"})
