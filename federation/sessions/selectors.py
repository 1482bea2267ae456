"""Reading sessions, rounds and assignments; lists are querysets behind the one door."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Case, Count, IntegerField, Max, Prefetch, Q, QuerySet, Sum, When
from django.db.models.functions import Coalesce

from clients_app.selectors import clients_of
from federation.models.selectors import means_of, packages_of, trail
from federation.sessions.choices import (
    LIVE_ASSIGNMENT,
    OPEN_ROUND,
    AssignmentKind,
    AssignmentStatus,
    RoundStatus,
    SessionStatus,
)
from federation.sessions.models import Assignment, CombinerShare, Command, Order, Round, Session
from foundation.errors import not_found
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project
from projects.scoping import reach


def sessions_of(actor: Actor, project: Project) -> QuerySet[Session]:
    """Newest first, each with its package, models and `models_made`."""
    return (
        Session.objects.visible_to(actor)
        .filter(project=project)
        .select_related("package", "seed_model", "current_model", "created_by")
        .defer("seed_model__layout", "current_model__layout")
        .annotate(models_made=Count("trail"))
        .order_by("-id")
    )


def session_of(
    actor: Actor, project: Project, session_id: uuid.UUID, action: Action = Action.VIEW
) -> Session:
    """One session of the project. Raises StudioError 404 or 403."""
    row: Session = reach(
        Session.objects.select_related("package", "seed_model", "current_model", "created_by").defer(
            "seed_model__layout", "current_model__layout"
        ),
        actor, action, "session", pk=session_id, project=project,
    )  # fmt: skip
    return row


def running_of(actor: Actor, project: Project) -> list[Session]:
    """What runs now, the newest first."""
    return list(sessions_of(actor, project).filter(status=SessionStatus.RUNNING)[:20])


def rounds_of(session: Session) -> QuerySet[Round]:
    """Newest first."""
    return Round.objects.filter(session=session).select_related("output_model").defer(
        "output_model__layout", "output_model__metadata"
    ).order_by("-id")  # fmt: skip


def rounds_in(actor: Actor, project: Project) -> QuerySet[Round]:
    """The rounds of all sessions of a project, newest first, with their session."""
    return Round.objects.visible_to(actor).filter(project=project).select_related("session").order_by("-id")


def round_places(project: Project) -> dict[uuid.UUID, int]:
    """For each round of a project which one it is, counted from 1 over all sessions. One query."""
    ids = Round.objects.filter(project=project).order_by("id").values_list("pk", flat=True)
    return {pk: place for place, pk in enumerate(ids, start=1)}


def shares_of(round_ids: list[uuid.UUID]) -> dict[uuid.UUID, list[CombinerShare]]:
    """What each combiner did in each of these rounds. One query."""
    found: dict[uuid.UUID, list[CombinerShare]] = defaultdict(list)
    for share in (
        CombinerShare.objects.filter(round_id__in=round_ids).select_related("combiner").order_by("id")
    ):
        found[share.round_id].append(share)
    return dict(found)


def assignment_counts(
    round_ids: list[uuid.UUID], kind: str = AssignmentKind.TRAIN
) -> dict[uuid.UUID, dict[str, int]]:
    """For each round how many assignments of `kind` are in each state. One query."""
    rows = (
        Assignment.objects.filter(round_id__in=round_ids, kind=kind)
        .order_by()
        .values_list("round_id", "status")
        .annotate(n=Count("id"))
    )
    found: dict[uuid.UUID, dict[str, int]] = defaultdict(dict)
    for round_id, status, n in rows:
        found[round_id][status] = n
    return dict(found)


@dataclass(frozen=True)
class Taken:
    """What a round's model was made of: accepted updates, whichever round asked for them."""

    updates: int = 0
    stalest: int = 0  # rounds between the oldest model that was answered and the round
    size_bytes: int = 0
    sent_bytes: int = 0  # of these so many travelled

    @property
    def saved(self) -> float:
        """Share of the bytes that compression saved, 0 to 1."""
        return 1 - self.sent_bytes / self.size_bytes if self.size_bytes else 0.0


# in the order of Taken's fields
_TAKEN = {
    "n": Count("id"),
    "most_stale": Max("staleness"),
    "plain": Sum("size_bytes"),
    "travelled": Sum(Coalesce("sent_bytes", "size_bytes")),
}


def taken_in(round_ids: list[uuid.UUID]) -> dict[uuid.UUID, Taken]:
    """For each round what it took in. One query."""
    rows = (
        Assignment.objects.filter(share__round_id__in=round_ids, status=AssignmentStatus.ACCEPTED)
        .order_by()
        .values("share__round_id")
        .annotate(**_TAKEN)
    )
    return {row["share__round_id"]: _taken(row) for row in rows}


def taken_together(lines: Sequence[RoundLine]) -> Taken:
    """What these rounds took in. No query."""
    taken = [line.taken for line in lines]
    return Taken(
        sum(one.updates for one in taken),
        max((one.stalest for one in taken), default=0),
        sum(one.size_bytes for one in taken),
        sum(one.sent_bytes for one in taken),
    )


def _taken(row: Mapping[str, Any]) -> Taken:
    return Taken(*(row[name] or 0 for name in _TAKEN))


@dataclass(frozen=True)
class RoundLine:
    """One round as tables show it; `metrics` are the means measured on the model that it made."""

    round: Round
    answered: int
    asked: int
    counts: dict[str, int]
    metrics: dict[str, float] = field(default_factory=dict)
    taken: Taken = field(default_factory=Taken)

    @property
    def seconds(self) -> float | None:
        """How long the round took, in seconds; None while it runs."""
        return (self.round.ended_at - self.round.created_at).total_seconds() if self.round.ended_at else None


def round_lines(rounds: list[Round]) -> list[RoundLine]:
    """Rounds with their counts, metrics and what they took in. Three queries, however many rounds."""
    ids = [row.pk for row in rounds]
    counts, taken = assignment_counts(ids), taken_in(ids)
    means = means_of([row.output_model_id for row in rounds if row.output_model_id])
    lines = []
    for row in rounds:
        states, took = counts.get(row.pk, {}), taken.get(row.pk, Taken())
        metrics = means.get(row.output_model_id, {}) if row.output_model_id else {}
        answered, asked = states.get("accepted", 0), sum(states.values())
        if row.buffered:  # whoever was asked in it may answer a later one
            answered, asked = took.updates, row.goal
        lines.append(RoundLine(row, answered, asked, states, metrics, took))
    return lines


MOST_POINTS = 1000  # of a curve


def epsilons_of(session: Session) -> list[tuple[int, float | None]]:
    """Number of each of the last thousand finished rounds and the privacy spent up to it (None: no bound), oldest
    first. One query."""
    rows = Round.objects.filter(session=session, status=RoundStatus.FINISHED).order_by("-number")
    return list(rows.values_list("number", "epsilon")[:MOST_POINTS])[::-1]


def open_round_of(session: Session) -> Round | None:
    """The round that is not over yet."""
    return Round.objects.filter(session=session, status__in=OPEN_ROUND).order_by("-number").first()


def assignments_of(session: Session) -> QuerySet[Assignment]:
    """Everything that clients of the session were asked to do, newest first, with client, round and combiner."""
    return (
        Assignment.objects.filter(round__session=session)
        .select_related("client", "round", "share__combiner")
        .order_by("-id")
    )


MOST_AT_WORK = 30


def live_assignments(session: Session) -> list[Assignment]:
    """What clients work on now, and the answers of the open round so far: the first thirty, those at work first."""
    rows = assignments_of(session).filter(Q(status__in=LIVE_ASSIGNMENT) | Q(round__status__in=OPEN_ROUND))
    at_work = Case(When(status__in=LIVE_ASSIGNMENT, then=0), default=1, output_field=IntegerField())
    return list(rows.order_by(at_work, "kind", "client__name")[:MOST_AT_WORK])


def round_of(session: Session, round_id: uuid.UUID) -> Round:
    """One round of a session that was reached already. Raises StudioError 404."""
    found = rounds_of(session).filter(pk=round_id).first()
    if found is None:
        raise not_found("round")
    return found


def clients_in(round_: Round) -> QuerySet[Assignment]:
    """Who was asked to train in a round, and whose update it took, each with client and combiner; newest first."""
    rows = assignments_of(round_.session).filter(kind=AssignmentKind.TRAIN)
    return (
        rows.filter(Q(round=round_) | Q(share__round=round_))
        if round_.buffered
        else rows.filter(round=round_)
    )


def training_of(client_id: uuid.UUID, actor: Actor) -> QuerySet[Assignment]:
    """The work of one client, newest first, with round and session."""
    return (
        Assignment.objects.visible_to(actor)
        .filter(client_id=client_id)
        .select_related("round", "round__session")
        .defer("round__session__config")
        .order_by("-id")
    )


@dataclass(frozen=True)
class ProjectCounts:
    """How much of everything a project has, and so which first steps are done."""

    clients: int
    online: int
    packages: int
    models: int
    sessions: int
    trained: bool

    @property
    def steps(self) -> list[tuple[str, bool]]:
        """The way from an empty project to a first training, each step with whether it is done."""
        return [
            ("package", self.packages > 0),
            ("seed", self.models > 0),
            ("client", self.clients > 0),
            ("connect", self.online > 0),
            ("session", self.sessions > 0),
        ]


def counts_of(actor: Actor, project: Project) -> ProjectCounts:
    clients = clients_of(actor, project)
    sessions = Session.objects.visible_to(actor).filter(project=project)
    return ProjectCounts(
        clients=clients.count(),
        online=clients.filter(online=True).count(),
        packages=packages_of(actor, project).count(),
        models=trail(actor, project).count(),
        sessions=sessions.count(),
        trained=sessions.filter(rounds_done__gt=0).exists(),
    )


def clients_named(actor: Actor, project: Project, words: Sequence[str]) -> dict[str, str]:
    """For each name or id of a client of the project its id; those there are none of are left out. One query."""
    ids = [word for word in words if _is_id(word)]
    rows = clients_of(actor, project).filter(Q(name__in=words) | Q(pk__in=ids)).values_list("pk", "name")
    found: dict[str, str] = {}
    for pk, name in rows:
        found |= {str(pk): str(pk), name: str(pk)}
    return {
        word: found[key] for word in words if (key := str(uuid.UUID(word)) if _is_id(word) else word) in found
    }


def _is_id(word: str) -> bool:
    try:
        uuid.UUID(word)
    except ValueError:
        return False
    return True


def commands_of(actor: Actor, project: Project) -> QuerySet[Command]:
    """What clients were asked to do outside any round, newest first, each with its orders and their clients."""
    return (
        Command.objects.visible_to(actor)
        .filter(project=project)
        .prefetch_related(Prefetch("orders", Order.objects.select_related("client")))
        .order_by("-id")
    )


def orders_of(actor: Actor, project: Project) -> QuerySet[Order]:
    """The same, one for each client."""
    rows = Order.objects.visible_to(actor).filter(project=project)
    return rows.select_related("command", "client").order_by("-id")
