from django.apps import AppConfig


class ModelsConfig(AppConfig):
    name = "federation.models"
    label = "federation_models"
    verbose_name = "Models"
    default_auto_field = "django.db.models.BigAutoField"
