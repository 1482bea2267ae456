"""Reading clients and combiners: who is online, since when, where, and doing what."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from django.db.models import Case, Count, DateTimeField, Exists, F, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import Now

from clients_app.choices import Draining
from clients_app.models import Client, Combiner, Registration
from clients_app.placement import CONNECTED, waiting_for
from projects.actors import Actor
from projects.models import Project

if TYPE_CHECKING:
    from django_stubs_ext import WithAnnotations

# An assignment that a client still owes; the room of sessions stands above this one and is not imported.
_OWED = ("assigned", "delivered")
COMBINER_HOSTS = "combiner_hosts"  # in a project's settings
_DOING = {"train": "training", "validate": "validating"}


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
    it is offline, owes nothing and waits for no combiner."""

    client: Client
    online: bool
    since: dt.datetime | None
    combiner: str | None
    doing: str


def described(rows: Sequence[Client]) -> list[ClientState]:
    """What the clients of `clients_of`, or a page of them, are doing. Two queries at most, however many."""
    owed = _owed([row.pk for row in rows])
    waiting = waiting_for([row for row in rows if not getattr(row, "online", False)])
    states = []
    for row in rows:
        online: bool = getattr(row, "online", False)
        since: dt.datetime | None = getattr(row, "since", row.last_seen_at)
        combiner = row.combiner.name if online and row.combiner is not None else None
        doing = _sentence(owed.get(row.pk, []), online)
        if row.pk in waiting:
            wait = f"waits for a combiner with {waiting[row.pk]}: none takes clients"
            doing = f"{doing}; {wait}" if doing else wait
        states.append(ClientState(row, online, since, combiner, doing))
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
    """Every combiner, by name, with `alive`, `state` (up, draining, stopped or silent) and `active_clients`: how many
    of this project's are connected to it. Combiners serve all projects; what others do on them is not told."""
    alive = Q(lease_until__gt=Now())
    state = Case(
        When(alive & ~Q(draining=Draining.NO), then=Value("draining")),
        When(alive, then=Value("up")),
        When(left_at=F("lease_until"), then=Value("stopped")),  # it ended its lease itself
        default=Value("silent"),
    )
    return (
        Combiner.objects.annotate(
            alive=Case(When(alive, then=True), default=False),
            state=state,
            active_clients=Count("clients", filter=CONNECTED & alive & Q(clients__project=project)),
        )
        .exclude(lease_until=None)
        .order_by("name")
    )


def host_for(project: Project, combiner: Combiner) -> str:
    """The host, or `host:port`, that this project gives its clients for a combiner; empty: the combiner's own."""
    return str(project.settings.get(COMBINER_HOSTS, {}).get(str(combiner.pk), ""))


def living_registration(client_id: uuid.UUID) -> Registration | None:
    """How the client of that id may be believed without a token: by one that is neither revoked nor expired, nor of
    a closed account."""
    alive: Any = Q(token__revoked_at=None) & (Q(token__expires_at=None) | Q(token__expires_at__gt=Now()))
    open_account = Q(token__user=None) | Q(token__user__is_active=True)
    return (
        Registration.objects.select_related("client", "token")
        .filter(alive, open_account, client_id=client_id)
        .first()
    )


def registered_with(token_id: uuid.UUID, client_id: uuid.UUID) -> Registration | None:
    """The registration of that client by that very token."""
    return (
        Registration.objects.select_related("client").filter(client_id=client_id, token_id=token_id).first()
    )
