from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class StudioConfig(AppConfig):
    name = "studio"


class StudioAdminConfig(AdminConfig):
    default_site = "django.contrib.admin.AdminSite"
