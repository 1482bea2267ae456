"""What a combiner does with its clients."""

from __future__ import annotations

from django.db import models


class Draining(models.TextChoices):
    """Whether a combiner gives its clients away. ASKED holds over restarts, until it is taken back; STOPPING ends with
    the process."""

    NO = "", "no"
    ASKED = "asked", "asked by the operator"
    STOPPING = "stopping", "about to stop"
