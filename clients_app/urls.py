from django.urls import path

from clients_app import views

urlpatterns = [
    path("projects/<slug:slug>/clients/", views.client_list, name="clients"),
    path("projects/<slug:slug>/clients/new/", views.client_new, name="client-new"),
    path("projects/<slug:slug>/clients/<uuid:pk>/", views.client_detail, name="client"),
    path("projects/<slug:slug>/clients/<uuid:pk>/config/", views.client_config, name="client-config"),
    path("projects/<slug:slug>/clients/<uuid:pk>/rename/", views.client_rename, name="client-rename"),
    path("projects/<slug:slug>/clients/<uuid:pk>/pin/", views.client_pin, name="client-pin"),
    path("projects/<slug:slug>/clients/<uuid:pk>/remove/", views.client_remove, name="client-remove"),
    path("projects/<slug:slug>/combiners/", views.combiner_list, name="combiners"),
]
