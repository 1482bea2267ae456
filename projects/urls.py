from django.urls import path

from projects import views

urlpatterns = [
    path("", views.home, name="home"),
    path("projects/", views.project_list, name="projects"),
    path("projects/new/", views.project_new, name="project-new"),
    path("projects/<slug:slug>/settings/", views.project_settings, name="project-settings"),
    path("projects/<slug:slug>/settings/delete/", views.project_delete, name="project-delete"),
    path("projects/<slug:slug>/settings/members/", views.project_members, name="project-members"),
    path("projects/<slug:slug>/settings/members/<int:pk>/role/", views.member_role, name="member-role"),
    path("projects/<slug:slug>/settings/members/<int:pk>/remove/", views.member_remove, name="member-remove"),
    path(
        "projects/<slug:slug>/settings/invitations/<uuid:pk>/withdraw/",
        views.invitation_withdraw,
        name="invitation-withdraw",
    ),
    path("invitations/<str:secret>/", views.invitation, name="invitation"),
    path("settings/", views.my_account, name="my-account"),
]
