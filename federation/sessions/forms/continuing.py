"""The form under an ended session."""

from __future__ import annotations

from django import forms


class ContinueForm(forms.Form):
    rounds = forms.IntegerField(min_value=1, max_value=100_000, initial=5, label="Rounds")
