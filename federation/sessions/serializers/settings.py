"""The settings of a session in JSON, made from what `config.words` says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rest_framework import serializers

from federation.sessions.config.words import GROUPS, KEPT_BY_THE_SERVER, Setting, settings_in
from foundation.errors import invalid


class _AsItCame:
    """A field that is typed for the schema; `parse_spec` says in a sentence what its value must be."""

    def to_internal_value(self, data: Any) -> Any:
        return data


class Whole(_AsItCame, serializers.IntegerField):
    pass


class Number(_AsItCame, serializers.FloatField):
    pass


class Word(_AsItCame, serializers.ChoiceField):
    pass


class Text(_AsItCame, serializers.CharField):
    pass


def field_of(setting: Setting) -> serializers.Field[Any, Any, Any, Any]:
    """A field that may be left out, then the setting has its default."""
    common: dict[str, Any] = {
        "required": False,
        "help_text": f"{setting.title}. {setting.hint} Default: {_said(setting.default)}.",
    }
    if setting.optional:
        common["allow_null"] = True
    match setting.kind:
        case "flag":
            return serializers.BooleanField(**common)
        case "choice":
            return Word(choices=list(setting.choices.items()), **common)
        case "whole":
            return Whole(**common)
        case "number":
            return Number(**common)
        case _:
            return Text(allow_blank=True, **common)


def _said(default: Any) -> str:
    if default is None:
        return "none"
    return (
        str(default).lower()
        if isinstance(default, bool)
        else f"{default:g}"
        if isinstance(default, float)
        else str(default) or "empty"
    )


class GroupSerializer(serializers.Serializer[Any]):
    """One group of settings; an entry that there is none of is refused, not dropped."""

    group: ClassVar[str]

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        return {one.name: field_of(one) for one in settings_in(self.group)}

    def to_internal_value(self, data: Any) -> Any:
        names = [one.name for one in settings_in(self.group)]
        if isinstance(data, Mapping):
            for name in data:
                if name not in names:
                    sentence = (
                        f"{self.group} has no setting called {str(name)[:80]!r}; it has {', '.join(names)}."
                    )
                    raise invalid(self.group, sentence)
        return super().to_internal_value(data)


class SelectionSettings(GroupSerializer):
    """How the clients of a round are chosen."""

    group = "selection"


class AsynchronousSettings(GroupSerializer):
    """Buffered asynchronous rounds (FedBuff); an empty object takes all defaults."""

    group = "asynchronous"


class PrivacySettings(GroupSerializer):
    """Differential privacy of clients; an empty object takes all defaults."""

    group = "privacy"


GROUP_SERIALIZERS: dict[str, type[GroupSerializer]] = {
    one.group: one for one in (SelectionSettings, AsynchronousSettings, PrivacySettings)
}
assert set(GROUP_SERIALIZERS) == set(GROUPS)


class Target(serializers.Serializer[Any]):
    metric = serializers.CharField(max_length=120)
    value = serializers.FloatField()
    direction = serializers.ChoiceField(choices=["max", "min"], default="max")


def plain_fields() -> dict[str, serializers.Field[Any, Any, Any, Any]]:
    """The session's own settings that are one value each."""
    return {
        one.name: field_of(one)
        for one in settings_in("")
        if one.kind is not None and one.name != "aggregator"
    }


class SettingsOut(serializers.Serializer[Any]):
    """What a session was asked to do, all of it."""

    aggregator = serializers.CharField()
    aggregator_kwargs = serializers.DictField(help_text="all arguments of the aggregator")
    client_settings = serializers.DictField()
    client_ids = serializers.ListField(child=serializers.UUIDField())
    target = Target(allow_null=True)
    selection = SelectionSettings()
    asynchronous = AsynchronousSettings(allow_null=True)
    privacy = PrivacySettings(allow_null=True)
    target_from_round = serializers.IntegerField(help_text="the target counts from this round on")
    cannot_run = serializers.CharField(help_text="why it can never be started; empty: it can")

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        return plain_fields() | super().get_fields()


HIDDEN = KEPT_BY_THE_SERVER - set(SettingsOut._declared_fields)
