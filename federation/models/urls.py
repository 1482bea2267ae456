from django.urls import path

from federation.models import views

urlpatterns = [
    path("projects/<slug:slug>/models/", views.model_list, name="models"),
    path("projects/<slug:slug>/models/upload/", views.seed_upload, name="seed-upload"),
    path("projects/<slug:slug>/models/<uuid:pk>/", views.model_detail, name="model"),
    path(
        "projects/<slug:slug>/models/<uuid:pk>/validations/<uuid:validation>/",
        views.validation_json,
        name="validation-json",
    ),
]
