"""Addresses below /api/v1/."""

from __future__ import annotations

from django.urls import path

from clients_app import api

urlpatterns = [
    path("projects/<slug:slug>/clients/", api.Clients.as_view(), name="api-clients"),
    path("projects/<slug:slug>/clients/<uuid:pk>/", api.OneClient.as_view(), name="api-client"),
    path("projects/<slug:slug>/clients/<uuid:pk>/config/", api.NewConfig.as_view(), name="api-client-config"),
    path("projects/<slug:slug>/combiners/", api.Combiners.as_view(), name="api-combiners"),
    path("site/combiners/<str:name>/", api.OneCombiner.as_view(), name="api-combiner"),
    path("site/combiners/<str:name>/drain/", api.Drain.as_view(), name="api-combiner-drain"),
    path("site/combiners/<str:name>/resume/", api.Resume.as_view(), name="api-combiner-resume"),
    path("client/", api.ClientSelf.as_view(), name="api-client-self"),
    path("client/enrol/", api.Enrol.as_view(), name="api-client-enrol"),
]
