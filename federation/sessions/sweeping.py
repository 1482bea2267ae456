"""The sweeper: artifacts that no row names and that are older than a day."""

from __future__ import annotations

import datetime as dt
import uuid

from django.core.files.storage import Storage
from django.utils import timezone

from federation.models.models import ComputePackage, Model
from federation.sessions.choices import OPEN_ROUND, AssignmentStatus
from federation.sessions.models import Assignment, CombinerShare, ReductionPart, Session
from foundation import storage

OLD = dt.timedelta(days=1)


def sweep(now: dt.datetime | None = None) -> list[str]:
    """Delete orphans; answers their keys."""
    cutoff = (now or timezone.now()) - OLD
    store = storage.artifacts()
    removed = []
    for top in ("models", "partials", "states", "packages", "updates", "parts"):
        for key in _walk(store, top):
            if _is_old(store, key, cutoff) and not _named(key):
                storage.delete(key)
                removed.append(key)
    return removed


def _walk(store: Storage, folder: str) -> list[str]:
    try:
        folders, files = store.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    keys = [f"{folder}/{name}" for name in files if name]
    for name in folders:
        keys += _walk(store, f"{folder}/{name}")
    return keys


def _is_old(store: Storage, key: str, cutoff: dt.datetime) -> bool:
    try:
        return store.get_modified_time(key) < cutoff
    except FileNotFoundError:
        return False


def _named(key: str) -> bool:
    return (
        Model.objects.filter(key=key).exists()
        or ComputePackage.objects.filter(key=key).exists()
        or Session.objects.filter(aggregator_state=key).exists()
        or CombinerShare.objects.filter(partial_key=key, round__status__in=OPEN_ROUND).exists()
        or (key.startswith("updates/") and _is_collected(key))
        or ReductionPart.objects.filter(key=key, round__status__in=OPEN_ROUND).exists()
    )


def _is_collected(key: str) -> bool:
    """An accepted update of a round that is open; the round's id is in its key."""
    try:
        round_id = uuid.UUID(key.split("/")[1])
    except (ValueError, IndexError):
        return False
    rows = Assignment.objects.filter(share__round=round_id, share__round__status__in=OPEN_ROUND)
    return rows.filter(status=AssignmentStatus.ACCEPTED, update_key=key).exists()
