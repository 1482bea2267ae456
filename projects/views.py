"""Pages of projects and their members, and of my account."""

from __future__ import annotations

import uuid

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from foundation.errors import StudioError
from projects import services
from projects.choices import Action, Template
from projects.forms import ConfirmForm, InviteForm, ProjectForm, RoleForm
from projects.models import Invitation, Membership, Project
from projects.pages import actor_of, attempt, frame_of, go, open_project, page_of, shown
from projects.scoping import reach
from projects.selectors import invitations_of, members_of, open_invitation, projects_of


@require_GET
def home(request: HttpRequest) -> HttpResponse:
    return redirect("projects")


@login_required
@require_GET
def project_list(request: HttpRequest) -> HttpResponse:
    words = request.GET.get("q", "").strip()
    rows: QuerySet[Project] = projects_of(actor_of(request))
    if words:
        rows = rows.filter(name__icontains=words)
    context = {"page": page_of(request, rows), "q": words, "section": "projects"}
    return shown(request, "projects/list.html", "projects/_list.html", context)


@login_required
@require_http_methods(["GET", "POST"])
def project_new(request: HttpRequest) -> HttpResponse:
    """Choose a template; then name the project."""
    template = request.GET.get("template", "")
    if template not in Template.values:
        return render(
            request, "projects/templates.html", {"templates": Template.choices, "section": "projects"}
        )
    form = ProjectForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        project = attempt(
            form,
            lambda: services.create_project(actor=actor_of(request), template=template, **form.cleaned_data),
        )
        if project is not None:
            return go(request, reverse("project", args=[project.slug]), f"{project.name} was created.")
    return render(request, "projects/new.html", {"form": form, "section": "projects"})


@login_required
@require_http_methods(["GET", "POST"])
def project_settings(request: HttpRequest, slug: str) -> HttpResponse:
    project = open_project(request, slug)
    form = ProjectForm(
        request.POST or None, initial={"name": project.name, "description": project.description}
    )
    if request.method == "POST" and form.is_valid():
        changed = attempt(
            form,
            lambda: services.update_project(actor=actor_of(request), project=project, **form.cleaned_data),
        )
        if changed is not None:
            return go(request, reverse("project-settings", args=[slug]), "The settings were saved.")
    context = frame_of(request, project, "settings") | {"form": form, "tab": "general"}
    return render(request, "settings/general.html", context)


@login_required
@require_POST
def project_delete(request: HttpRequest, slug: str) -> HttpResponse:
    project = open_project(request, slug)
    form = ConfirmForm(request.POST)
    form.is_valid()
    try:
        services.delete_project(
            actor=actor_of(request), project=project, confirm=form.cleaned_data["confirm"]
        )
    except StudioError as error:
        if error.status in (403, 404):
            raise
        return go(request, reverse("project-settings", args=[slug]), error.message, messages.ERROR)
    return go(request, reverse("projects"), f"{project.name} was deleted.")


@login_required
@require_http_methods(["GET", "POST"])
def project_members(request: HttpRequest, slug: str) -> HttpResponse:
    """Members and invitations; inviting shows the link once."""
    project = open_project(request, slug)
    form = InviteForm(request.POST or None)
    link = invited = ""
    if request.method == "POST" and form.is_valid():
        base_url = request.build_absolute_uri("/").rstrip("/")
        added = attempt(
            form,
            lambda: services.add_member(
                actor=actor_of(request), project=project, base_url=base_url, **form.cleaned_data
            ),
        )
        if isinstance(added, Membership):
            return go(
                request, reverse("project-members", args=[slug]), f"{added.user} is in the project now."
            )
        if added is not None:
            invited, link = added[0].email, base_url + reverse("invitation", args=[added[1]])
            form = InviteForm()
    context = frame_of(request, project, "settings") | {
        "form": form,
        "link": link,
        "invited": invited,
        "members": members_of(actor_of(request), project),
        "invitations": invitations_of(actor_of(request), project).filter(accepted_at=None),
        "role_form": RoleForm(),
        "tab": "members",
    }
    return render(request, "settings/members.html", context)


def _member(request: HttpRequest, slug: str, pk: int) -> Membership:
    project = open_project(request, slug)
    row: Membership = reach(
        Membership.objects.select_related("user"),
        actor_of(request),
        Action.VIEW,
        "member",
        pk=pk,
        project=project,
    )
    return row


@login_required
@require_POST
def member_role(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    member = _member(request, slug, pk)
    changed = services.change_role(
        actor=actor_of(request), membership=member, role=request.POST.get("role", "")
    )
    return go(
        request, reverse("project-members", args=[slug]), f"{member.user} has the role {changed.role} now."
    )


@login_required
@require_POST
def member_remove(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    member = _member(request, slug, pk)
    services.remove_member(actor=actor_of(request), membership=member)
    if member.user_id == request.user.pk:
        return go(request, reverse("projects"), f"You left {member.project.name}.")
    return go(request, reverse("project-members", args=[slug]), f"{member.user} is no longer in the project.")


@login_required
@require_POST
def invitation_withdraw(request: HttpRequest, slug: str, pk: uuid.UUID) -> HttpResponse:
    project = open_project(request, slug)
    row: Invitation = reach(
        Invitation.objects.all(), actor_of(request), Action.ADMIN, "invitation", pk=pk, project=project
    )
    services.withdraw_invitation(actor=actor_of(request), invitation=row)
    return go(
        request, reverse("project-members", args=[slug]), f"The invitation of {row.email} was withdrawn."
    )


@login_required
@require_http_methods(["GET", "POST"])
def invitation(request: HttpRequest, secret: str) -> HttpResponse:
    """Somebody opens the link that they were sent."""
    if request.method == "POST":
        joined = services.accept_invitation(actor=actor_of(request), secret=secret)
        project = joined.project
        return go(request, reverse("project", args=[project.slug]), f"You are in {project.name} now.")
    found = open_invitation(secret)
    if found is None:
        raise StudioError(
            "not_found", "This invitation was used already or is too old: ask for a new link.", 404
        )
    return render(request, "projects/invitation.html", {"invitation": found})


@login_required
@require_GET
def my_account(request: HttpRequest) -> HttpResponse:
    return render(request, "settings/account.html", {"section": "account", "tab": "account"})
