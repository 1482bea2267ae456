"""Upload forms. The archive and the model are checked by the services, from their headers."""

from __future__ import annotations

from django import forms


class PackageForm(forms.Form):
    name = forms.CharField(
        max_length=120, label="Name", help_text="You choose the package by this name later."
    )
    description = forms.CharField(max_length=2000, required=False, label="Description (optional)")
    file = forms.FileField(
        label="Compute package",
        help_text="The .tgz that <code>studio package create</code> makes.",
        widget=forms.FileInput(attrs={"accept": ".tgz,.gz,.tar"}),
    )


class SeedModelForm(forms.Form):
    name = forms.CharField(max_length=120, label="Name", initial="seed")
    file = forms.FileField(
        label="Seed model",
        help_text="A .npz or .safetensors file with the parameters that training starts from.",
        widget=forms.FileInput(attrs={"accept": ".npz,.safetensors"}),
    )
