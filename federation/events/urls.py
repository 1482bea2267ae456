from django.urls import path

from federation.events import views

urlpatterns = [path("projects/<slug:slug>/events/", views.event_list, name="events")]
