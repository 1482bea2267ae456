from django.apps import AppConfig


class EventsConfig(AppConfig):
    name = "federation.events"
    label = "federation_events"
    verbose_name = "Events"
    default_auto_field = "django.db.models.BigAutoField"
