"""Projects: made, changed, deleted."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence

from django.db import transaction
from django.utils.text import slugify

from foundation import storage
from foundation.errors import StudioError, forbidden, invalid
from foundation.hints import enqueue, wake_combiners
from projects import audit
from projects.actors import Actor
from projects.choices import Action, Role, Template
from projects.models import Membership, Project
from projects.scoping import reach

SLUG_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"  # none that reads like another


def _slug_of(name: str) -> str:
    tail = "".join(secrets.choice(SLUG_LETTERS) for _ in range(6))
    return f"{slugify(name)[:60].strip('-') or 'project'}-{tail}"


def _checked(name: str, description: str) -> tuple[str, str]:
    name, description = " ".join(name.split()), description.strip()
    if not 1 <= len(name) <= 120:
        raise invalid("name", "A project needs a name of 1 to 120 characters.")
    if len(description) > 2000:
        raise invalid("description", "A description has at most 2,000 characters.")
    if "\x00" in name + description:
        raise invalid("name", "A name and a description are plain text.")
    return name, description


def create_project(
    *, actor: Actor, name: str, description: str = "", template: str = Template.FEDERATED_LEARNING
) -> Project:
    """A new project that the actor owns. Raises StudioError 400 for the name, 403 when the actor is no person."""
    if actor.user is None or actor.project_id is not None or actor.client_id is not None:
        raise forbidden("A project needs a person as its owner: use your own token.")
    if Action.RUN not in actor.actions:
        raise forbidden("Your token may only read; creating a project needs one that may write.")
    if template not in Template.values:
        raise invalid("template", f"There are these templates: {', '.join(Template.values)}.")
    name, description = _checked(name, description)
    with transaction.atomic():
        project = Project.objects.create(
            slug=_slug_of(name), name=name, description=description, template=template
        )
        Membership.objects.create(project=project, user=actor.user, role=Role.OWNER)
        audit.record(actor, "project.create", project_id=project.pk, target=project.slug)
    return project


def update_project(
    *, actor: Actor, project: Project, name: str | None = None, description: str | None = None
) -> Project:
    """Change name and description; what is None stays. Needs ADMIN."""
    row: Project = reach(Project.objects.all(), actor, Action.ADMIN, "project", pk=project.pk)
    row.name, row.description = _checked(
        row.name if name is None else name, row.description if description is None else description
    )
    with transaction.atomic():
        row.save(update_fields=["name", "description"])
        audit.record(actor, "project.update", project_id=row.pk, target=row.slug)
    return row


def delete_project(*, actor: Actor, project: Project, confirm: str) -> None:
    """Delete the project with all that is in it; its files go soon after. Needs OWN and the exact name.

    Raises StudioError 400 when `confirm` is not the name, 409 while a session runs.
    """
    row: Project = reach(Project.objects.all(), actor, Action.OWN, "project", pk=project.pk)
    if confirm != row.name:
        raise StudioError(
            "not_confirmed",
            f"To delete this project with everything in it, confirm with its exact name: {row.name}",
            400,
            field="confirm",
        )
    with transaction.atomic():
        Project.objects.select_for_update().get(pk=row.pk)
        running = row.sessions.filter(status="running").values_list("name", flat=True).first()
        if running is not None:
            raise StudioError(
                "session_running",
                f"The session “{running}” is still running: stop it, then delete the project.",
                409,
            )
        clients = [str(pk) for pk in row.clients.values_list("pk", flat=True)]
        # rounds that did not finish may have left partials behind
        rounds = [str(pk) for pk in row.rounds.exclude(status="finished").values_list("pk", flat=True)]
        for series in (row.telemetry, row.metrics, row.events):
            series.all().delete()  # by one statement each, before the cascade would load them
        row_id, slug, name = row.pk, row.slug, row.name
        row.delete()
        audit.record(actor, "project.delete", project_id=None, target=slug, name=name, project=str(row_id))
        wake_combiners(clients)
        transaction.on_commit(
            lambda: enqueue("projects.tasks.remove_artifacts", str(row_id), rounds), robust=True
        )


def remove_artifacts(*, project_id: uuid.UUID, round_ids: Sequence[uuid.UUID] = ()) -> None:
    """Remove the files of a project that is gone. Safe to run twice; does nothing while the project exists."""
    if Project.objects.filter(pk=project_id).exists():
        return
    own = [f"{top}/{project_id}" for top in ("packages", "models", "states")]
    for prefix in (*own, *(f"partials/{pk}" for pk in round_ids)):
        storage.delete_under(prefix)
