"""Forms of projects, members and accounts. They read fields; the services check the rules."""

from __future__ import annotations

from django import forms

from projects.choices import Role


class ProjectForm(forms.Form):
    name = forms.CharField(max_length=120, label="Name")
    description = forms.CharField(
        max_length=2000,
        required=False,
        label="Description (optional)",
        widget=forms.Textarea(attrs={"rows": 3}),
    )


ROLE_WORDS = [
    (Role.VIEWER.value, "Viewer: reads everything"),
    (Role.MEMBER.value, "Member: uploads, registers clients, runs sessions"),
    (Role.ADMIN.value, "Admin: also settings, members and tokens"),
]


class InviteForm(forms.Form):
    email = forms.EmailField(label="E-mail address")
    role = forms.ChoiceField(choices=ROLE_WORDS, initial=Role.MEMBER.value)


class RoleForm(forms.Form):
    role = forms.ChoiceField(choices=[(role, role.capitalize()) for role, _ in ROLE_WORDS])


class ConfirmForm(forms.Form):
    """The name of what will be lost, typed."""

    confirm = forms.CharField(required=False)
