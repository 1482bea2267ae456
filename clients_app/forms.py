"""Forms of clients."""

from __future__ import annotations

from django import forms


class ClientForm(forms.Form):
    name = forms.CharField(
        max_length=120, label="Name", help_text="Such as the site or device that keeps the data: hospital-a."
    )
