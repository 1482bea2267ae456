"""The database's clock: the only one that deadlines are compared with.

Inside a query use Django's `Now()` (the statement's time on Postgres, this host's on SQLite).
"""

from __future__ import annotations

import datetime as dt

from django.db import connection
from django.utils import timezone


def db_now() -> dt.datetime:
    """The database's present time, aware UTC (on SQLite that is this host's)."""
    if connection.vendor == "sqlite":
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("select clock_timestamp()")
        moment: dt.datetime = cursor.fetchone()[0]
    return moment
