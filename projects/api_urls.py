"""Addresses below /api/v1/."""

from __future__ import annotations

from django.urls import path

from projects import api

urlpatterns = [
    path("accounts/", api.Accounts.as_view(), name="api-accounts"),
    path("projects/", api.Projects.as_view(), name="api-projects"),
    path("projects/<slug:slug>/", api.OneProject.as_view(), name="api-project"),
    path("projects/<slug:slug>/members/", api.Members.as_view(), name="api-members"),
    path("projects/<slug:slug>/members/<int:pk>/", api.OneMember.as_view(), name="api-member"),
    path("projects/<slug:slug>/invitations/", api.Invitations.as_view(), name="api-invitations"),
    path("projects/<slug:slug>/invitations/<uuid:pk>/", api.OneInvitation.as_view(), name="api-invitation"),
    path("invitations/accept/", api.AcceptInvitation.as_view(), name="api-invitation-accept"),
]
