from django.db import models


class ModelKind(models.TextChoices):
    SEED = "seed"
    ROUND = "round"
