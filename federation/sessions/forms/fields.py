"""Form fields made from what they stand for: a setting of a session, an argument of an aggregator."""

from __future__ import annotations

from typing import Any

from django import forms

from federation.aggregation.aggregators import Aggregator, Argument, Choice, WholeNumber
from federation.sessions.config.words import Setting
from foundation.errors import StudioError

EXAMPLES = {"selection.where": "region=eu and gpu>=1"}


def field_name(place: str) -> str:
    """`selection.where` is called `selection_where` in a form."""
    return place.replace(".", "_")


def argument_name(aggregator: Aggregator, argument: Argument) -> str:
    return f"{aggregator.name}_{argument.name}"


def plain_number(value: Any) -> Any:
    """180.0 as people write it: 180."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def setting_field(setting: Setting) -> forms.Field:
    """A field for one setting; empty means its default. What it may be is for `parse_spec` to say."""
    common: dict[str, Any] = {
        "required": False,
        "label": setting.title,
        "help_text": setting.hint,
        "initial": plain_number(setting.default),
    }
    match setting.kind:
        case "flag":
            return forms.BooleanField(**common)
        case "choice":
            return forms.ChoiceField(choices=list(setting.choices.items()), **common)
        case "whole":
            return forms.IntegerField(**common)
        case "number":
            return forms.FloatField(**common)
        case _:
            attrs = {"class": "code", "spellcheck": "false", "placeholder": EXAMPLES.get(setting.place, "")}
            return forms.CharField(widget=forms.TextInput(attrs), **common)


def argument_field(argument: Argument) -> forms.Field:
    """A field for one argument of an aggregator; empty means its default."""
    common: dict[str, Any] = {
        "required": False,
        "label": argument.title,
        "help_text": argument.hint,
        "initial": plain_number(argument.default),
    }
    if isinstance(argument, Choice):
        return forms.ChoiceField(choices=list(argument.words.items()), **common)

    def check(value: float) -> None:
        try:
            argument.check(value)
        except StudioError:
            raise forms.ValidationError(f"Enter {argument.kind} {argument.range}.") from None

    field = forms.IntegerField if isinstance(argument, WholeNumber) else forms.FloatField
    return field(validators=[check], **common)
