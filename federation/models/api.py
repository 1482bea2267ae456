"""REST: compute packages, the model trail, validations and metrics."""

from __future__ import annotations

from typing import Any

import django_filters
from django.db.models import QuerySet
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from federation.models import selectors, services
from federation.models.downloads import send_model, send_package
from federation.models.models import ComputePackage, Metric, Model, Validation
from federation.models.serializers import (
    LineageOut,
    MetricOut,
    ModelDetailOut,
    ModelOut,
    PackageIn,
    PackageOut,
    SeedModelIn,
    ValidationOut,
)
from foundation.idempotency import idempotent
from projects.actors import actor_of
from projects.api import body
from projects.choices import Action
from projects.models import Project
from projects.scoping import reach
from projects.selectors import project_by_slug

_BINARY = {(200, "application/octet-stream"): OpenApiTypes.BINARY}


class _AsItIs(BaseContentNegotiation):
    """For downloads: `?format=` names a model's format here, not a renderer."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Any, renderers: Any, format_suffix: Any = None) -> Any:
        return renderers[0], renderers[0].media_type


def _project(view: Any, action: Action = Action.VIEW) -> Project:
    return project_by_slug(actor_of(view.request), view.kwargs["slug"], action)


@extend_schema(tags=["packages"])
class Packages(ListAPIView[ComputePackage]):
    serializer_class = PackageOut
    queryset = ComputePackage.objects.none()
    filterset_fields = {"name": ["exact", "icontains"], "sha256": ["exact"]}
    parser_classes = [MultiPartParser, FormParser]

    def get_queryset(self) -> QuerySet[ComputePackage]:
        return selectors.packages_of(actor_of(self.request), _project(self))

    @extend_schema(
        operation_id="packages_create",
        request={"multipart/form-data": PackageIn},
        responses={201: PackageOut},
    )
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Upload a compute package. It is checked as it lies and never run here."""
        project = _project(self, Action.RUN)
        given = body(PackageIn, request)
        row = services.create_package(
            actor=actor_of(request),
            project=project,
            name=given["name"],
            description=given["description"],
            upload=given["file"],
        )
        return Response(PackageOut(row).data, status=status.HTTP_201_CREATED)


class _OnePackage(GenericAPIView[ComputePackage]):
    serializer_class = PackageOut
    queryset = ComputePackage.objects.none()

    def _row(self, pk: Any) -> ComputePackage:
        actor = actor_of(self.request)
        row: ComputePackage = reach(
            selectors.packages_of(actor, _project(self)), actor, Action.VIEW, "compute package", pk=pk
        )
        return row


@extend_schema(tags=["packages"])
class OnePackage(_OnePackage):
    @extend_schema(operation_id="packages_retrieve")
    def get(self, request: Request, slug: str, pk: Any) -> Response:
        return Response(PackageOut(self._row(pk)).data)

    @extend_schema(operation_id="packages_delete", responses={204: None})
    def delete(self, request: Request, slug: str, pk: Any) -> Response:
        """Delete a package that no session uses."""
        services.delete_package(actor=actor_of(request), package=self._row(pk))
        return Response(status=status.HTTP_204_NO_CONTENT)


@extend_schema(tags=["packages"])
class PackageDownload(_OnePackage):
    permission_classes = [IsAuthenticated]  # a client fetches what it runs
    content_negotiation_class = _AsItIs

    @extend_schema(operation_id="packages_download", responses=_BINARY)
    def get(self, request: Request, slug: str, pk: Any) -> HttpResponseBase:
        """The archive. Its ETag is its sha256; a client token of the project may fetch it too."""
        return send_package(request._request, selectors.package_for_download(actor_of(request), slug, pk))


class ModelFilter(django_filters.FilterSet):  # type: ignore[misc]
    session = django_filters.UUIDFilter(field_name="session_id")
    parent = django_filters.UUIDFilter(field_name="parent_id")
    round = django_filters.NumberFilter(field_name="round_number", min_value=0, max_value=2**31 - 1)

    class Meta:
        model = Model
        fields = {"kind": ["exact"], "name": ["exact", "icontains"], "sha256": ["exact"]}


@extend_schema(tags=["models"])
class Models(ListAPIView[Model]):
    serializer_class = ModelOut
    queryset = Model.objects.none()
    filterset_class = ModelFilter
    parser_classes = [MultiPartParser, FormParser]

    def get_queryset(self) -> QuerySet[Model]:
        return selectors.trail(actor_of(self.request), _project(self))

    def paginate_queryset(self, queryset: Any) -> Any:
        page = super().paginate_queryset(queryset)
        self.means = selectors.means_of([row.pk for row in page or []])
        return page

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "means": getattr(self, "means", {})}

    @extend_schema(
        operation_id="models_create",
        request={"multipart/form-data": SeedModelIn},
        responses={201: ModelDetailOut},
    )
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Upload a seed model, .npz or .safetensors. Pickles are refused."""
        project = _project(self, Action.RUN)
        given = body(SeedModelIn, request)
        row = services.create_seed_model(
            actor=actor_of(request), project=project, name=given["name"], upload=given["file"]
        )
        return Response(ModelDetailOut(row).data, status=status.HTTP_201_CREATED)


class _OneModel(GenericAPIView[Model]):
    serializer_class = ModelDetailOut
    queryset = Model.objects.none()

    def _row(self, pk: Any) -> Model:
        actor = actor_of(self.request)
        row: Model = reach(selectors.trail(actor, _project(self)), actor, Action.VIEW, "model", pk=pk)
        return row


@extend_schema(tags=["models"])
class OneModel(_OneModel):
    @extend_schema(operation_id="models_retrieve")
    def get(self, request: Request, slug: str, pk: Any) -> Response:
        row = self._row(pk)
        return Response(ModelDetailOut(row, context={"means": selectors.means_of([row.pk])}).data)

    @extend_schema(operation_id="models_delete", responses={204: None})
    def delete(self, request: Request, slug: str, pk: Any) -> Response:
        """Delete a seed model that no session began with."""
        services.delete_seed_model(actor=actor_of(request), model=self._row(pk))
        return Response(status=status.HTTP_204_NO_CONTENT)


_FORMAT = OpenApiParameter(
    "format", OpenApiTypes.STR, enum=["safetensors", "npz"], description="safetensors unless told"
)


@extend_schema(tags=["models"])
class ModelDownload(_OneModel):
    content_negotiation_class = _AsItIs

    @extend_schema(operation_id="models_download", parameters=[_FORMAT], responses=_BINARY)
    def get(self, request: Request, slug: str, pk: Any) -> HttpResponseBase:
        """The weights. As safetensors the ETag is the model's sha256."""
        wanted = request.query_params.get("format", "safetensors")
        return send_model(request._request, self._row(pk), wanted)


@extend_schema(tags=["models"])
class Lineage(_OneModel):
    pagination_class = None

    @extend_schema(operation_id="models_lineage", responses={200: LineageOut})
    def get(self, request: Request, slug: str, pk: Any) -> Response:
        """From the model back to its seed, in one page."""
        line = selectors.lineage(self._row(pk))
        return Response(LineageOut({"next": None, "previous": None, "results": line}).data)


class ValidationFilter(django_filters.FilterSet):  # type: ignore[misc]
    model = django_filters.UUIDFilter(field_name="model_id")
    session = django_filters.UUIDFilter(field_name="session_id")
    client = django_filters.UUIDFilter(field_name="client_id")

    class Meta:
        model = Validation
        fields: list[str] = []


@extend_schema(tags=["models"])
class Validations(ListAPIView[Validation]):
    """What clients reported, each with its whole JSON."""

    serializer_class = ValidationOut
    queryset = Validation.objects.none()
    filterset_class = ValidationFilter

    def get_queryset(self) -> QuerySet[Validation]:
        return selectors.validations(actor_of(self.request), _project(self))


@extend_schema_view(get=extend_schema(tags=["models"], operation_id="models_validations_list"))
class ModelValidations(Validations):
    """What clients reported of one model, each with its whole JSON."""

    def get_queryset(self) -> QuerySet[Validation]:
        actor, project = actor_of(self.request), _project(self)
        model: Model = reach(
            selectors.trail(actor, project), actor, Action.VIEW, "model", pk=self.kwargs["pk"]
        )
        return selectors.validations(actor, project, model=model.pk)


class MetricFilter(ValidationFilter):
    source = django_filters.ChoiceFilter(choices=Metric.Source.choices)
    name = django_filters.CharFilter(max_length=120)
    round = django_filters.NumberFilter(field_name="round_number", min_value=0, max_value=2**31 - 1)

    class Meta:
        model = Metric
        fields: list[str] = []


@extend_schema(tags=["models"])
class Metrics(ListAPIView[Metric]):
    """Single numbers: of a validation, its weighted mean (no client), of training, or logged in it."""

    serializer_class = MetricOut
    queryset = Metric.objects.none()
    filterset_class = MetricFilter

    def get_queryset(self) -> QuerySet[Metric]:
        return selectors.metrics(actor_of(self.request), _project(self))
