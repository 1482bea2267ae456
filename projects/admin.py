"""People, projects, memberships, invitations and the audit trail, for the operator."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.db.models import Model
from django.http import HttpRequest

from foundation.admin import Watched
from projects.models import AuditEvent, Invitation, Membership, Project, User


@admin.register(User)
class UserAdmin(DjangoUserAdmin):
    """Accounts are closed (not active), never deleted: a project would be left without its owner."""

    list_display = ["username", "email", "is_active", "is_staff", "date_joined", "last_login"]
    list_filter = ["is_active", "is_staff", "is_superuser"]
    search_fields = ["username", "email", "first_name", "last_name"]
    ordering = ["-id"]
    readonly_fields = ["last_login", "date_joined"]
    show_full_result_count = False
    list_per_page = 50
    add_fieldsets = ((None, {"fields": ("username", "email", "usable_password", "password1", "password2")}),)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(Project)
class ProjectAdmin(Watched):
    list_display = ["name", "slug", "template", "created_at"]
    list_filter = ["template", "created_at"]
    search_fields = ["name", "slug", "memberships__user__email"]


@admin.register(Membership)
class MembershipAdmin(Watched):
    list_display = ["project", "user", "role", "created_at"]
    list_filter = ["role"]
    list_select_related = ["project", "user"]
    search_fields = ["project__name", "project__slug", "user__username", "user__email"]


@admin.register(Invitation)
class InvitationAdmin(Watched):
    list_display = ["email", "project", "role", "invited_by", "created_at", "expires_at", "accepted_at"]
    list_filter = ["role", "expires_at"]
    list_select_related = ["project", "invited_by"]
    search_fields = ["email", "project__name", "project__slug"]
    exclude = ["digest"]


@admin.register(AuditEvent)
class AuditEventAdmin(Watched):
    list_display = ["at", "verb", "target", "actor", "project"]
    list_filter = ["at"]
    list_select_related = ["project"]
    search_fields = ["verb", "actor", "target", "project__slug"]
