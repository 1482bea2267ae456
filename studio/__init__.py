"""The roof: it assembles the rest; nothing imports it."""

import os

# Before numpy loads its BLAS, whose threads wait for one another by spinning: blocks are small, and our own threads
# are as many as there are cores to use.
for _library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

from studio.celery import app as celery_app  # noqa: E402

__all__ = ["celery_app"]
