"""How projects and members look in JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from projects.choices import Role, Template
from projects.models import Invitation, Membership, Project


class AccountIn(serializers.Serializer[Any]):
    username = serializers.CharField(max_length=150)
    email = serializers.EmailField(max_length=254)
    password = serializers.CharField(max_length=4096, trim_whitespace=False, write_only=True)


class AccountOut(serializers.Serializer[Any]):
    username = serializers.CharField()
    email = serializers.EmailField()


class ProjectOut(serializers.ModelSerializer[Project]):
    role = serializers.SerializerMethodField(help_text="your own role; empty for a project token")

    class Meta:
        model = Project
        fields = ["id", "slug", "name", "description", "template", "role", "created_at"]

    def get_role(self, row: Project) -> str:
        return str(getattr(row, "role", "") or "")


class ProjectIn(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=120)
    description = serializers.CharField(max_length=2000, required=False, allow_blank=True, default="")
    template = serializers.ChoiceField(choices=Template.choices, default=Template.FEDERATED_LEARNING)


class ProjectChange(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=120, required=False)
    description = serializers.CharField(max_length=2000, required=False, allow_blank=True)


class ConfirmIn(serializers.Serializer[Any]):
    confirm = serializers.CharField(max_length=120, trim_whitespace=False, default="")


class MemberOut(serializers.ModelSerializer[Membership]):
    username = serializers.CharField(source="user.username")
    email = serializers.EmailField(source="user.email")

    class Meta:
        model = Membership
        fields = ["id", "username", "email", "role", "created_at"]


class MemberIn(serializers.Serializer[Any]):
    email = serializers.EmailField(max_length=254)
    role = serializers.ChoiceField(choices=Role.choices, default=Role.MEMBER)


class RoleIn(serializers.Serializer[Any]):
    role = serializers.ChoiceField(choices=Role.choices)


class InvitationOut(serializers.ModelSerializer[Invitation]):
    invited_by = serializers.CharField(source="invited_by.username", default=None)

    class Meta:
        model = Invitation
        fields = ["id", "email", "role", "invited_by", "created_at", "expires_at", "accepted_at"]


class AddedOut(serializers.Serializer[Any]):
    """Either the new member, or the invitation of somebody who has no account yet, with its link."""

    member = MemberOut(allow_null=True)
    invitation = InvitationOut(allow_null=True)
    link = serializers.CharField(allow_null=True, help_text="shown this once")


class SecretIn(serializers.Serializer[Any]):
    secret = serializers.CharField(max_length=200)


class JoinedOut(serializers.Serializer[Any]):
    project = serializers.SlugField()
    role = serializers.ChoiceField(choices=Role.choices)
