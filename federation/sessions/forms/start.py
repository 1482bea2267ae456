"""The form of a new session. `config.parse_spec` checks the values; here are only the fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django import forms

from federation.aggregation.aggregators import AGGREGATORS, Aggregator
from federation.sessions.config import SessionConfig
from federation.sessions.config.words import GROUPS, settings
from federation.sessions.forms.fields import argument_field, argument_name, field_name, setting_field
from federation.sessions.forms.sections import ADAPTIVE, FULL, GUIDED, IN_ROUNDS, Block, Section, planned
from foundation.errors import StudioError

DEFAULTS = SessionConfig()
FAMILIES = {"averaging": "Averaging", "server optimiser": "Server optimisers", "robust": "Robust"}
MODES = {
    "synchronous": "In rounds: a model is made when the clients of a round have answered",
    "asynchronous": "Buffered: a model is made of every few updates, whoever sent them (FedBuff)",
}
# Where a refusal belongs that names no field of the form.
HOMES = {
    "selection": "selection_strategy", "asynchronous": "mode", "privacy": "private", "target": "target_value",
    "target.value": "target_value", "aggregator_kwargs": "aggregator",
}  # fmt: skip
FindClients = Callable[[Sequence[str]], dict[str, str]]


def _families() -> list[tuple[str, list[tuple[str, str]]]]:
    """The aggregators as a select lists them: by family."""
    found: dict[str, list[tuple[str, str]]] = {title: [] for title in FAMILIES.values()}
    for name, one in AGGREGATORS.items():
        found.setdefault(FAMILIES.get(one.family, one.family), []).append((name, one.title))
    return [(title, listed) for title, listed in found.items() if listed]


class StartForm(forms.Form):
    name = forms.CharField(
        max_length=120, required=False, label="Name (optional)", help_text="Else numbered."
    )
    rounds = forms.IntegerField(min_value=1, initial=5, label="Rounds")
    package = forms.ChoiceField(required=False, label="Compute package")
    seed_model = forms.ChoiceField(label="Seed model")
    aggregator = forms.ChoiceField(required=False, label="How updates become a model")
    client_settings = forms.CharField(
        required=False, label="Client settings (optional)",
        help_text="Hyper-parameters for the clients, as a JSON object: {&quot;epochs&quot;: 1, &quot;lr&quot;: 0.1}",
        widget=forms.Textarea(attrs={"rows": 3, "class": "code", "spellcheck": "false"}),
    )  # fmt: skip
    client_ids = forms.CharField(required=False, widget=forms.Textarea(attrs={"rows": 2}))
    target_metric = forms.CharField(
        max_length=120, required=False, label="Stop at a metric (optional)", help_text="Such as accuracy."
    )
    target_direction = forms.ChoiceField(
        choices=[("max", "at least"), ("min", "at most")],
        required=False,
        initial="max",
        label="When its mean is",
    )
    target_value = forms.FloatField(required=False, label="This value")
    mode = forms.ChoiceField(
        choices=list(MODES.items()), required=False, initial="synchronous", label="The server makes a model"
    )
    private = forms.BooleanField(
        required=False, label="Differential privacy",
        help_text="Each client's change is clipped and noise is added to their sum, so that the model tells little "
        "of any one client. It costs accuracy: the more clients a round has, the less.",
    )  # fmt: skip

    def __init__(
        self,
        *args: Any,
        packages: list[tuple[str, str]],
        models: list[tuple[str, str]],
        find_clients: FindClients,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._find_clients = find_clients
        for place, setting in settings().items():
            if (name := field_name(place)) in self.fields:
                self.fields[name].help_text = self.fields[name].help_text or setting.hint
                self.fields[name].label = self.fields[name].label or setting.title
            elif setting.kind is not None:
                self.fields[name] = setting_field(setting)
        for choices, name in (
            ([*packages, ("", "None: the clients bring their own code")], "package"),
            (models, "seed_model"),
            (_families(), "aggregator"),
        ):
            field = self.fields[name]
            assert isinstance(field, forms.ChoiceField)
            field.choices = choices
        self.fields["aggregator"].help_text = ""
        for aggregator in AGGREGATORS.values():
            for argument in aggregator.arguments:
                self.fields[argument_name(aggregator, argument)] = argument_field(argument)
        for name, rows in (("package", packages), ("seed_model", models)):
            self.initial.setdefault(name, rows[0][0] if rows else "")
        self.initial.setdefault("aggregator", DEFAULTS.aggregator)

    # --- how it is laid out

    def aggregators(self) -> Iterator[tuple[Aggregator, list[forms.BoundField]]]:
        """Every aggregator with the fields of its arguments."""
        for one in AGGREGATORS.values():
            yield one, [self[argument_name(one, argument)] for argument in one.arguments]

    def sections(self) -> Iterator[Section]:
        """What is folded away; open where something is wrong or was changed."""
        touched = set(self.errors) | set(self.changed_data) if self.is_bound else set()
        for plan in planned():
            blocks = [
                Block(
                    [(self[name], "full" if name in FULL else "") for name in block.names],
                    block.needs,
                    block.title,
                    bool(touched & set(block.names)),
                )
                for block in plan.blocks
            ]
            yield Section(plan.title, plan.lead, blocks, any(block.open for block in blocks))

    # --- what it says

    def _unused(self, values: dict[str, Any]) -> set[str]:
        """Fields that the choices made leave without meaning; nobody sees them, so nothing in them is wrong."""
        unused: set[str] = set()
        for one in AGGREGATORS.values():
            if one.name != (values.get("aggregator") or DEFAULTS.aggregator):
                unused |= {argument_name(one, argument) for argument in one.arguments}
        if values.get("selection_strategy") != "guided":
            unused |= set(GUIDED)
        if values.get("mode") == "asynchronous":
            unused |= set(IN_ROUNDS)
        else:
            unused |= {field_name(place) for place in settings() if place.startswith("asynchronous.")}
        if not values.get("private"):
            unused |= {field_name(place) for place in settings() if place.startswith("privacy.")}
        elif not values.get("privacy_adaptive"):
            unused |= set(ADAPTIVE)
        return unused

    def clean_client_ids(self) -> list[str]:
        """Ids of the clients that were named."""
        words = [word.strip() for word in self.cleaned_data["client_ids"].replace("\n", ",").split(",")]
        words = [word for word in words if word]
        found = self._find_clients(words) if words else {}
        if missing := [word for word in words if word not in found]:
            raise forms.ValidationError(f"There is no client called “{missing[0][:80]}” in this project.")
        return [found[word] for word in words]

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or {}
        for name in self._unused(values):
            self.errors.pop(name, None)
        if bool(values.get("target_metric")) != (values.get("target_value") is not None):
            self.add_error("target_value", "Name both a metric and its value, or neither.")
        return values

    def spec_values(self) -> dict[str, Any]:
        """What was filled in, under the names of `parse_spec`."""
        cleaned: dict[str, Any] = dict(self.cleaned_data)
        unused = self._unused(cleaned)
        values = {name: cleaned.get(name) for name in ("name", "rounds", "package", "seed_model")}
        groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
        for place, setting in settings().items():
            name = field_name(place)
            if name in cleaned and name not in unused and cleaned[name] not in (None, ""):
                home = groups[setting.group] if setting.group else values
                home[setting.name] = cleaned[name]
        values["selection"] = groups["selection"]
        values["asynchronous"] = groups["asynchronous"] if cleaned["mode"] == "asynchronous" else None
        values["privacy"] = groups["privacy"] if cleaned["private"] else None
        chosen = AGGREGATORS[cleaned["aggregator"] or DEFAULTS.aggregator]
        given = {one.name: cleaned.get(argument_name(chosen, one)) for one in chosen.arguments}
        values["aggregator_kwargs"] = {
            name: value for name, value in given.items() if value not in (None, "")
        }
        metric = cleaned["target_metric"].strip()
        direction = cleaned["target_direction"] or "max"
        values["target"] = (
            {"metric": metric, "value": cleaned["target_value"], "direction": direction} if metric else None
        )
        return values

    @contextmanager
    def refusals_at_fields(self) -> Iterator[None]:
        """A StudioError raised inside names a field of this form, in the words that stand beside it."""
        try:
            yield
        except StudioError as error:
            place = str(error.data.get("field", ""))
            home = self._home_of(place)
            message = _in_words_of_the_page(error.message, place)
            raise StudioError(
                error.code, message, error.status, **(error.data | {"field": home or place})
            ) from None

    def _home_of(self, place: str) -> str | None:
        for name in (place, HOMES.get(place, ""), field_name(place)):
            if name in self.fields:
                return name
        return next((field_name(one) for one in settings() if one.endswith(f".{place}")), None)


def _in_words_of_the_page(sentence: str, place: str) -> str:
    """Names as REST has them become the titles that stand beside the fields."""
    for one in settings().values():
        if one.kind is not None and "_" in one.name:
            sentence = re.sub(rf"\b{one.name}\b", f"“{one.title}”", sentence)
        elif one.kind is not None and one.place == place:
            sentence = re.sub(rf"^{one.name}\b", f"“{one.title}”", sentence)
    return sentence
