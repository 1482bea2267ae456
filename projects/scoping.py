"""The one queryset door: rows are reached only from who is asking."""

from __future__ import annotations

from typing import Any, Self, TypeVar

from django.db import models

from foundation.errors import forbidden, not_found
from projects.actors import Actor
from projects.choices import Action, roles_that_may

M = TypeVar("M", bound=models.Model)


class ProjectQuerySet(models.QuerySet[M]):
    def visible_to(self, actor: Actor, action: Action = Action.VIEW) -> Self:
        """Projects in which `actor` may do `action`."""
        if action not in actor.actions or actor.client_id is not None:
            return self.none()
        if actor.user is None:
            return self.filter(pk=actor.project_id) if actor.project_id else self.none()
        if not actor.user.is_active:
            return self.none()
        mine = self.filter(
            pk__in=actor.user.memberships.filter(role__in=roles_that_may(action)).values("project_id")
        )
        return mine.filter(pk=actor.project_id) if actor.project_id else mine


class ScopedQuerySet(models.QuerySet[M]):
    """Of rows that have a `project`."""

    def visible_to(self, actor: Actor, action: Action = Action.VIEW) -> Self:
        """Rows of the projects in which `actor` may do `action`."""
        from projects.models import Project

        return self.filter(project__in=Project.objects.visible_to(actor, action))


def reach(rows: Any, actor: Actor, action: Action, what: str, **where: Any) -> Any:
    """The one row of `rows` (a scoped queryset) that `where` names, if `actor` may do `action` with it.

    Raises StudioError: 404 when it is unknown or not to be seen, 403 when it is seen but `action` is not allowed.
    """
    row = rows.visible_to(actor, action).filter(**where).first()
    if row is not None:
        return row
    if action is not Action.VIEW and rows.visible_to(actor, Action.VIEW).filter(**where).exists():
        raise forbidden(f"You may see this {what}, but your role does not allow you to change it.")
    raise not_found(what)
