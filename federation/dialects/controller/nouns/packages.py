"""Compute packages. One is active: what a client that asks for “the” package is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from federation.dialects.controller.asked import Lookup, as_uuid, by_id, by_text, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape
from federation.models.models import ComputePackage
from federation.models.selectors import active_package, helper_of, packages_of

DEFAULT_HELPER = "numpyhelper"


def storage_name(row: ComputePackage) -> str:
    """A name that no other package has, and that tells the kind of archive by its end: downloads carry it, and
    checksums are asked for by it."""
    return PurePosixPath(row.key).name


def rows(caller: Caller) -> Any:
    return packages_of(caller.actor, caller.project)


def shaped(caller: Caller, found: Sequence[ComputePackage]) -> list[Shape]:
    active = active_package(caller.project)
    helper = helper_of(caller.project) or DEFAULT_HELPER
    return [
        {
            "package_id": str(row.pk),
            "name": row.name,
            "description": row.description,
            "file_name": row.file_name,
            "storage_file_name": storage_name(row),
            "helper": row.helper or helper,
            "active": active is not None and row.pk == active.pk,
            "form": row.form,
            "committed_at": when(row.created_at),
            "updated_at": when(row.created_at),
        }
        for row in found
    ]


def find(caller: Caller, name: str) -> Lookup | None:
    found = as_uuid(name)
    return {"pk": found} if found else None


def _storage_names(values: list[str]) -> Lookup | None:
    names = [value for value in values if value and "/" not in value and "\x00" not in value]
    return {"key__endswith": f"/{names[0]}"} if len(names) == 1 else None


PACKAGES = Noun(
    "packages",
    rows,
    shaped,
    find,
    filters={
        "package_id": by_id("pk"),
        "name": by_text("name"),
        "description": by_text("description"),
        "file_name": by_text("file_name"),
        "storage_file_name": _storage_names,
        "helper": by_text("helper"),
        "form": by_text("form"),
    },
    order={"name": "name", "package_id": "pk", "file_name": "file_name", "helper": "helper"},
)
