"""The controller's addresses, with or without a slash at the end, below /api/v1/ and below a project's own prefix."""

from __future__ import annotations

from django.urls import URLPattern, include, path, re_path

from federation.dialects.controller.noun import Noun
from federation.dialects.controller.nouns.clients import CLIENTS
from federation.dialects.controller.nouns.combiners import COMBINERS
from federation.dialects.controller.nouns.metrics import METRICS
from federation.dialects.controller.nouns.models import MODELS
from federation.dialects.controller.nouns.packages import PACKAGES
from federation.dialects.controller.nouns.predictions import PREDICTIONS
from federation.dialects.controller.nouns.rounds import ROUNDS
from federation.dialects.controller.nouns.runs import RUNS
from federation.dialects.controller.nouns.sessions import SESSIONS
from federation.dialects.controller.nouns.statuses import STATUSES
from federation.dialects.controller.nouns.telemetry import TELEMETRY
from federation.dialects.controller.nouns.validations import VALIDATIONS
from federation.dialects.controller.view import ControllerView, UnknownAddress
from federation.dialects.controller.views import attributes, joining, models, packages, predictions, sessions
from federation.dialects.controller.views.lists import Count, Many, ManyByBody, One

SLUG = r"(?P<slug>[-a-zA-Z0-9_]+)"


def at(address: str, view: type[ControllerView], name: str) -> URLPattern:
    pattern = address.replace("<pk>", "(?P<pk>[^/]+)")
    return re_path(rf"^{pattern}/?$", view.as_view(), name=name)


def lists_of(noun: Noun, one: bool = True, many: bool = True) -> list[URLPattern]:
    """Those of a noun that need no view of their own; `count` and `list` come before any id."""
    name, plain = noun.name, []
    if many:
        plain.append(re_path(rf"^{name}/?$", Many.as_view(noun=noun), name=name))
    plain.append(re_path(rf"^{name}/list/?$", ManyByBody.as_view(noun=noun), name=f"{name}-list"))
    plain.append(re_path(rf"^{name}/count/?$", Count.as_view(noun=noun), name=f"{name}-count"))
    if one:
        plain.append(re_path(rf"^{name}/(?P<pk>[^/]+)/?$", One.as_view(noun=noun), name=f"{name}-one"))
    return plain


below_v1 = [
    at("clients/add", joining.Join, "clients-add"),
    at("clients/config", joining.ClientConfig, "clients-config"),
    at("clients/<pk>/attributes", attributes.ClientAttributes, "client-attributes"),
    *lists_of(CLIENTS),
    *lists_of(COMBINERS),
    at("helpers/active", models.ActiveHelper, "helpers-active"),
    at("models", models.Models, "models"),
    at("models/<pk>/download", models.DownloadModel, "model-download"),
    at("models/<pk>/ancestors", models.Ancestors, "model-ancestors"),
    *lists_of(MODELS, many=False),
    at("packages", packages.Packages, "packages"),
    at("packages/active", packages.ActivePackage, "packages-active"),
    at("packages/download", packages.DownloadPackage, "packages-download"),
    at("packages/checksum", packages.PackageChecksum, "packages-checksum"),
    *lists_of(PACKAGES, many=False),
    at("sessions", sessions.Sessions, "sessions"),
    at("sessions/start", sessions.StartSession, "sessions-start"),
    at("sessions/start_splitlearning_session", sessions.StartSplitLearning, "sessions-split-learning"),
    *lists_of(SESSIONS, many=False, one=False),
    at("sessions/<pk>", sessions.OneSession, "sessions-one"),
    *lists_of(ROUNDS),
    *lists_of(STATUSES),
    # `fedn status get` leaves the slash out
    re_path(r"^statuses(?P<pk>[0-9]+)/?$", One.as_view(noun=STATUSES), name="statuses-glued"),
    *lists_of(VALIDATIONS),
    *lists_of(METRICS),
    *lists_of(TELEMETRY),
    *lists_of(RUNS),
    at("attributes", attributes.Attributes, "attributes"),
    at("attributes/current", attributes.CurrentAttributes, "attributes-current"),
    at("attributes/list", attributes.AttributesByBody, "attributes-list"),
    at("attributes/count", attributes.AttributesCount, "attributes-count"),
    at("attributes/<pk>", attributes.OneAttribute, "attributes-one"),
    at("predictions/start", predictions.StartPredictions, "predictions-start"),
    *lists_of(PREDICTIONS),
]
status = at("get_controller_status", sessions.ControllerStatus, "status")

# The project is the token's.
urlpatterns = [
    path("api/v1/", include((below_v1, "controller"))),
    path("", include(([status], "controller-root"))),
]
# The project is named, as FEDn's command line has it; must agree with the token.
by_project = [
    re_path(
        rf"^{SLUG}-fedn-reducer/",
        include(
            (
                [
                    path("api/v1/", include((below_v1, "v1"))),
                    status,
                    re_path(r"^", UnknownAddress.as_view(), name="unknown"),
                ],
                "reducer",
            )
        ),
    )
]
