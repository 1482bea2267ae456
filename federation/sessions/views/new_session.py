"""The dialog of a new session: three tabs, compute package, seed model, start. Without JavaScript it is a page.

What was chosen travels in the address (`?package=…&seed=…`), so that each tab can be linked and reloaded.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib.auth.decorators import login_required
from django.forms import Form
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from federation.events.pages import live_frame
from federation.models.forms import PackageForm, SeedModelForm
from federation.models.selectors import packages_of, trail
from federation.models.services import create_package, create_seed_model
from federation.sessions import services
from federation.sessions.config import parse_spec
from federation.sessions.forms import StartForm
from federation.sessions.models import Session
from federation.sessions.selectors import clients_named
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project
from projects.pages import actor_of, attempt, go, shown

TABS = [("package", "Compute package"), ("seed", "Seed model"), ("start", "Start session")]
CHOICES = 200


@login_required
@require_http_methods(["GET", "POST"])
def new_session(request: HttpRequest, slug: str, tab: str = "package") -> HttpResponse:
    context = live_frame(request, slug, "sessions", Action.RUN)
    chosen = {name: request.GET[name] for name in ("package", "seed") if request.GET.get(name)}
    form = _form(request, tab, context["project"], chosen)
    if request.method == "POST" and form.is_valid():
        done = _submit(request, tab, context["project"], form)
        if isinstance(done, Session):
            return go(request, reverse("session", args=[slug, done.pk]), f"{done.name} was started.")
        if done is not None:
            chosen[tab] = str(done.pk)
            tab = "seed" if tab == "package" else "start"
            form = _form(request, tab, context["project"], chosen, fresh=True)
    return _show(request, context, tab, form, chosen)


def _form(
    request: HttpRequest, tab: str, project: Project, chosen: dict[str, str], fresh: bool = False
) -> Form:
    data, files = (request.POST, request.FILES) if request.method == "POST" and not fresh else (None, None)
    if tab == "package":
        return PackageForm(data, files)
    if tab == "seed":
        return SeedModelForm(data, files)
    actor = actor_of(request)
    initial = {"package": chosen.get("package"), "seed_model": chosen.get("seed")}
    return StartForm(
        data,
        initial={name: value for name, value in initial.items() if value},
        packages=[
            (str(row.pk), f"{row.name} ({row.sha256[:8]})") for row in packages_of(actor, project)[:CHOICES]
        ],
        models=_model_choices(actor, project),
        find_clients=lambda words: clients_named(actor, project, words),
    )


def _model_choices(actor: Actor, project: Project) -> list[tuple[str, str]]:
    """Seeds first: they are what a session usually starts from."""
    rows = list(trail(actor, project).defer("layout", "metadata")[:CHOICES])
    rows.sort(key=lambda row: row.kind != "seed")
    return [(str(row.pk), f"{row.name} ({row.kind}, …{str(row.pk)[-8:]})") for row in rows]


def _submit(request: HttpRequest, tab: str, project: Project, form: Form) -> Any:
    """The row that the tab's form made; None when it was refused, the form then says why."""
    actor, values = actor_of(request), form.cleaned_data
    if tab == "package":
        return attempt(
            form,
            lambda: create_package(
                actor=actor,
                project=project,
                name=values["name"],
                description=values["description"],
                upload=values["file"],
            ),
        )
    if tab == "seed":
        return attempt(
            form,
            lambda: create_seed_model(
                actor=actor, project=project, name=values["name"], upload=values["file"]
            ),
        )
    assert isinstance(form, StartForm)
    session = attempt(form, lambda: _create(actor, project, form))
    return None if session is None else services.start_session(actor=actor, session=session)


def _create(actor: Actor, project: Project, form: StartForm) -> Session:
    with form.refusals_at_fields():
        return services.create_session(actor=actor, project=project, spec=parse_spec(form.spec_values()))


def _show(
    request: HttpRequest, context: dict[str, Any], tab: str, form: Form, chosen: dict[str, str]
) -> HttpResponse:
    slug, actor = context["project"].slug, actor_of(request)
    query = f"?{urlencode(chosen)}" if chosen else ""
    context |= {
        "tab": tab,
        "tabs": [(name, label, reverse("session-new", args=[slug, name]) + query) for name, label in TABS],
        "here": reverse("session-new", args=[slug, tab]) + query,
        "form": form,
        "chosen": chosen,
        "packages": packages_of(actor, context["project"])[:CHOICES] if tab == "package" else [],
        "seeds": trail(actor, context["project"]).defer("layout", "metadata")[:CHOICES]
        if tab == "seed"
        else [],
        "seed_url": reverse("session-new", args=[slug, "seed"]),
        "start_url": reverse("session-new", args=[slug, "start"]),
    }
    return shown(request, "sessions/new.html", "sessions/_new.html", context, invalid=bool(form.errors))
