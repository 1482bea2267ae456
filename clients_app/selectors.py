"""Reading clients and combiners: who is online, since when, where, and doing what."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from django.db.models import Case, Count, DateTimeField, Exists, F, OuterRef, Q, QuerySet, When
from django.db.models.functions import Now

from clients_app.models import Client, Combiner
from projects.actors import Actor
from projects.models import Project

if TYPE_CHECKING:
    from django_stubs_ext import WithAnnotations

# An assignment that a client still owes; the room of sessions stands above this one and is not imported.
_OWED = ("assigned", "delivered")
COMBINER_HOSTS = "combiner_hosts"  # in a project's settings
_DOING = {"train": "training", "validate": "validating"}
_CONNECTED = Q(clients__connection_id__gt="", clients__connection_epoch=F("epoch"))


class Presence(TypedDict):
    online: bool
    since: dt.datetime | None


def clients_of(actor: Actor, project: Project) -> QuerySet[WithAnnotations[Client, Presence]]:
    """The clients of a project, newest first, each with its `combiner` at hand, `online` (bool) and `since`: since
    when it is online, or when it was last heard from (None: never)."""
    return _with_presence(Client.objects.visible_to(actor).filter(project=project))


def client_itself(client_id: uuid.UUID) -> WithAnnotations[Client, Presence] | None:
    """The client behind a client token, with its project."""
    return _with_presence(Client.objects.filter(pk=client_id)).select_related("project").first()


def _with_presence(rows: QuerySet[Client]) -> QuerySet[WithAnnotations[Client, Presence]]:
    online = Exists(Client.objects.online().filter(pk=OuterRef("pk")))
    since = Case(
        When(online=True, then=F("connected_at")), default=F("last_seen_at"), output_field=DateTimeField()
    )
    return rows.select_related("combiner").annotate(online=online).annotate(since=since)


@dataclass(frozen=True)
class ClientState:
    """One line of the list of clients. `combiner` is the name of the one it is connected to; `doing` is empty while
    it is offline and owes nothing."""

    client: Client
    online: bool
    since: dt.datetime | None
    combiner: str | None
    doing: str


def described(rows: Sequence[Client]) -> list[ClientState]:
    """What the clients of `clients_of`, or a page of them, are doing. One query, however many."""
    owed = _owed([row.pk for row in rows])
    states = []
    for row in rows:
        online: bool = getattr(row, "online", False)
        since: dt.datetime | None = getattr(row, "since", row.last_seen_at)
        combiner = row.combiner.name if online and row.combiner is not None else None
        states.append(ClientState(row, online, since, combiner, _sentence(owed.get(row.pk, []), online)))
    return states


def _owed(client_ids: list[uuid.UUID]) -> dict[uuid.UUID, list[str]]:
    rows = (
        Client.objects.filter(pk__in=client_ids, assignments__status__in=_OWED)
        .order_by("assignments__id")
        .values_list(
            "pk", "assignments__kind", "assignments__round__number", "assignments__round__session__name"
        )
    )
    found: dict[uuid.UUID, list[str]] = defaultdict(list)
    for client_id, kind, number, session in rows:
        found[client_id].append(f"{_DOING.get(kind, kind)} round {number} of {session}")
    return found


def _sentence(owed: list[str], online: bool) -> str:
    if not owed:
        return "idle" if online else ""
    more = f" and {len(owed) - 1} more" if len(owed) > 1 else ""
    return f"{owed[0]}{more}" if online else f"away from {owed[0]}{more}"


def combiners_of(project: Project) -> QuerySet[Combiner]:
    """Every combiner, by name, with `alive` and `active_clients`: how many of this project's are connected to it.
    Combiners serve all projects; what others do on them is not told."""
    alive = Q(lease_until__gt=Now())
    return (
        Combiner.objects.annotate(
            alive=Case(When(alive, then=True), default=False),
            active_clients=Count("clients", filter=_CONNECTED & alive & Q(clients__project=project)),
        )
        .exclude(lease_until=None)
        .order_by("name")
    )


def host_for(project: Project, combiner: Combiner) -> str:
    """The host, or `host:port`, that this project gives its clients for a combiner; empty: the combiner's own."""
    return str(project.settings.get(COMBINER_HOSTS, {}).get(str(combiner.pk), ""))


def combiners_best_first(attributes: Mapping[str, Any] | None = None) -> list[Combiner]:
    """Those alive, fewest connected clients first, each with `active_clients`. One query. A combiner whose labels
    contradict the client's attributes (another region) comes after those that fit."""
    rows = list(
        Combiner.objects.alive()
        .annotate(active_clients=Count("clients", filter=_CONNECTED))
        .order_by("active_clients", "name")
    )
    wanted = attributes or {}
    return sorted(
        rows, key=lambda row: any(key in wanted and wanted[key] != value for key, value in row.labels.items())
    )
