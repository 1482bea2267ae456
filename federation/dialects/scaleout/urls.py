"""Addresses below /api/v1/ that only Scaleout's clients and Python API know; none redirects."""

from __future__ import annotations

from typing import Any

from django.urls import URLPattern, re_path
from django.views import View

from federation.dialects.controller.views.lists import Count, Many
from federation.dialects.scaleout import commands, enrolment, uploads
from federation.dialects.scaleout.command_nouns import ROOTS


def at(address: str, view: type[View], name: str, **settings: Any) -> URLPattern:
    pattern = address.replace("<pk>", "(?P<pk>[^/]+)").replace("<upload>", "(?P<upload_id>[^/]+)")
    return re_path(rf"^{pattern}/?$", view.as_view(**settings), name=f"scaleout-{name}")


urlpatterns = [
    at("clients/enroll", enrolment.Enrol, "enrol"),
    at("clients/token", enrolment.Refresh, "token"),
    at("auth/enrollment-tokens", enrolment.EnrolmentTokens, "enrolment-tokens"),
    at("file-upload/init", uploads.Begin, "upload"),
    at("file-upload/<upload>/chunk", uploads.Chunk, "upload-chunk"),
    at("file-upload/<upload>/complete", uploads.Complete, "upload-complete"),
    at("file-upload/<upload>/abort", uploads.Abort, "upload-abort"),
    at("control/run_command", commands.RunCommand, "run-command"),
    at("control/start_inference", commands.StartInference, "inference"),
    at("control/stop", commands.StopCurrent, "stop"),
    at("control/continue", commands.ContinueCurrent, "continue"),
    at("models/<pk>/stage", commands.StageModel, "stage"),
    at("validations/start", commands.StartValidation, "validation"),
    at("commands", commands.Commands, "commands"),
    at("commands/roots", Many, "commands-roots", noun=ROOTS),
    at("commands/count", Count, "commands-count", noun=ROOTS),
    at("commands/<pk>", commands.OneCommand, "command"),
    at("commands/<pk>/stop", commands.EndCommand, "command-stop"),
    at("commands/<pk>/skip", commands.EndCommand, "command-skip", skip=True),
    at("statuses", commands.Statuses, "statuses"),
    at("combiners/(?!count/?$|list/?$)<pk>", commands.OneCombiner, "combiner"),
]
