"""What a project's sessions start from when a request names nothing: the active package, model and helper."""

from __future__ import annotations

from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.db import transaction

from federation.models.models import ComputePackage, Model, ProjectDefaults
from federation.models.services.packages import create_package
from federation.models.services.seeds import create_seed_model
from foundation.errors import StudioError, invalid
from projects import audit
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project
from projects.scoping import reach

HELPERS = ("numpyhelper", "binaryhelper", "androidhelper")
_TRIES = 1000


def defaults_of(project: Project) -> ProjectDefaults:
    """The project's row, or an empty one that is not stored. One query."""
    rows = ProjectDefaults.objects.select_related("package", "model").defer("model__layout")
    return rows.filter(project=project).first() or ProjectDefaults(project=project)


def set_helper(*, actor: Actor, project: Project, helper: str) -> None:
    """How FEDn's and Scaleout's clients are to read model files; may come before any package. Needs RUN."""
    if helper not in HELPERS:
        # the very words that FEDn's own server uses
        raise invalid(
            "helper", "Helper is required to be either 'numpyhelper', 'binaryhelper' or 'androidhelper'"
        )
    row: Project = reach(Project.objects.all(), actor, Action.RUN, "project", pk=project.pk)
    _set(actor, row, "helper.set", helper, helper=helper)


def set_active_package(*, actor: Actor, package: ComputePackage) -> None:
    """New sessions and clients that ask for “the” package get this one. Needs RUN."""
    row = reach(ComputePackage.objects.all(), actor, Action.RUN, "compute package", pk=package.pk)
    more = {"helper": row.helper} if row.helper else {}
    _set(actor, row.project, "package.set_active", row.name, package=row, **more)


def set_active_model(*, actor: Actor, model: Model) -> None:
    """Sessions whose request names no model start from this one. Needs RUN."""
    row = reach(Model.objects.defer("layout"), actor, Action.RUN, "model", pk=model.pk)
    _set(actor, row.project, "model.set_active", row.name, model=row)


def bring_package(
    *,
    actor: Actor,
    project: Project,
    name: str,
    description: str,
    helper: str,
    upload: UploadedFile[Any] | None,
) -> ComputePackage:
    """Upload a package and make it the active one. Whoever uploads a name again gets a number behind it: FEDn's
    users name each version alike. Raises StudioError as `create_package` does."""
    for number in range(1, _TRIES):
        try:
            row = create_package(
                actor=actor, project=project, name=name if number == 1 else f"{name[:112]} ({number})",
                description=description, upload=upload, helper=helper,
            )  # fmt: skip
        except StudioError as error:
            if error.code != "name_taken":
                raise
            continue
        set_active_package(actor=actor, package=row)
        return row
    raise StudioError("name_taken", f"Too many packages are named {name}; choose another name.", 400)


def bring_model(
    *, actor: Actor, project: Project, name: str, helper: str, upload: UploadedFile[Any] | None
) -> Model:
    """Upload a seed model and make it the active one. Raises StudioError as `create_seed_model` does."""
    row = create_seed_model(actor=actor, project=project, name=name, upload=upload, helper=helper)
    set_active_model(actor=actor, model=row)
    return row


def _set(actor: Actor, project: Project, verb: str, target: str, **fields: Any) -> None:
    with transaction.atomic():
        ProjectDefaults.objects.update_or_create(project=project, defaults=fields)
        audit.record(actor, verb, project_id=project.pk, target=target)
