"""Which kinds of caller an endpoint is for; what they may do there is asked of the rows."""

from __future__ import annotations

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from projects.actors import actor_of


class ActsForPeople(BasePermission):
    """People and project tokens. A client's or an enrolment token opens only what names `IsAuthenticated` instead."""

    message = "A client's or an enrolment token does not open this address: use a user's or a project's."

    def has_permission(self, request: Request, view: Any) -> bool:
        actor = actor_of(request)
        return actor.client_id is None and bool(actor.actions)
