"""Addresses below /api/v1/."""

from __future__ import annotations

from django.urls import path

from federation.models import api

_PROJECT = "projects/<slug:slug>"

urlpatterns = [
    path(f"{_PROJECT}/packages/", api.Packages.as_view(), name="api-packages"),
    path(f"{_PROJECT}/packages/<uuid:pk>/", api.OnePackage.as_view(), name="api-package"),
    path(
        f"{_PROJECT}/packages/<uuid:pk>/download/", api.PackageDownload.as_view(), name="api-package-download"
    ),
    path(f"{_PROJECT}/models/", api.Models.as_view(), name="api-models"),
    path(f"{_PROJECT}/models/<uuid:pk>/", api.OneModel.as_view(), name="api-model"),
    path(f"{_PROJECT}/models/<uuid:pk>/download/", api.ModelDownload.as_view(), name="api-model-download"),
    path(f"{_PROJECT}/models/<uuid:pk>/lineage/", api.Lineage.as_view(), name="api-model-lineage"),
    path(
        f"{_PROJECT}/models/<uuid:pk>/validations/",
        api.ModelValidations.as_view(),
        name="api-model-validations",
    ),
    path(f"{_PROJECT}/validations/", api.Validations.as_view(), name="api-validations"),
    path(f"{_PROJECT}/metrics/", api.Metrics.as_view(), name="api-metrics"),
]
