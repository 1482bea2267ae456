from django.apps import AppConfig


class ClientsConfig(AppConfig):
    name = "clients_app"
    label = "clients_app"
    verbose_name = "Clients"
    default_auto_field = "django.db.models.BigAutoField"
