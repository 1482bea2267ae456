"""The form of a new session. `config.parse_spec` checks the values; here are only the fields."""

from __future__ import annotations

from typing import Any

from django import forms

from federation.sessions.config import SessionConfig

DEFAULTS = SessionConfig()


class StartForm(forms.Form):
    name = forms.CharField(
        max_length=120, required=False, label="Name (optional)", help_text="Else numbered."
    )
    rounds = forms.IntegerField(min_value=1, initial=5, label="Rounds")
    package = forms.ChoiceField(required=False, label="Compute package")
    seed_model = forms.ChoiceField(label="Seed model")
    round_timeout_s = forms.FloatField(
        min_value=1, initial=f"{DEFAULTS.round_timeout_s:g}", label="Round timeout (s)",
        help_text="A round ends then, with the updates it has.",
    )  # fmt: skip
    min_clients = forms.IntegerField(
        min_value=1, initial=DEFAULTS.min_clients, label="Minimum clients",
        help_text="No round begins with fewer online.",
    )  # fmt: skip
    requested_clients = forms.IntegerField(
        min_value=1, required=False, label="Requested clients", help_text="Empty: all that are online."
    )
    min_updates = forms.IntegerField(
        min_value=1, required=False, label="Minimum updates", help_text="Empty: as many as minimum clients."
    )
    validate = forms.BooleanField(required=False, initial=True, label="Validate each model on the clients")
    target_metric = forms.CharField(
        max_length=120, required=False, label="Stop at a metric (optional)", help_text="Such as accuracy."
    )
    target_direction = forms.ChoiceField(
        choices=[("max", "at least"), ("min", "at most")], required=False, label="When its mean is"
    )
    target_value = forms.FloatField(required=False, label="This value")
    max_failed_rounds = forms.IntegerField(
        min_value=1, initial=DEFAULTS.max_failed_rounds, label="Failed rounds in a row",
        help_text="After these the session fails.",
    )  # fmt: skip
    start_timeout_s = forms.FloatField(
        min_value=1, initial=f"{DEFAULTS.start_timeout_s:g}", label="Wait for clients (s)",
        help_text="How long a round waits for enough clients.",
    )  # fmt: skip
    client_settings = forms.CharField(
        required=False, label="Client settings (optional)",
        help_text="Hyper-parameters for the clients, as a JSON object: {&quot;epochs&quot;: 1, &quot;lr&quot;: 0.1}",
        widget=forms.Textarea(attrs={"rows": 3, "class": "code", "spellcheck": "false"}),
    )  # fmt: skip

    def __init__(
        self,
        *args: Any,
        packages: list[tuple[str, str]],
        models: list[tuple[str, str]],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        package, seed = self.fields["package"], self.fields["seed_model"]
        assert isinstance(package, forms.ChoiceField) and isinstance(seed, forms.ChoiceField)
        package.choices = [*packages, ("", "None: the clients bring their own code")]
        seed.choices = models
        for name, choices in (("package", packages), ("seed_model", models)):
            self.initial.setdefault(name, choices[0][0] if choices else "")

    def spec_values(self) -> dict[str, Any]:
        """What was filled in, under the names of `parse_spec`."""
        values: dict[str, Any] = dict(self.cleaned_data)
        metric, value = values.pop("target_metric").strip(), values.pop("target_value")
        direction = values.pop("target_direction") or "max"
        values["target"] = {"metric": metric, "value": value, "direction": direction} if metric else None
        return values

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or {}
        if bool(values.get("target_metric")) != (values.get("target_value") is not None):
            self.add_error("target_value", "Name both a metric and its value, or neither.")
        return values


class ContinueForm(forms.Form):
    rounds = forms.IntegerField(min_value=1, max_value=100_000, initial=5, label="Rounds")
