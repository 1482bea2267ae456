"""Housekeeping of combiners and clients."""

from __future__ import annotations

from celery import shared_task

from clients_app import presence


@shared_task(name="clients_app.tasks.note_silent_combiners", ignore_result=True)
def note_silent_combiners() -> None:
    presence.note_silent_combiners()
