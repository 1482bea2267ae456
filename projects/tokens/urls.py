from django.urls import path

from projects.tokens import views

urlpatterns = [
    path("settings/tokens/", views.my_tokens, name="my-tokens"),
    path("settings/tokens/<uuid:pk>/revoke/", views.token_revoke, name="my-token-revoke"),
    path("settings/tokens/<uuid:pk>/rotate/", views.token_rotate, name="my-token-rotate"),
    path("projects/<slug:slug>/settings/tokens/", views.project_token_list, name="project-tokens"),
    path(
        "projects/<slug:slug>/settings/tokens/<uuid:pk>/revoke/",
        views.token_revoke,
        name="project-token-revoke",
    ),
    path(
        "projects/<slug:slug>/settings/tokens/<uuid:pk>/rotate/",
        views.token_rotate,
        name="project-token-rotate",
    ),
]
