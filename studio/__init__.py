"""The roof: it assembles the rest; nothing imports it."""

from studio.celery import app as celery_app

__all__ = ["celery_app"]
