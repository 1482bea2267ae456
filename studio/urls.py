"""Every address of the house. The pages, the API and the admin are each listed by their own room."""

from __future__ import annotations

from allauth.account.decorators import secure_admin_login
from django.contrib import admin
from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

from federation.dialects.controller import urls as controller
from studio.health import healthz, readyz
from studio.problems import UnknownAddress

admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]  # throttled, by name or e-mail
admin.site.site_header = admin.site.site_title = "Studio"

PAGES = [
    "projects.urls",
    "projects.tokens.urls",
    "clients_app.urls",
    "federation.models.urls",
    "federation.sessions.urls",
    "federation.events.urls",
]

urlpatterns = [
    path("healthz", healthz, name="healthz"),
    path("readyz", readyz, name="readyz"),
    path("admin/", admin.site.urls),
    path("accounts/", include("allauth.urls")),
    path("api/schema/", SpectacularAPIView.as_view(), name="api-schema"),
    path("api/docs/", SpectacularSwaggerSplitView.as_view(url_name="api-schema"), name="api-docs"),
    path("api/v1/", include("studio.api_urls")),
    path("", include("federation.dialects.fedn.urls")),
    path("", include("federation.dialects.scaleout.login_urls")),
    *controller.urlpatterns,
    *controller.by_project,
    re_path(r"^api/", UnknownAddress.as_view(), name="api-unknown"),
    *(path("", include(room)) for room in PAGES),
]

handler400 = "studio.problems.bad_request"
handler500 = "studio.problems.server_error"
