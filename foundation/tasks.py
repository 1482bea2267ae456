"""Housekeeping of what belongs to no room."""

from __future__ import annotations

from celery import shared_task

from foundation import idempotency


@shared_task(name="foundation.tasks.forget_old_answers", ignore_result=True)
def forget_old_answers() -> None:
    idempotency.forget_old_answers()
