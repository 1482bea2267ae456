"""Compute packages: checked as they lie, stored once, never run here."""

from __future__ import annotations

import re
import uuid
from pathlib import PurePosixPath
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import IntegrityError, transaction
from django.db.models import RestrictedError

from federation.events.services import publish
from federation.models.archive import compression_of
from federation.models.models import ComputePackage
from federation.models.project_file import read_package
from federation.models.services.uploads import checked_name, checked_size, on_disk
from foundation import storage
from foundation.errors import StudioError, invalid
from foundation.plain_json import plain_text
from projects import audit
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project
from projects.scoping import reach

_HELPER = re.compile(r"[A-Za-z0-9_-]{0,40}")
_SUFFIX = {"gz": ".tgz", "bz2": ".tar.bz2"}


def create_package(
    *,
    actor: Actor,
    project: Project,
    name: str,
    description: str,
    upload: UploadedFile[Any] | None,
    helper: str = "",
) -> ComputePackage:
    """Check the archive from its stream, store it, and name it. `helper` is how FEDn's and Scaleout's clients are to
    read model files.

    Raises StudioError `invalid_package` (400) with what is wrong, `too_large` (413), `name_taken` (409), 403, 404.
    Nothing is kept of an archive that is refused.
    """
    project = reach(Project.objects.all(), actor, Action.RUN, "project", pk=project.pk)
    name = checked_name(name)
    description = plain_text(description or "").strip()
    if len(description) > 2000:
        raise invalid("description", "A description has at most 2000 characters.")
    if not _HELPER.fullmatch(helper):
        raise invalid("helper", "A helper is a name such as numpyhelper, of at most 40 characters.")
    file = checked_size(upload, max_bytes=settings.MAX_PACKAGE_BYTES, what="compute package")
    if ComputePackage.objects.filter(project=project, name=name).exists():
        raise _taken(name)
    with on_disk(file) as path:
        contents = read_package(path)
        suffix = _SUFFIX[compression_of(path)]
        row = ComputePackage(
            project=project,
            name=name,
            description=description,
            file_name=_file_name(file.name, suffix),
            key=f"packages/{project.pk}/{uuid.uuid4().hex}{suffix}",
            sha256=storage.sha256_of(path),
            size_bytes=path.stat().st_size,
            project_file=PurePosixPath(contents.project_file).name,
            form=contents.form,
            helper=helper,
            entry_points=contents.entry_points,
            python_env=contents.python_env,
            created_by=actor.user,
        )
        storage.put(row.key, path)
    try:
        with transaction.atomic():
            row.save(force_insert=True)
            audit.record(actor, "package.create", project_id=project.pk, target=str(row.pk), name=name)
            publish(
                project_id=project.pk,
                kind="package.created",
                message=f"Compute package {name} was uploaded.",
                package=row.pk,
                sha256=row.sha256,
            )
    except IntegrityError:
        storage.delete(row.key)
        if ComputePackage.objects.filter(project=project, name=name).exists():
            raise _taken(name) from None
        raise
    return row


def delete_package(*, actor: Actor, package: ComputePackage) -> None:
    """Remove a package that no session uses. Raises StudioError `package_in_use` (409), 403, 404."""
    row = reach(ComputePackage.objects.all(), actor, Action.RUN, "compute package", pk=package.pk)
    try:
        with transaction.atomic():
            row.delete()
            audit.record(
                actor, "package.delete", project_id=row.project_id, target=str(package.pk), name=row.name
            )
            publish(
                project_id=row.project_id,
                kind="package.deleted",
                message=f"Compute package {row.name} was deleted.",
                package=package.pk,
            )
            transaction.on_commit(lambda: storage.delete(row.key), robust=True)
    except RestrictedError:
        raise StudioError(
            "package_in_use",
            f"A session was run with {row.name}; a package stays as long as its sessions.",
            409,
        ) from None


def _taken(name: str) -> StudioError:
    return StudioError(
        "name_taken",
        f"This project already has a compute package named {name}; choose another name.",
        409,
        field="name",
    )


def _file_name(given: str | None, suffix: str) -> str:
    """The name that a download carries: the uploader's own, cleaned, with a suffix that says what it is."""
    stem = PurePosixPath((given or "").replace("\\", "/")).name
    for ending in (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".gz", ".bz2"):
        if stem.lower().endswith(ending):
            kept, stem = ending, stem[: -len(ending)]
            suffix = kept if kept in (".tar.gz", ".tgz") and suffix == ".tgz" else suffix
            break
    safe = "".join(char if char.isascii() and (char.isalnum() or char in "-_.") else "_" for char in stem)
    return (safe.strip(".")[:150] or "package") + suffix
