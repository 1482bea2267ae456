"""Pages of clients and combiners. A client's config is shown in the answer that made it, and never again."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.forms import Form
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from clients_app import services
from clients_app.activity import telemetry_charts, work_of
from clients_app.combiner_states import combiner_states
from clients_app.config import ClientConfig
from clients_app.forms import ClientForm, NewClientForm, PinForm
from clients_app.models import Client
from clients_app.placement import pin_text
from clients_app.selectors import clients_of, combiners_of, described
from federation.events.pages import live_frame
from federation.events.selectors import events_of, of_kind
from foundation.errors import invalid
from projects.choices import Action
from projects.pages import actor_of, attempt, go, open_project, page_of, shown
from projects.scoping import reach

CONFIG_FILES: dict[str, tuple[str, str, Callable[[ClientConfig], str]]] = {
    "studio": ("client.yaml", "application/yaml", ClientConfig.to_yaml),
    "fedn": ("client.yaml", "application/yaml", ClientConfig.to_fedn_yaml),
    "scaleout": (
        "start-client.sh",
        "application/x-sh",
        lambda config: f"#!/bin/sh\nexec {config.scaleout_command()}\n",
    ),
}


def _base_url(request: HttpRequest) -> str:
    return request.build_absolute_uri("/").rstrip("/")


def _client(request: HttpRequest, project: Any, pk: uuid.UUID, action: Action = Action.RUN) -> Client:
    actor = actor_of(request)
    row: Client = reach(clients_of(actor, project), actor, action, "client", pk=pk)
    return row


@login_required
@require_GET
def client_list(request: HttpRequest, slug: str) -> HttpResponse:
    context = live_frame(request, slug, "clients")
    actor, project = actor_of(request), context["project"]
    rows = clients_of(actor, project)
    asked = {name: request.GET.get(name, "").strip() for name in ("q", "online")}
    if asked["q"]:
        rows = rows.filter(name__icontains=asked["q"])
    if asked["online"] in ("yes", "no"):
        rows = rows.filter(online=asked["online"] == "yes")
    page = page_of(request, rows)
    context |= {
        "page": page,
        "lines": described(page.rows),
        "asked": asked,
        "log": of_kind(events_of(actor, project), "client")[:12],
    }
    return shown(request, "clients/list.html", "clients/_list.html", context)


@never_cache
@login_required
@require_http_methods(["GET", "POST"])
def client_new(request: HttpRequest, slug: str) -> HttpResponse:
    """The dialog to register a client; its answer is the only place where the config can be seen."""
    context = live_frame(request, slug, "clients", Action.RUN)
    form = NewClientForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        made = attempt(
            form,
            lambda: services.register_client(
                actor=actor_of(request),
                project=context["project"],
                name=form.cleaned_data["name"],
                pin=form.cleaned_data["pin"],
                base_url=_base_url(request),
            ),
        )
        if made is not None:
            context |= {"client": made[0], "config": made[1]}
            return shown(request, "clients/config.html", "clients/_config.html", context)
    return shown(
        request, "clients/new.html", "clients/_new.html", context | {"form": form}, invalid=bool(form.errors)
    )


@never_cache
@login_required
@require_POST
def client_config(request: HttpRequest, slug: str, pk: uuid.UUID) -> HttpResponse:
    """A fresh config as a file, for the client that is named; the earlier token stops working."""
    client = _client(request, open_project(request, slug), pk)
    wanted = request.POST.get("for", "studio")
    if wanted not in CONFIG_FILES:
        raise invalid("for", f"A config is for one of {', '.join(CONFIG_FILES)}.")
    name, content_type, write = CONFIG_FILES[wanted]
    _, config, _ = services.new_config(actor=actor_of(request), client=client, base_url=_base_url(request))
    return HttpResponse(
        write(config),
        content_type=content_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


@login_required
@require_GET
def client_detail(request: HttpRequest, slug: str, pk: uuid.UUID) -> HttpResponse:
    context = live_frame(request, slug, "clients")
    actor = actor_of(request)
    client = _client(request, context["project"], pk, Action.VIEW)
    context |= {
        "client": client,
        "line": described([client])[0],
        "work": work_of(client),
        "events": events_of(actor, context["project"]).filter(client=client)[:10],
        "telemetry": telemetry_charts(client),
        "rename_form": ClientForm(initial={"name": client.name}),
        "pin_text": pin_text(client.pin),
        "pin_form": PinForm(initial={"pin": pin_text(client.pin)}),
    }
    return shown(request, "clients/detail.html", "clients/_detail.html", context)


@login_required
@require_POST
def client_rename(request: HttpRequest, slug: str, pk: uuid.UUID) -> HttpResponse:
    client = _client(request, open_project(request, slug), pk)
    form = ClientForm(request.POST)

    def rename() -> str:
        name = form.cleaned_data["name"]
        renamed = services.rename_client(actor=actor_of(request), client=client, name=name)
        return f"The client is called {renamed.name} now."

    return _changed(request, reverse("client", args=[slug, pk]), form, rename)


@login_required
@require_POST
def client_pin(request: HttpRequest, slug: str, pk: uuid.UUID) -> HttpResponse:
    client = _client(request, open_project(request, slug), pk)
    form = PinForm(request.POST)

    def pin() -> str:
        pinned = services.pin_client(actor=actor_of(request), client=client, pin=form.cleaned_data["pin"])
        if not pinned.pin:
            return f"{pinned.name} may use any combiner now."
        return f"{pinned.name} is pinned to combiners with {pin_text(pinned.pin)} now."

    return _changed(request, reverse("client", args=[slug, pk]), form, pin)


def _changed(request: HttpRequest, url: str, form: Form, work: Callable[[], str]) -> HttpResponse:
    """Back to the page, with what `work` says, or why nothing changed."""
    said = attempt(form, work) if form.is_valid() else None
    if said:
        return go(request, url, said)
    wrong = " ".join(str(error) for errors in form.errors.values() for error in errors)
    return go(request, url, wrong, messages.ERROR)


@login_required
@require_POST
def client_remove(request: HttpRequest, slug: str, pk: uuid.UUID) -> HttpResponse:
    client = _client(request, open_project(request, slug), pk)
    if request.POST.get("confirm", "").strip() != client.name:
        url = reverse("client", args=[slug, pk])
        return go(request, url, f"Nothing was removed: type {client.name} to confirm.", messages.ERROR)
    services.delete_client(actor=actor_of(request), client=client)
    return go(request, reverse("clients", args=[slug]), f"{client.name} was removed.")


@login_required
@require_GET
def combiner_list(request: HttpRequest, slug: str) -> HttpResponse:
    context = live_frame(request, slug, "combiners")
    project = context["project"]
    context["lines"] = combiner_states(project, list(combiners_of(project)))
    return shown(request, "clients/combiners.html", "clients/_combiners.html", context)
