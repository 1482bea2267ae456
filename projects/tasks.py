"""Housekeeping of projects."""

from __future__ import annotations

import uuid

from celery import shared_task

from projects import services


@shared_task(name="projects.tasks.remove_artifacts")
def remove_artifacts(project_id: str, round_ids: list[str]) -> None:
    services.remove_artifacts(
        project_id=uuid.UUID(project_id), round_ids=[uuid.UUID(round_id) for round_id in round_ids]
    )
