"""Addresses without a slash at the end; with one they are our own API's."""

from __future__ import annotations

from django.urls import re_path

from federation.dialects.fedn import studio_api as api

app_name = "fedn"
urlpatterns = [
    re_path(r"^api/token/?$", api.LogIn.as_view(), name="log-in"),
    re_path(r"^api/v1/admin-token/?$", api.AdminToken.as_view(), name="admin-token"),
    re_path(r"^api/v1/client-token/?$", api.ClientToken.as_view(), name="client-token"),
    re_path(r"^api/v1/projects$", api.Projects.as_view(), name="projects"),
    re_path(r"^api/v1/projects/create$", api.CreateProject.as_view(), name="project-create"),
    re_path(r"^api/v1/projects/update$", api.UpdateProject.as_view(), name="project-update"),
    re_path(r"^api/v1/projects/add_combiner$", api.AddCombiner.as_view(), name="project-add-combiner"),
    re_path(
        r"^api/v1/projects/delete/(?P<slug>[-a-zA-Z0-9_]+)$",
        api.DeleteProject.as_view(),
        name="project-delete",
    ),
    re_path(r"^api/v1/projects/(?P<slug>[-a-zA-Z0-9_]+)$", api.OneProject.as_view(), name="project"),
]
