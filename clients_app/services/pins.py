"""Pinning a client to combiners by their labels."""

from __future__ import annotations

import re
from collections.abc import Mapping

from django.db import transaction

from clients_app.models import Client
from clients_app.placement import pin_text
from federation.events.services import publish
from foundation.errors import invalid
from projects import audit
from projects.actors import Actor
from projects.choices import Action
from projects.scoping import reach

MAX_LABELS = 10
MAX_VALUE_CHARS = 120
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_EXAMPLE = "region=eu, site=north"


def checked_pin(given: object) -> dict[str, str]:
    """Labels as `{"region": "eu"}` or as text, `region=eu, site=north`; nothing: not pinned. Raises StudioError 400."""
    if given is None or given == "":
        return {}
    if isinstance(given, str):
        given = _read(given)
    if not isinstance(given, Mapping):
        raise _wrong("a pin is an object of labels")
    if len(given) > MAX_LABELS:
        raise _wrong(f"a pin has at most {MAX_LABELS} labels")
    pin: dict[str, str] = {}
    for key, value in sorted(given.items(), key=str):
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise _wrong("a label's key has 1 to 60 letters, digits, dots, dashes or underscores")
        if not isinstance(value, str) or not value.strip() or len(value) > MAX_VALUE_CHARS:
            raise _wrong(f"the value of {key} is a text of 1 to {MAX_VALUE_CHARS} characters")
        if not value.isprintable() or "," in value:
            raise _wrong(f"the value of {key} has printable characters and no comma")
        pin[key] = value.strip()
    return pin


def pin_client(*, actor: Actor, client: Client, pin: object) -> Client:
    """From now on it is given only combiners with these labels; none: any. It leaves one that no longer fits within
    seconds. Raises StudioError 400, 403, 404."""
    wanted = checked_pin(pin)
    row: Client = reach(Client.objects.all(), actor, Action.RUN, "client", pk=client.pk)
    if wanted == row.pin:
        return row
    with transaction.atomic():
        row.pin = wanted
        row.save(update_fields=["pin"])
        audit.record(actor, "client.pin", project_id=row.project_id, target=str(row.pk), pin=wanted)
        said = f"is pinned to combiners with {pin_text(wanted)}" if wanted else "may use any combiner"
        publish(
            project_id=row.project_id,
            kind="client.pinned",
            message=f"Client {row.name} {said}.",
            client_id=row.pk,
            pin=wanted,
        )
    return row


def _read(text: str) -> dict[str, str]:
    pin: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise _wrong(f"“{part[:40]}” is no label")
        if key in pin:
            raise _wrong(f"{key[:60]} is named twice")
        pin[key] = value
    return pin


def _wrong(what: str) -> Exception:
    return invalid("pin", f"A pin names labels of combiners, such as {_EXAMPLE}: {what}.")
