"""Pages of the model trail."""

from __future__ import annotations

import json
import uuid

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods

from federation.events.pages import live_frame
from federation.models.charts import metric_columns, project_charts
from federation.models.choices import ModelKind
from federation.models.forms import SeedModelForm
from federation.models.models import Model, Validation
from federation.models.selectors import lineage, means_of, trail, validations
from federation.models.services import create_seed_model
from projects.choices import Action
from projects.models import Project
from projects.pages import actor_of, attempt, go, open_project, page_of, shown
from projects.scoping import reach


@login_required
@require_GET
def model_list(request: HttpRequest, slug: str) -> HttpResponse:
    context = live_frame(request, slug, "models")
    project: Project = context["project"]
    rows = trail(actor_of(request), project)
    asked = {name: request.GET.get(name, "").strip() for name in ("q", "kind", "session")}
    if asked["q"]:
        rows = rows.filter(name__icontains=asked["q"])
    if asked["kind"] in ModelKind.values:
        rows = rows.filter(kind=asked["kind"])
    if session := _uuid(asked["session"]):
        rows = rows.filter(session=session)
    page = page_of(request, rows.select_related("parent").defer("layout", "parent__layout"))
    means = means_of([row.pk for row in page.rows])
    context |= {
        "page": page,
        "means": means,
        "columns": metric_columns(means),
        "charts": project_charts(project),
        "asked": asked,
        "kinds": ModelKind.choices,
    }
    return shown(request, "models/list.html", "models/_list.html", context)


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


@login_required
@require_http_methods(["GET", "POST"])
def seed_upload(request: HttpRequest, slug: str) -> HttpResponse:
    """The dialog to upload a seed model; without JavaScript a page of its own."""
    form = SeedModelForm(request.POST or None, request.FILES or None)
    context = live_frame(request, slug, "models", Action.RUN)
    if request.method == "POST" and form.is_valid():
        made = attempt(
            form,
            lambda: create_seed_model(
                actor=actor_of(request),
                project=context["project"],
                name=form.cleaned_data["name"],
                upload=form.cleaned_data["file"],
            ),
        )
        if made is not None:
            return go(request, reverse("model", args=[slug, made.pk]), f"{made.name} was uploaded.")
    return shown(
        request, "models/upload.html", "models/_upload.html", context | {"form": form}, invalid=form.is_bound
    )


@login_required
@require_GET
def model_detail(request: HttpRequest, slug: str, pk: uuid.UUID) -> HttpResponse:
    context = live_frame(request, slug, "models")
    model: Model = reach(
        trail(actor_of(request), context["project"]), actor_of(request), Action.VIEW, "model", pk=pk
    )
    reports = validations(actor_of(request), context["project"], model=model.pk).select_related("client")[
        :200
    ]
    context |= {
        "model": model,
        "means": sorted(means_of([model.pk]).get(model.pk, {}).items()),
        "lineage": lineage(model)[:100],
        "reports": reports,
        "parameters": sum(_size(part["shape"]) for part in model.layout),
    }
    return shown(request, "models/detail.html", "models/_detail.html", context)


def _size(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


@login_required
@require_GET
def validation_json(request: HttpRequest, slug: str, pk: uuid.UUID, validation: uuid.UUID) -> HttpResponse:
    """The whole JSON that one client sent, as a file."""
    project = open_project(request, slug)
    rows = validations(actor_of(request), project, model=pk)
    row: Validation = reach(rows, actor_of(request), Action.VIEW, "validation", pk=validation)
    body = json.dumps(row.data, indent=2, ensure_ascii=False)
    name = f"validation-{row.pk.hex[-8:]}.json"
    return HttpResponse(
        body,
        content_type="application/json",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
