"""Reading projects and who is in them; only what the actor may see."""

from __future__ import annotations

from django.db.models import CharField, OuterRef, QuerySet, Subquery, Value
from django.utils import timezone

from projects.actors import Actor
from projects.choices import ACTIONS_OF_ROLE, Action
from projects.models import AuditEvent, Invitation, Membership, Project
from projects.scoping import reach
from projects.services.members import digest_of_invitation


def projects_of(actor: Actor) -> QuerySet[Project]:
    """Own and shared projects, newest first, each with `role`, the actor's own in it (empty for a project token)."""
    role = (
        Subquery(
            Membership.objects.filter(project=OuterRef("pk"), user=actor.user).values("role")[:1],
            output_field=CharField(),
        )
        if actor.user is not None
        else Value("", output_field=CharField())
    )
    return Project.objects.visible_to(actor).annotate(role=role).order_by("-id")


def project_by_slug(actor: Actor, slug: str, action: Action = Action.VIEW) -> Project:
    """The project with `role` as in `projects_of`. Raises StudioError 404 or 403."""
    row: Project = reach(projects_of(actor), actor, action, "project", slug=slug)
    return row


def actions_in(actor: Actor, project: Project) -> frozenset[Action]:
    """What the actor may do in the project: the role's actions, capped by the token's."""
    if actor.user is None:
        return actor.actions if project.pk == actor.project_id and actor.client_id is None else frozenset()
    role = getattr(project, "role", None) or (
        Membership.objects.filter(project=project, user=actor.user).values_list("role", flat=True).first()
    )
    return ACTIONS_OF_ROLE.get(role or "", frozenset()) & actor.actions


def members_of(actor: Actor, project: Project) -> QuerySet[Membership]:
    """Members with their user, oldest first."""
    return Membership.objects.visible_to(actor).filter(project=project).select_related("user").order_by("id")


def invitations_of(actor: Actor, project: Project) -> QuerySet[Invitation]:
    """Open and past invitations, newest first; for who may ADMIN the project."""
    return (
        Invitation.objects.visible_to(actor, Action.ADMIN)
        .filter(project=project)
        .select_related("invited_by")
        .order_by("-id")
    )


def open_invitation(secret: str) -> Invitation | None:
    """The invitation behind a link, if it still works; with its project and inviter."""
    return (
        Invitation.objects.select_related("project", "invited_by")
        .filter(digest=digest_of_invitation(secret), accepted_at=None, expires_at__gt=timezone.now())
        .first()
    )


def audit_of(actor: Actor, project: Project) -> QuerySet[AuditEvent]:
    """Who did what in the project, newest first; for who may ADMIN it."""
    return AuditEvent.objects.visible_to(actor, Action.ADMIN).filter(project=project).order_by("-id")
