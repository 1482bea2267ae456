"""Forms of clients."""

from __future__ import annotations

from django import forms


class ClientForm(forms.Form):
    name = forms.CharField(
        max_length=120, label="Name", help_text="Such as the site or device that keeps the data: hospital-a."
    )


class PinForm(forms.Form):
    pin = forms.CharField(
        max_length=1000,
        required=False,
        label="Pinned to combiners with",
        help_text="Labels such as region=eu, site=north. Without such a combiner it waits. Empty: any combiner.",
    )


class NewClientForm(ClientForm, PinForm):
    """A client that is to be registered."""
