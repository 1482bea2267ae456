"""Forms of tokens."""

from __future__ import annotations

import datetime as dt

from django import forms
from django.utils import timezone

from projects.tokens.choices import Scope, TokenKind

LIVES = [("30", "30 days"), ("90", "90 days"), ("365", "1 year"), ("", "Never")]
SCOPES = [
    (Scope.WRITE.value, "Read and write"),
    (Scope.READ.value, "Read only"),
    (Scope.ADMIN.value, "Administer: also settings, members and tokens"),
]


class TokenForm(forms.Form):
    name = forms.CharField(max_length=120, help_text="What will use it, such as “nightly script”.")
    scope = forms.ChoiceField(choices=SCOPES, initial=Scope.WRITE.value, label="It may")
    life = forms.ChoiceField(choices=LIVES, initial="90", required=False, label="It expires after")

    def scopes(self) -> list[str]:
        chosen = self.cleaned_data["scope"]
        order = [Scope.READ.value, Scope.WRITE.value, Scope.ADMIN.value]
        return order[: order.index(chosen) + 1]

    def expires_at(self) -> dt.datetime | None:
        days = self.cleaned_data["life"]
        return timezone.now() + dt.timedelta(days=int(days)) if days else None


class ProjectTokenForm(TokenForm):
    kind = forms.ChoiceField(
        choices=[
            (TokenKind.PROJECT.value, "Project: scripts that work on this project"),
            (TokenKind.ENROLMENT.value, "Enrolment: devices that register themselves as clients"),
        ],
        initial=TokenKind.PROJECT.value,
        label="For",
    )
    field_order = ["name", "kind", "scope", "life"]
