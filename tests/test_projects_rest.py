"""Projects through REST: made, listed, changed, shared, deleted."""

from __future__ import annotations

import datetime as dt
import re
import uuid

import pytest
import time_machine
from django.core import mail
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from federation.events.models import Event
from federation.models.models import Model
from federation.sessions.models import Session
from foundation import storage
from projects.models import AuditEvent, Invitation, Membership, Project, User
from projects.services import remove_artifacts
from tests.cast import ApiFor, TokenFor

PROJECTS = "/api/v1/projects/"


def members_url(project: Project) -> str:
    return f"{PROJECTS}{project.slug}/members/"


def member_url(project: Project, user: User) -> str:
    return f"{members_url(project)}{Membership.objects.get(project=project, user=user).pk}/"


def test_who_creates_a_project_owns_it(stranger: User, api: ApiFor) -> None:
    made = api(stranger).post(PROJECTS, {"name": "Wind  farm 7", "description": "Turbines"})
    assert made.status_code == 201
    assert re.fullmatch(r"wind-farm-7-[a-z2-9]{6}", made.json()["slug"])
    assert made.json()["name"] == "Wind farm 7"
    assert made.json()["role"] == "owner"
    assert made.json()["template"] == "federated-learning"
    assert AuditEvent.objects.get(verb="project.create").actor == f"user:{stranger.pk}"


def test_a_name_of_signs_only_still_gets_an_address(stranger: User, api: ApiFor) -> None:
    made = api(stranger).post(PROJECTS, {"name": "風車 !"})
    assert made.json()["slug"].startswith("project-")
    assert api(stranger).get(f"{PROJECTS}{made.json()['slug']}/").json()["name"] == "風車 !"


@pytest.mark.parametrize("name", ["", "   ", "x" * 121, None])
def test_a_project_without_a_fitting_name_is_refused(name: str | None, stranger: User, api: ApiFor) -> None:
    refused = api(stranger).post(PROJECTS, {"name": name})
    assert refused.status_code == 400
    assert "name" in refused.json()["errors"]
    assert not Project.objects.exists()


def test_i_see_my_projects_and_those_shared_with_me_and_no_other(
    project: Project, other_project: Project, viewer: User, stranger: User, api: ApiFor
) -> None:
    assert [(row["slug"], row["role"]) for row in api(viewer).get(PROJECTS).json()["results"]] == [
        (project.slug, "viewer")
    ]
    assert [row["slug"] for row in api(stranger).get(PROJECTS).json()["results"]] == [other_project.slug]
    assert api(stranger).get(f"{PROJECTS}{project.slug}/").status_code == 404


def test_listing_projects_and_members_costs_the_same_for_many_as_for_few(
    owner: User, project: Project, api: ApiFor, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(30):
        user = User.objects.create(username=f"u{number}", email=f"u{number}@example.org")
        Membership.objects.create(project=project, user=user, role="viewer")
        row = Project.objects.create(slug=f"p-{number}", name=f"P{number}")
        Membership.objects.create(project=row, user=owner, role="owner")
    http = api(owner)
    with django_assert_max_num_queries(3):
        assert len(http.get(PROJECTS).json()["results"]) == 31
    with django_assert_max_num_queries(4):
        assert len(http.get(members_url(project)).json()["results"]) == 34


def test_admins_change_the_settings_and_members_do_not(
    project: Project, admin: User, member: User, viewer: User, stranger: User, api: ApiFor
) -> None:
    url = f"{PROJECTS}{project.slug}/"
    assert api(admin).patch(url, {"name": "Digits 2"}).json()["name"] == "Digits 2"
    project.refresh_from_db()
    assert (project.name, project.description) == ("Digits 2", "Handwritten digits")
    for user, status in ((member, 403), (viewer, 403), (stranger, 404)):
        assert api(user).patch(url, {"name": "Mine"}).status_code == status


def test_a_read_only_token_reads_and_changes_nothing(
    project: Project, owner: User, api: ApiFor, user_token: TokenFor
) -> None:
    http = api(user_token(owner, scopes=("read",)))
    assert http.get(f"{PROJECTS}{project.slug}/").status_code == 200
    assert http.patch(f"{PROJECTS}{project.slug}/", {"name": "Mine"}).status_code == 403
    assert http.post(PROJECTS, {"name": "New"}).status_code == 403
    assert http.delete(member_url(project, owner)).status_code == 403


# --- deleting ---


def test_deleting_needs_the_owner_and_the_exact_name(
    project: Project, owner: User, admin: User, api: ApiFor
) -> None:
    url = f"{PROJECTS}{project.slug}/"
    assert api(admin).delete(url, {"confirm": "Digits"}).status_code == 403
    for wrong in ({}, {"confirm": "digits"}, {"confirm": " Digits"}):
        refused = api(owner).delete(url, wrong)
        assert refused.status_code == 400
        assert "Digits" in refused.json()["detail"]
    assert api(owner).delete(f"{url}?confirm=Digits").status_code == 204
    assert not Project.objects.exists()
    kept = AuditEvent.objects.get(verb="project.delete")
    assert (kept.target, kept.data["name"]) == ("digits-1", "Digits")


def _model(project: Project) -> Model:
    return Model.objects.create(
        project=project, kind="seed", name="seed", key=f"models/{project.pk}/x", sha256="0" * 64,
        size_bytes=1, layout=[],
    )  # fmt: skip


def test_a_project_with_a_running_session_is_not_deleted(project: Project, owner: User, api: ApiFor) -> None:
    seed = _model(project)
    session = Session.objects.create(
        project=project, name="long run", status="running", config={}, seed_model=seed, current_model=seed,
        rounds_wanted=5,
    )  # fmt: skip
    url = f"{PROJECTS}{project.slug}/?confirm=Digits"
    refused = api(owner).delete(url)
    assert refused.status_code == 409
    assert "long run" in refused.json()["detail"]
    Session.objects.filter(pk=session.pk).update(status="stopped")
    assert api(owner).delete(url).status_code == 204
    assert not Session.objects.exists() and not Model.objects.exists()


def test_a_deleted_projects_files_go_too_and_another_projects_stay(
    project: Project, other_project: Project, owner: User, api: ApiFor, tmp_path: object
) -> None:
    file = storage.artifacts()
    round_id = uuid.uuid4()
    from django.core.files.base import ContentFile

    keys = [f"packages/{project.pk}/a.tgz", f"models/{project.pk}/m.safetensors", f"partials/{round_id}/p"]
    keys.append(f"states/{project.pk}/s.safetensors")
    for key in [*keys, f"models/{other_project.pk}/m.safetensors"]:
        file.save(key, ContentFile(b"x"))
    Event.objects.create(project=project, kind="x", message="x")
    remove_artifacts(project_id=project.pk)  # too early: the project is there
    assert all(file.exists(key) for key in keys)
    assert api(owner).delete(f"{PROJECTS}{project.slug}/?confirm=Digits").status_code == 204
    for _twice in range(2):
        remove_artifacts(project_id=project.pk, round_ids=[round_id])
    assert not any(file.exists(key) for key in keys)
    assert file.exists(f"models/{other_project.pk}/m.safetensors")


# --- members ---


def test_an_admin_adds_somebody_by_e_mail_whatever_its_case(
    project: Project, admin: User, stranger: User, api: ApiFor
) -> None:
    added = api(admin).post(members_url(project), {"email": "STAN_Stranger@Example.ORG", "role": "viewer"})
    assert added.status_code == 201
    assert added.json()["member"]["username"] == stranger.username
    assert api(stranger).get(f"{PROJECTS}{project.slug}/").json()["role"] == "viewer"
    again = api(admin).post(members_url(project), {"email": stranger.email, "role": "member"})
    assert (again.status_code, again.json()["code"]) == (409, "already_member")


@pytest.mark.parametrize("who", ["member", "viewer"])
def test_who_is_no_admin_adds_and_removes_nobody(
    who: str, project: Project, stranger: User, admin: User, request: pytest.FixtureRequest, api: ApiFor
) -> None:
    http = api(request.getfixturevalue(who))
    assert http.post(members_url(project), {"email": stranger.email, "role": "viewer"}).status_code == 403
    assert http.delete(member_url(project, admin)).status_code == 403
    assert http.patch(member_url(project, admin), {"role": "viewer"}).status_code == 403
    assert http.get(f"{PROJECTS}{project.slug}/invitations/").status_code == 403


def test_nobody_raises_their_own_role_and_an_admin_makes_no_owner(
    project: Project, owner: User, admin: User, member: User, stranger: User, api: ApiFor
) -> None:
    assert api(admin).patch(member_url(project, admin), {"role": "owner"}).status_code == 403
    assert api(admin).patch(member_url(project, member), {"role": "owner"}).status_code == 403
    assert api(admin).patch(member_url(project, owner), {"role": "viewer"}).status_code == 403
    assert api(admin).delete(member_url(project, owner)).status_code == 409
    refused = api(admin).post(members_url(project), {"email": stranger.email, "role": "owner"})
    assert refused.status_code == 400
    assert api(owner).patch(member_url(project, owner), {"role": "viewer"}).status_code == 403
    assert Membership.objects.get(project=project, role="owner").user == owner


def test_the_owner_hands_the_project_over_and_becomes_an_admin(
    project: Project, owner: User, admin: User, api: ApiFor
) -> None:
    assert api(owner).patch(member_url(project, admin), {"role": "owner"}).json()["role"] == "owner"
    roles = dict(Membership.objects.filter(project=project).values_list("user__username", "role"))
    assert roles[admin.username] == "owner" and roles[owner.username] == "admin"
    assert api(owner).delete(f"{PROJECTS}{project.slug}/?confirm=Digits").status_code == 403


def test_the_owner_cannot_leave_and_everybody_else_can(
    project: Project, owner: User, viewer: User, api: ApiFor
) -> None:
    refused = api(owner).delete(member_url(project, owner))
    assert (refused.status_code, refused.json()["code"]) == (409, "owner_stays")
    assert api(viewer).delete(member_url(project, viewer)).status_code == 204
    assert api(viewer).get(f"{PROJECTS}{project.slug}/").status_code == 404


def test_a_member_of_another_project_is_not_found_under_mine(
    project: Project, other_project: Project, owner: User, stranger: User, api: ApiFor
) -> None:
    theirs = Membership.objects.get(project=other_project)
    assert api(owner).get(f"{members_url(project)}{theirs.pk}/").status_code == 404
    assert api(owner).delete(f"{members_url(project)}{theirs.pk}/").status_code == 404
    assert api(owner).delete(f"{members_url(other_project)}{theirs.pk}/").status_code == 404


# --- invitations ---


def invite(http: object, project: Project, email: str = "new@example.org", role: str = "member") -> str:
    """Answers the secret of the link."""
    answer = http.post(members_url(project), {"email": email, "role": role})  # type: ignore[attr-defined]
    assert answer.status_code == 201, answer.json()
    assert answer.json()["member"] is None
    return str(answer.json()["link"]).rstrip("/").rsplit("/", 1)[1]


def test_somebody_without_an_account_gets_a_mail_with_a_link_that_joins_once(
    project: Project, admin: User, stranger: User, api: ApiFor, django_capture_on_commit_callbacks: object
) -> None:
    with django_capture_on_commit_callbacks(execute=True):  # type: ignore[operator]
        secret = invite(api(admin), project, role="viewer")
    assert mail.outbox[0].to == ["new@example.org"]
    assert f"http://testserver/invitations/{secret}/" in mail.outbox[0].body
    assert secret not in str(Invitation.objects.values().get())
    assert api().post("/api/v1/invitations/accept/", {"secret": secret}).status_code == 401
    joined = api(stranger).post("/api/v1/invitations/accept/", {"secret": secret})
    assert joined.json() == {"project": project.slug, "role": "viewer"}
    again = api(stranger).post("/api/v1/invitations/accept/", {"secret": secret})
    assert (again.status_code, again.json()["code"]) == (410, "invitation_used")


def test_an_invitation_lasts_fourteen_days_and_a_new_one_replaces_the_old(
    project: Project, admin: User, stranger: User, api: ApiFor
) -> None:
    first = invite(api(admin), project)
    second = invite(api(admin), project)
    accept = "/api/v1/invitations/accept/"
    assert api(stranger).post(accept, {"secret": first}).status_code == 404
    Invitation.objects.update(expires_at=timezone.now() - dt.timedelta(seconds=1))
    refused = api(stranger).post(accept, {"secret": second})
    assert (refused.status_code, refused.json()["code"]) == (410, "invitation_expired")
    with time_machine.travel(dt.datetime(2031, 1, 1, tzinfo=dt.UTC), tick=False):
        invite(api(admin), project)
        assert Invitation.objects.get().expires_at == timezone.now() + dt.timedelta(days=14)


def test_a_member_who_opens_an_invitation_keeps_their_role_and_the_link_stays_good(
    project: Project, owner: User, viewer: User, api: ApiFor
) -> None:
    secret = invite(api(owner), project, role="admin")
    refused = api(viewer).post("/api/v1/invitations/accept/", {"secret": secret})
    assert (refused.status_code, refused.json()["code"]) == (409, "already_member")
    assert Membership.objects.get(project=project, user=viewer).role == "viewer"
    assert Invitation.objects.get().accepted_at is None


def test_a_withdrawn_invitation_opens_nothing(
    project: Project, admin: User, stranger: User, api: ApiFor
) -> None:
    secret = invite(api(admin), project)
    url = f"{PROJECTS}{project.slug}/invitations/"
    (row,) = api(admin).get(url).json()["results"]
    assert (row["email"], row["invited_by"]) == ("new@example.org", admin.username)
    assert "digest" not in row
    assert api(admin).delete(f"{url}{row['id']}/").status_code == 204
    assert api(stranger).post("/api/v1/invitations/accept/", {"secret": secret}).status_code == 404


def test_guessing_invitations_is_throttled(stranger: User, api: ApiFor) -> None:
    codes = [
        api(stranger).post("/api/v1/invitations/accept/", {"secret": f"guess-{n}"}).status_code
        for n in range(25)
    ]
    assert codes[0] == 404 and codes[-1] == 429
