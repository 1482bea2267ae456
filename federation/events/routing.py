"""WebSocket addresses."""

from __future__ import annotations

from django.urls import path

from federation.events.consumers import ProjectEvents

websocket_urlpatterns = [path("ws/projects/<slug:slug>/events/", ProjectEvents.as_asgi())]
