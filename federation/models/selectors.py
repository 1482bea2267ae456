"""Reading packages, the model trail and what was measured. Every list is a queryset behind the one door."""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass

from django.db.models import Count, Max, Q, QuerySet

from federation.models.models import ComputePackage, Metric, Model, ProjectDefaults, Validation
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project
from projects.scoping import reach

_MAX_LINES = 100


def packages_of(actor: Actor, project: Project) -> QuerySet[ComputePackage]:
    """Newest first."""
    return ComputePackage.objects.visible_to(actor).filter(project=project).select_related("created_by")


def package_for_download(actor: Actor, slug: str, package_id: uuid.UUID) -> ComputePackage:
    """Also for a client token of the package's own project, which runs it. StudioError 404 for anybody else."""
    rows = ComputePackage.objects.filter(project__slug=slug)
    if actor.client_id is not None:
        own = rows.filter(pk=package_id, project__clients=actor.client_id).first()
        if own is not None:
            return own
    package: ComputePackage = reach(rows, actor, Action.VIEW, "compute package", pk=package_id)
    return package


def active_package(project: Project, form: str = "") -> ComputePackage | None:
    """What a client that asks for “the” package is given: the project's active one if it has that form, else the newest
    that has. Any form, unless one is named. Who asks is checked by the caller."""
    rows = ComputePackage.objects.filter(project=project)
    if form:
        rows = rows.filter(form=form)
    chosen = ProjectDefaults.objects.filter(project=project).values("package_id")
    return rows.filter(pk__in=chosen).first() or rows.order_by("-id").first()


def package_named(project: Project, name: str) -> ComputePackage | None:
    """By the name its download carries (the last part of its key, which is unique), else the newest that was uploaded
    under this file name or is called so. Who asks is checked by the caller."""
    rows = ComputePackage.objects.filter(project=project).order_by("-id")
    by_key = rows.filter(key=f"packages/{project.pk}/{name}").first()
    return by_key or rows.filter(Q(file_name=name) | Q(name=name)).first()


def active_model(project: Project) -> Model | None:
    """What a session starts from whose request names no model: the active one, else the newest."""
    rows = Model.objects.filter(project=project).defer("layout")
    chosen = ProjectDefaults.objects.filter(project=project).values("model_id")
    return rows.filter(pk__in=chosen).first() or rows.order_by("-id").first()


def helper_of(project: Project) -> str:
    """How clients that know several model formats are to read this project's; empty when nobody has said."""
    return helper_in(project.pk)


def helper_in(project_id: uuid.UUID) -> str:
    row = ProjectDefaults.objects.filter(project=project_id).values_list("helper", "package__helper").first()
    return next((name for name in row or () if name), "")


def trail(actor: Actor, project: Project) -> QuerySet[Model]:
    """The models of a project, newest first, with their session's name at hand."""
    return Model.objects.visible_to(actor).filter(project=project).select_related("session", "created_by")


def lineage(model: Model) -> list[Model]:
    """From `model` back to its seed. One query per session on the way, however many rounds each has."""
    line = [model]
    known: dict[uuid.UUID, Model] = {model.pk: model}
    while (parent_id := line[-1].parent_id) is not None and len(line) < 100_000:
        parent = known.get(parent_id)
        if parent is None:
            if len({row.session_id for row in line}) > _MAX_LINES:
                break
            known |= _with_session_of(parent_id)
            parent = known.get(parent_id)
            if parent is None:
                break
        line.append(parent)
    return line


def _with_session_of(model_id: uuid.UUID) -> dict[uuid.UUID, Model]:
    """The model and all others of its session, without their layouts."""
    same_session = Model.objects.filter(pk=model_id, session__isnull=False).values("session_id")
    rows = (
        Model.objects.filter(Q(pk=model_id) | Q(session_id__in=same_session))
        .select_related("session")
        .defer("layout", "metadata", "session__config")
    )
    return {row.pk: row for row in rows}


def validations(
    actor: Actor,
    project: Project,
    *,
    model: uuid.UUID | None = None,
    session: uuid.UUID | None = None,
    client: uuid.UUID | None = None,
) -> QuerySet[Validation]:
    """What clients reported, newest first, narrowed by any of the three."""
    rows = Validation.objects.visible_to(actor).filter(project=project)
    given = {"model_id": model, "session_id": session, "client_id": client}
    return rows.filter(**{name: value for name, value in given.items() if value is not None})


def metrics(actor: Actor, project: Project) -> QuerySet[Metric]:
    """Every scalar, newest first."""
    return Metric.objects.visible_to(actor).filter(project=project)


@dataclass(frozen=True)
class Point:
    """One point of a curve: the mean over `clients` clients of what was measured on the model of `round`."""

    round: int
    value: float
    clients: int


def curves(*, session_id: uuid.UUID) -> dict[str, list[Point]]:
    """The weighted mean of every scalar that validations of the session hold, by round. Two queries."""
    measured = Metric.objects.filter(session_id=session_id, source=Metric.Source.VALIDATION)
    clients = {
        (row["model_id"], row["name"]): row["clients"]
        for row in measured.order_by()
        .values("model_id", "name")
        .annotate(clients=Count("client", distinct=True))
    }
    means = (
        Metric.objects.filter(session_id=session_id, source=Metric.Source.VALIDATION_MEAN)
        .order_by("name", "round_number", "id")
        .values_list("name", "round_number", "value", "model_id")
    )
    found: dict[str, list[Point]] = defaultdict(list)
    for name, number, value, model_id in means:
        found[name].append(Point(number or 0, value, clients.get((model_id, name), 0)))
    return dict(found)


def project_curves(*, project_id: uuid.UUID, sessions: int = 10) -> dict[uuid.UUID, dict[str, list[Point]]]:
    """The curves of the sessions of a project that were measured last, newest session first."""
    rows = Metric.objects.filter(
        project_id=project_id, source=Metric.Source.VALIDATION_MEAN, session__isnull=False
    )
    newest = rows.order_by().values("session_id").annotate(last=Max("id")).order_by("-last")[:sessions]
    return {row["session_id"]: curves(session_id=row["session_id"]) for row in newest}


def means_of(model_ids: list[uuid.UUID]) -> dict[uuid.UUID, dict[str, float]]:
    """For each model its mean metrics by name. One query."""
    rows = Metric.objects.filter(model_id__in=model_ids, source=Metric.Source.VALIDATION_MEAN).order_by(
        "name"
    )
    found: dict[uuid.UUID, dict[str, float]] = defaultdict(dict)
    for model_id, name, value in rows.values_list("model_id", "name", "value"):
        if model_id is not None:
            found[model_id][name] = value
    return dict(found)
