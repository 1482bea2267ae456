from django.urls import path, re_path

from federation.sessions.views import dashboard, new_session, sessions

urlpatterns = [
    path("projects/<slug:slug>/", dashboard.project_dashboard, name="project"),
    path("projects/<slug:slug>/sessions/", sessions.session_list, name="sessions"),
    re_path(
        r"^projects/(?P<slug>[-\w]+)/sessions/new/(?P<tab>package|seed|start)/$",
        new_session.new_session,
        name="session-new",
    ),
    path("projects/<slug:slug>/sessions/<uuid:pk>/", sessions.session_detail, name="session"),
    path(
        "projects/<slug:slug>/sessions/<uuid:pk>/rounds/<uuid:round_pk>/",
        sessions.session_round,
        name="session-round",
    ),
    path("projects/<slug:slug>/sessions/<uuid:pk>/start/", sessions.session_start, name="session-start"),
    path("projects/<slug:slug>/sessions/<uuid:pk>/stop/", sessions.session_stop, name="session-stop"),
    path(
        "projects/<slug:slug>/sessions/<uuid:pk>/continue/",
        sessions.session_continue,
        name="session-continue",
    ),
]
