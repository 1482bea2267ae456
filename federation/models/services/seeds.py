"""Seed models: the first of a trail, brought by a person."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import IntegrityError, transaction
from django.db.models import RestrictedError

from federation.aggregation.codecs import raw_to_canonical, to_canonical
from federation.aggregation.raw_file import RawDtype
from federation.events.services import publish
from federation.models.choices import ModelKind
from federation.models.models import Model
from federation.models.services.uploads import checked_name, checked_size, on_disk
from foundation import storage
from foundation.errors import StudioError
from projects import audit
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project
from projects.scoping import reach

RAW_HELPERS: dict[str, RawDtype] = {"binaryhelper": "F64", "androidhelper": "F32"}  # files of bare floats


def create_seed_model(
    *, actor: Actor, project: Project, name: str, upload: UploadedFile[Any] | None, helper: str = ""
) -> Model:
    """Take an `.npz` or `.safetensors` file as the start of a trail; kept as canonical safetensors. With FEDn's
    `helper` binaryhelper or androidhelper it is bare floats instead, of 8 or 4 bytes.

    Names, dtypes, shapes and sizes are checked from the headers before anything is decoded. Raises StudioError
    `invalid_model` or `not_finite` (400), `too_large` (413), 403, 404; then nothing is kept.
    """
    project = reach(Project.objects.all(), actor, Action.RUN, "project", pk=project.pk)
    name = checked_name(name)
    file = checked_size(upload, max_bytes=settings.MAX_MODEL_BYTES, what="seed model")
    key = f"models/{project.pk}/{uuid.uuid4().hex}.safetensors"
    with on_disk(file) as given, tempfile.TemporaryDirectory(prefix="studio-seed-") as folder:
        canonical = Path(folder) / "model.safetensors"
        if helper in RAW_HELPERS:
            width = RAW_HELPERS[helper]
            layout = raw_to_canonical(given, canonical, dtype=width, max_bytes=settings.MAX_MODEL_BYTES)
        else:
            layout = to_canonical(given, canonical, max_bytes=settings.MAX_MODEL_BYTES)
        row = Model(
            project=project,
            kind=ModelKind.SEED,
            name=name,
            key=key,
            sha256=storage.sha256_of(canonical),
            size_bytes=canonical.stat().st_size,
            layout=layout.to_json(),
            metadata={
                "file_name": Path(file.name or "").name[:200],
                **({"helper": helper} if helper else {}),
            },
            created_by=actor.user,
        )
        storage.put(key, canonical)
    try:
        with transaction.atomic():
            row.save(force_insert=True)
            audit.record(actor, "model.create", project_id=project.pk, target=str(row.pk), name=name)
            publish(
                project_id=project.pk,
                kind="model.created",
                message=f"Seed model {name} was uploaded.",
                model=row.pk,
                sha256=row.sha256,
            )
    except IntegrityError:  # the project went away meanwhile
        storage.delete(key)
        raise
    return row


def delete_seed_model(*, actor: Actor, model: Model) -> None:
    """Remove a seed model that no session began with. Raises StudioError `model_in_use` (409), 403, 404."""
    row = reach(Model.objects.filter(kind=ModelKind.SEED), actor, Action.RUN, "seed model", pk=model.pk)
    try:
        with transaction.atomic():
            row.delete()
            audit.record(
                actor, "model.delete", project_id=row.project_id, target=str(model.pk), name=row.name
            )
            transaction.on_commit(lambda: storage.delete(row.key), robust=True)
    except RestrictedError:
        raise StudioError(
            "model_in_use", f"A session began with {row.name}; a model stays as long as its sessions.", 409
        ) from None
