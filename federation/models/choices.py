from django.db import models


class ModelKind(models.TextChoices):
    SEED = "seed"
    ROUND = "round"


class PackageForm(models.TextChoices):
    """How a client starts what is in a compute package."""

    COMMAND = "command"  # shell commands: native and FEDn clients
    IMPORTER = "importer"  # Python files with a function per entry point: Scaleout's client
