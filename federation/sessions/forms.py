"""The form of a new session. `config.parse_spec` checks the values; here are only the fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django import forms

from federation.aggregation.aggregators import AGGREGATORS, Aggregator, Argument, Choice
from federation.sessions.config import SessionConfig
from foundation.errors import StudioError

DEFAULTS = SessionConfig()


def _argument_name(aggregator: Aggregator, argument: Argument) -> str:
    return f"{aggregator.name}_{argument.name}"


def _argument_field(argument: Argument) -> forms.Field:
    """A field for one argument of an aggregator; empty means its default."""
    common: dict[str, Any] = {
        "required": False,
        "label": argument.title,
        "help_text": argument.hint,
        "initial": argument.default,
    }
    if isinstance(argument, Choice):
        return forms.ChoiceField(choices=list(argument.words.items()), **common)

    def check(value: float) -> None:
        try:
            argument.check(value)
        except StudioError:
            raise forms.ValidationError(f"Enter a number {argument.range}.") from None

    return forms.FloatField(validators=[check], **common)


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
    aggregator = forms.ChoiceField(
        choices=[(name, one.title) for name, one in AGGREGATORS.items()], required=False,
        label="How updates become a model",
        help_text=" ".join(one.hint for one in AGGREGATORS.values()),
    )  # fmt: skip
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
        for aggregator in AGGREGATORS.values():
            for argument in aggregator.arguments:
                self.fields[_argument_name(aggregator, argument)] = _argument_field(argument)
        for name, choices in (("package", packages), ("seed_model", models)):
            self.initial.setdefault(name, choices[0][0] if choices else "")

    def arguments(self) -> Iterator[tuple[Aggregator, list[forms.BoundField]]]:
        """The aggregators that take arguments, with their fields."""
        for one in AGGREGATORS.values():
            if one.arguments:
                yield one, [self[_argument_name(one, argument)] for argument in one.arguments]

    def spec_values(self) -> dict[str, Any]:
        """What was filled in, under the names of `parse_spec`."""
        values: dict[str, Any] = dict(self.cleaned_data)
        for one in AGGREGATORS.values():
            given = {a.name: values.pop(_argument_name(one, a), None) for a in one.arguments}
            if one.name == (values["aggregator"] or DEFAULTS.aggregator):
                values["aggregator_kwargs"] = {
                    name: value for name, value in given.items() if value not in (None, "")
                }
        metric, value = values.pop("target_metric").strip(), values.pop("target_value")
        direction = values.pop("target_direction") or "max"
        values["target"] = {"metric": metric, "value": value, "direction": direction} if metric else None
        return values

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or {}
        for one in AGGREGATORS.values():
            if one.name != (values.get("aggregator") or DEFAULTS.aggregator):
                for argument in one.arguments:  # nobody sees the fields of what was not chosen
                    self.errors.pop(_argument_name(one, argument), None)
        if bool(values.get("target_metric")) != (values.get("target_value") is not None):
            self.add_error("target_value", "Name both a metric and its value, or neither.")
        return values


class ContinueForm(forms.Form):
    rounds = forms.IntegerField(min_value=1, max_value=100_000, initial=5, label="Rounds")
