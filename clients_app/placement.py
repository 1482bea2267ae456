"""Which combiner a client is given: the one selector behind every dialect's way of asking.

A client's pin is a condition: without a combiner that has those labels it waits. Labels that only contradict what the
client says of itself make a combiner the last choice. Among equals the one with the fewest clients comes first, and
who was told of it a moment ago counts as there already: a thousand clients that ask at once do not all go to one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.cache import cache
from django.db.models import Count, F, Q
from django.db.models.functions import Now

from clients_app.models import Client, Combiner
from foundation.errors import StudioError

CONNECTED = Q(clients__connection_id__gt="", clients__connection_epoch=F("epoch"))
# Clients that ask for a combiner whenever they lost theirs; the others know only the one they began with.
MOVABLE_DIALECTS = frozenset({"native"})
_UNFINISHED = ("open", "closing")  # states of a share; the room of sessions stands above this one
NAME_LABEL = "name"  # every combiner has it: a client may be pinned to one by name
ARRIVING_S = 10.0  # within so long who was told of a combiner is connected there, or will not come
_BUCKET_S = ARRIVING_S / 2
COUNTED_S = 1  # for so long a count of the connected serves all that ask
_COUNTS = "placement:counts"
# A combiner gives clients away only when it has more than twice what another has, and this many more.
UNEVEN_FACTOR = 2
UNEVEN_SLACK = 10


def fits(pin: Mapping[str, Any], combiner: Combiner) -> bool:
    """Whether the combiner has every label that the pin names."""
    labels = {**combiner.labels, NAME_LABEL: combiner.name}
    return all(key in labels and str(labels[key]) == str(value) for key, value in pin.items())


def pin_text(pin: Mapping[str, Any]) -> str:
    """As a person writes it: `region=eu, site=a`."""
    return ", ".join(f"{key}={value}" for key, value in sorted(pin.items()))


def taking_combiners(*, counted_s: float = 0.0) -> list[Combiner]:
    """Those that take clients, each with `active_clients` and `expected_clients` (with those on their way). With
    `counted_s` the clients may have been counted so many seconds ago: who was told of a combiner since is known anyway,
    and thousands that come at once are not counted for each of them. Two queries at most."""
    rows = list(Combiner.objects.taking().order_by("name"))
    told = _told(rows)
    counts = _counts(rows, counted_s)
    for row in rows:
        active, arrived = counts[str(row.pk)]
        # as annotations of a query would be: what is typed as such is refused where a query makes them
        row.active_clients = active  # type: ignore[attr-defined]
        row.expected_clients = active - arrived + max(arrived, told[row.pk])  # type: ignore[attr-defined]
    return rows


def _counts(rows: Sequence[Combiner], counted_s: float) -> dict[str, tuple[int, int]]:
    """For each combiner how many clients are connected, and how many of them arrived just now."""
    known: dict[str, tuple[int, int]] = (cache.get(_COUNTS) or {}) if counted_s else {}
    if any(str(row.pk) not in known for row in rows):
        arriving = Q(connected_at__gt=Now() - dt.timedelta(seconds=ARRIVING_S))
        counted = (
            Client.objects.filter(
                connection_id__gt="", combiner__in=rows, connection_epoch=F("combiner__epoch")
            )
            .order_by()
            .values("combiner_id")
            .annotate(active=Count("pk"), arrived=Count("pk", filter=arriving))
        )
        known = {str(row.pk): (0, 0) for row in rows}
        known |= {str(line["combiner_id"]): (line["active"], line["arrived"]) for line in counted}
        cache.set(_COUNTS, known, timeout=COUNTED_S)
    return known


def ordered(
    rows: Iterable[Combiner], pin: Mapping[str, Any], attributes: Mapping[str, Any]
) -> list[Combiner]:
    """Of `taking_combiners`, those that such a client may be given, best first; between equals by chance."""

    def badness(row: Combiner) -> tuple[bool, int, float]:
        contradicts = any(
            key in attributes and str(attributes[key]) != str(value) for key, value in row.labels.items()
        )
        expected: int = getattr(row, "expected_clients", 0)
        return contradicts, expected, random.random()

    return sorted((row for row in rows if fits(pin, row)), key=badness)


def combiners_for(client: Client) -> list[Combiner]:
    """Those to try, best first; empty: the client has to wait. The first is expected to get the client."""
    found = ordered(taking_combiners(counted_s=COUNTED_S), client.pin, client.attributes)
    if found:
        _tell(found[0])
    return found


def best_combiner(client: Client, preferred: str = "") -> Combiner | None:
    """The one that the client asks for by name, if it may be given that; else the best. None: it has to wait."""
    found = ordered(taking_combiners(counted_s=COUNTED_S), client.pin, client.attributes)
    if not found:
        return None
    best = next((row for row in found if preferred and row.name == preferred), found[0])
    _tell(best)
    return best


def where_to_begin(client: Client) -> Combiner | None:
    """The best one for a client that does not come yet: nobody is expected for it."""
    return next(iter(ordered(taking_combiners(), client.pin, client.attributes)), None)


def waiting_for(clients: Sequence[Client]) -> dict[uuid.UUID, str]:
    """For each of these clients that is pinned where no combiner takes clients: the pin in words. At most one
    query."""
    pinned = [client for client in clients if client.pin]
    if not pinned:
        return {}
    rows = list(Combiner.objects.taking())
    return {
        client.pk: pin_text(client.pin) for client in pinned if not any(fits(client.pin, row) for row in rows)
    }


# --- who should go elsewhere ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Standing:
    """What a running combiner has to know of itself: whether it is drained, and which of its clients are pinned to
    others."""

    draining: bool
    misplaced: frozenset[uuid.UUID]


def standing_of(combiner_id: uuid.UUID) -> Standing:
    """Two queries, however many clients."""
    combiner = Combiner.objects.filter(pk=combiner_id).first()
    if combiner is None:
        return Standing(False, frozenset())
    here = Client.objects.filter(combiner=combiner, connection_id__gt="").exclude(pin={})
    misplaced = (pk for pk, pin in here.values_list("pk", "pin") if not fits(pin, combiner))
    return Standing(bool(combiner.draining), frozenset(misplaced))


@dataclass(frozen=True)
class Left:
    """What a combiner that is drained still has: clients that can go elsewhere, others (published clients know only
    the combiner they began with), and shares of open rounds that it has to finish."""

    clients: int
    staying: int
    shares: int

    @property
    def nothing(self) -> bool:
        return not self.clients and not self.shares

    def __str__(self) -> str:
        staying = f", {self.staying} that cannot move" if self.staying else ""
        return f"{self.clients} clients to move{staying}, {self.shares} shares to finish"


@dataclass(frozen=True)
class DrainingState:
    """How far the draining of a combiner is."""

    name: str
    draining: bool
    left: Left

    @property
    def drained(self) -> bool:
        return self.draining and self.left.nothing


def draining_left(name: str) -> Left:
    """Three queries. Raises StudioError 404."""
    return draining_of(name).left


def draining_of(name: str) -> DrainingState:
    """Three queries. Raises StudioError 404."""
    row = Combiner.objects.filter(name=name).first()
    if row is None:
        raise StudioError("not_found", f"There is no combiner named {name}.", 404)
    here = Client.objects.online().filter(combiner=row)
    counted = here.aggregate(all=Count("pk"), movable=Count("pk", filter=Q(dialect__in=MOVABLE_DIALECTS)))
    shares = row.shares.filter(status__in=_UNFINISHED).count()
    left = Left(counted["movable"], counted["all"] - counted["movable"], shares)
    return DrainingState(row.name, bool(row.draining), left)


def surplus_of(combiner_id: uuid.UUID, idle: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """Those of the idle clients for whom another combiner has less than half as many clients. Two queries; one while
    things are even."""
    rows = taking_combiners()
    mine = next((row for row in rows if row.pk == combiner_id), None)
    if mine is None or not any(_uneven(mine, row) for row in rows):
        return set()
    clients = Client.objects.filter(pk__in=list(idle), combiner=mine)
    better = set()
    for pk, pin, attributes in clients.values_list("pk", "pin", "attributes"):
        best = ordered(rows, pin, attributes)
        if best and _uneven(mine, best[0]):
            better.add(pk)
    return better


def _uneven(full: Combiner, other: Combiner) -> bool:
    """By who is expected: as soon as enough are on their way, no more are sent."""
    mine: int = getattr(full, "active_clients", 0)
    theirs: int = getattr(other, "expected_clients", 0)
    return full.pk != other.pk and mine > UNEVEN_FACTOR * theirs + UNEVEN_SLACK


# --- who is on the way: a short-lived count in the cache; without it chance still spreads those who ask at once ---
def _bucket(age: int = 0) -> int:
    return int(time.time() / _BUCKET_S) - age


def _key(combiner_id: uuid.UUID, bucket: int) -> str:
    return f"placement:{combiner_id}:{bucket}"


def _told(rows: Sequence[Combiner]) -> dict[uuid.UUID, int]:
    """How often each was named as the one to go to, in the last five to ten seconds."""
    keys = {_key(row.pk, _bucket(age)): row.pk for row in rows for age in (0, 1)}
    found = cache.get_many(keys) if len(rows) > 1 else {}
    told = {row.pk: 0 for row in rows}
    for key, count in found.items():
        told[keys[key]] += int(count)
    return told


def _tell(combiner: Combiner) -> None:
    key = _key(combiner.pk, _bucket())
    cache.add(key, 0, timeout=2 * ARRIVING_S)
    with contextlib.suppress(ValueError):  # it ran out in between
        cache.incr(key)
