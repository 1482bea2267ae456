"""Pages of tokens: my own, and a project's. A secret is shown in the answer that made it, and never again."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from foundation.errors import not_found
from projects.models import Project
from projects.pages import actor_of, attempt, frame_of, go, open_project
from projects.tokens import services
from projects.tokens.choices import TokenKind
from projects.tokens.forms import ProjectTokenForm, TokenForm
from projects.tokens.models import Token
from projects.tokens.selectors import own_tokens, project_tokens


def _mine(request: HttpRequest, form: TokenForm, **more: Any) -> HttpResponse:
    context = {"form": form, "tokens": own_tokens(actor_of(request)), "section": "account", "tab": "tokens"}
    return render(request, "settings/my_tokens.html", context | more)


@never_cache
@login_required
@require_http_methods(["GET", "POST"])
def my_tokens(request: HttpRequest) -> HttpResponse:
    form = TokenForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        made = attempt(form, lambda: _create(request, form, TokenKind.USER, None))
        if made is not None:
            return _mine(request, TokenForm(), made=made[0], secret=made[1])
    return _mine(request, form)


def _of_project(request: HttpRequest, project: Project, form: ProjectTokenForm, **more: Any) -> HttpResponse:
    context = frame_of(request, project, "settings") | {
        "form": form,
        "tokens": project_tokens(actor_of(request), project),
        "tab": "tokens",
    }
    return render(request, "settings/project_tokens.html", context | more)


@never_cache
@login_required
@require_http_methods(["GET", "POST"])
def project_token_list(request: HttpRequest, slug: str) -> HttpResponse:
    project = open_project(request, slug)
    form = ProjectTokenForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        made = attempt(form, lambda: _create(request, form, form.cleaned_data["kind"], project))
        if made is not None:
            return _of_project(request, project, ProjectTokenForm(), made=made[0], secret=made[1])
    return _of_project(request, project, form)


def _create(request: HttpRequest, form: TokenForm, kind: str, project: Project | None) -> tuple[Token, str]:
    return services.create_token(
        actor=actor_of(request),
        kind=kind,
        name=form.cleaned_data["name"],
        project=project,
        scopes=form.scopes(),
        expires_at=form.expires_at(),
    )


def _token(request: HttpRequest, slug: str | None, pk: uuid.UUID) -> tuple[Token, Project | None]:
    actor = actor_of(request)
    project = open_project(request, slug) if slug else None
    rows = project_tokens(actor, project) if project else own_tokens(actor)
    token = rows.filter(pk=pk).first()
    if token is None:
        raise not_found("token")
    return token, project


@login_required
@require_POST
def token_revoke(request: HttpRequest, pk: uuid.UUID, slug: str | None = None) -> HttpResponse:
    token, project = _token(request, slug, pk)
    url = reverse("project-tokens", args=[slug]) if project else reverse("my-tokens")
    if request.POST.get("confirm", "").strip() != token.name:
        return go(request, url, f"Nothing was revoked: type {token.name} to confirm.", messages.ERROR)
    services.revoke_token(actor=actor_of(request), token=token)
    return go(request, url, f"{token.name} was revoked.")


@never_cache
@login_required
@require_POST
def token_rotate(request: HttpRequest, pk: uuid.UUID, slug: str | None = None) -> HttpResponse:
    token, project = _token(request, slug, pk)
    made, secret = services.rotate_token(actor=actor_of(request), token=token)
    if project:
        return _of_project(request, project, ProjectTokenForm(), made=made, secret=secret)
    return _mine(request, TokenForm(), made=made, secret=secret)
