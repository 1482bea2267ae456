"""Who is connected where. Services for the combiner; no wire words.

A combiner holds a lease and an epoch that rises each time it starts; a connection is (combiner, epoch,
connection id). Every comparison of times is made by the database's clock, inside the query.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import DateTimeField, Exists, ExpressionWrapper
from django.db.models.functions import Now

from clients_app.choices import Draining
from clients_app.combiner_events import tell_projects
from clients_app.models import Client, Combiner
from clients_app.placement import MOVABLE_DIALECTS, fits, pin_text
from federation.events.services import publish
from foundation.errors import StudioError
from foundation.plain_json import plain

LEASE_S = 15.0
MAX_ATTRIBUTES = 100


@dataclass(frozen=True)
class CombinerLease:
    """What a combiner that has started writes with. `lost_spool`: it came back with another disk."""

    combiner_id: uuid.UUID
    epoch: int
    lost_spool: bool


def start_combiner(
    *,
    name: str,
    spool_id: str,
    address: str,
    tls_address: str,
    labels: Mapping[str, Any],
    version: str,
) -> CombinerLease:
    """Register the combiner `name` or take it over: the epoch rises, so whoever ran under the name before can
    write no more; the lease runs for 15 s from now. One that the operator drains stays so."""
    with transaction.atomic():
        Combiner.objects.bulk_create([Combiner(name=name)], ignore_conflicts=True)
        row = Combiner.objects.select_for_update().get(name=name)
        lost = bool(row.spool_id) and row.spool_id != spool_id
        Combiner.objects.filter(pk=row.pk).update(
            epoch=row.epoch + 1,
            spool_id=spool_id,
            address=address,
            tls_address=tls_address,
            labels=plain(labels),
            version=version[:40],
            load={},
            started_at=Now(),
            lease_until=_lease(),
            left_at=None,
            draining=Draining.ASKED if row.draining == Draining.ASKED else Draining.NO,
        )
        again = "" if row.left_at or not row.epoch else " again"
        tell_projects(row, "combiner.joined", f"Combiner {name} started{again}.", version=version[:40])
        return CombinerLease(row.pk, row.epoch + 1, lost)


def renew_lease(*, combiner_id: uuid.UUID, epoch: int, load: Mapping[str, Any]) -> bool:
    """15 s more. False: a newer one runs under this name, or the row is gone; the caller must exit."""
    rows = Combiner.objects.filter(pk=combiner_id, epoch=epoch)
    return rows.update(lease_until=_lease(), load=plain(load), left_at=None) == 1


def end_lease(*, combiner_id: uuid.UUID, epoch: int) -> bool:
    """The combiner stops on purpose: its clients are offline from now. False when a newer one runs."""
    with transaction.atomic():
        rows = Combiner.objects.filter(pk=combiner_id, epoch=epoch)
        if not rows.update(lease_until=Now(), left_at=Now(), load={}):
            return False
        row = rows.get()
        tell_projects(row, "combiner.left", f"Combiner {row.name} stopped.")
    return True


def note_silent_combiners() -> int:
    """Those whose lease ran out without a word: told once, as soon as it is seen. Answers how many."""
    silent = Combiner.objects.filter(lease_until__lte=Now(), left_at=None)
    noted = 0
    for row in silent:
        with transaction.atomic():
            if Combiner.objects.filter(pk=row.pk, lease_until__lte=Now(), left_at=None).update(left_at=Now()):
                noted += 1
                tell_projects(
                    row,
                    "combiner.silent",
                    f"Combiner {row.name} fell silent: its lease ran out. Its clients go to others; what it "
                    "accepted is on its disk until it is back, or given up.",
                    level="warning",
                )
    return noted


def connected(
    *,
    client_id: uuid.UUID,
    combiner_id: uuid.UUID,
    epoch: int,
    connection_id: str,
    dialect: str,
    version: str,
    attributes: Mapping[str, Any] | None = None,
) -> bool:
    """The client's stream is open. It takes the place of any earlier connection; `attributes` None keeps what
    is known. False when the client is gone or a newer combiner runs: then the stream must end.

    Raises StudioError 503 where the client is to go elsewhere: `pinned_elsewhere`, or `combiner_draining` when its
    dialect can find another; nothing is changed then."""
    fields: dict[str, Any] = {
        "combiner_id": combiner_id,
        "connection_epoch": epoch,
        "connection_id": connection_id,
        "connected_at": Now(),
        "last_seen_at": Now(),
        "dialect": dialect[:20],
        "version": version[:40],
    }
    if attributes is not None:
        fields["attributes"] = plain(attributes)
    with transaction.atomic():
        current = Exists(Combiner.objects.filter(pk=combiner_id, epoch=epoch))
        if not Client.objects.filter(current, pk=client_id).update(**fields):
            return False
        client = Client.objects.select_related("combiner").get(pk=client_id)
        assert client.combiner is not None
        _check_place(client, client.combiner)
        publish(
            project_id=client.project_id,
            kind="client.connected",
            message=f"{client.name} connected to {client.combiner}.",
            client_id=client_id,
            combiner_id=combiner_id,
            dialect=dialect,
            version=version,
        )
    return True


def _check_place(client: Client, combiner: Combiner) -> None:
    if not fits(client.pin, combiner):
        raise StudioError(
            "pinned_elsewhere",
            f"This client is pinned to combiners with {pin_text(client.pin)}; {combiner.name} is none of them.",
            503,
        )
    if combiner.draining and client.dialect in MOVABLE_DIALECTS:
        raise StudioError(
            "combiner_draining", f"Combiner {combiner.name} takes no new clients: ask for another.", 503
        )


def disconnected(*, client_id: uuid.UUID, combiner_id: uuid.UUID, epoch: int, connection_id: str) -> bool:
    """The stream ended. Written only where it is still the client's connection, so that a late word never
    hides a client that came back elsewhere; else False and nothing changes."""
    with transaction.atomic():
        ended = Client.objects.filter(
            pk=client_id, combiner_id=combiner_id, connection_epoch=epoch, connection_id=connection_id
        ).update(connection_id="", last_seen_at=Now())
        if not ended:
            return False
        client = Client.objects.select_related("combiner").get(pk=client_id)
        publish(
            project_id=client.project_id,
            kind="client.disconnected",
            message=f"{client.name} disconnected from {client.combiner}.",
            client_id=client_id,
            combiner_id=combiner_id,
        )
    return True


def set_attributes(*, client_id: uuid.UUID, attributes: Mapping[str, Any]) -> bool:
    """What a connected client says of itself, such as its region; False when it is gone."""
    return Client.objects.filter(pk=client_id).update(attributes=plain(attributes)) == 1


def merge_attributes(*, client_id: uuid.UUID, attributes: Mapping[str, Any]) -> bool:
    """As `set_attributes`, one by one: what is not named keeps its value. At most 100 are kept."""
    with transaction.atomic():
        row = Client.objects.select_for_update(of=("self",), no_key=True).filter(pk=client_id).first()
        if row is None:
            return False
        row.attributes = dict(list((row.attributes | plain(attributes)).items())[-MAX_ATTRIBUTES:])
        row.save(update_fields=["attributes"])
    return True


def touch_clients(*, combiner_id: uuid.UUID, epoch: int) -> None:
    """Everybody connected to this combiner was heard from just now. One statement; heartbeats cost no row each."""
    Client.objects.filter(combiner_id=combiner_id, connection_epoch=epoch, connection_id__gt="").update(
        last_seen_at=Now()
    )


def _lease() -> ExpressionWrapper:
    return ExpressionWrapper(Now() + dt.timedelta(seconds=LEASE_S), output_field=DateTimeField())
