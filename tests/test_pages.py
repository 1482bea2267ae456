"""Pages, as the server renders them: what each shows, what each refuses, and what none may contain."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from clients_app.models import Client
from federation.events.models import Event
from federation.events.services import publish
from federation.sessions.models import Session
from projects.models import Membership, Project, User
from projects.tokens.models import Token
from tests.archives import tar_bytes
from tests.cast import PASSWORD
from tests.pages_world import World, furnish, pages_of

pytestmark = pytest.mark.django_db
BACKEND = "django.contrib.auth.backends.ModelBackend"
Enter = Callable[[User], Browser]


@pytest.fixture
def enter() -> Enter:
    """A browser in which that person is logged in."""

    def log_in(user: User) -> Browser:
        browser = Browser()
        browser.force_login(user, backend=BACKEND)
        return browser

    return log_in


@pytest.fixture
def world(project: Project, owner: User, tmp_path: Path) -> World:
    return furnish(project, owner, tmp_path)


def npz(folder: Path) -> SimpleUploadedFile:
    np.savez(folder / "seed.npz", w=np.zeros((4, 3), np.float32))
    return SimpleUploadedFile("seed.npz", (folder / "seed.npz").read_bytes())


# --- every page ---


def test_every_page_of_a_busy_project_renders_for_its_owner(world: World, owner: User, enter: Enter) -> None:
    browser = enter(owner)
    for name, url in pages_of(world).items():
        response = browser.get(url)
        assert response.status_code == 200, name
        text = response.content.decode()
        assert "<h1" in text or "<dialog open" in text, name
        assert not re.search(r">\s*None\s*<", text), f"{name} shows a None"


def test_every_list_of_an_empty_project_says_what_to_do_next(
    other_project: Project, stranger: User, enter: Enter
) -> None:
    browser = enter(stranger)
    says = {
        "project": "From here to the first trained model",
        "clients": "Register one for each place that keeps data",
        "combiners": "manage.py up",
        "sessions": "Upload a compute package and a seed model",
        "models": "Training starts from a seed model",
        "events": "is written here as it happens",
    }
    for name, words in says.items():
        assert words in browser.get(reverse(name, args=[other_project.slug])).content.decode(), name


def test_no_page_holds_an_inline_script_style_or_handler(world: World, owner: User, enter: Enter) -> None:
    browser = enter(owner)
    urls = {**pages_of(world), "login": reverse("account_login"), "signup": reverse("account_signup")}
    for name, url in urls.items():
        for visitor in (browser, Browser()):
            text = visitor.get(url, follow=True).content.decode()
            inline = [tag for tag in re.findall(r"<script\b[^>]*>", text) if "src=" not in tag]
            assert all('type="application/json"' in tag for tag in inline), (name, inline)
            assert "<style" not in text and not re.search(r"<[^>]+\s(style|on[a-z]+)=", text), name


def test_pages_forbid_inline_scripts_and_foreign_sources(client: Browser) -> None:
    policy = client.get(reverse("account_login"))["Content-Security-Policy"]
    assert "script-src 'self'" in policy and "style-src 'self'" in policy
    assert "unsafe" not in policy


def test_a_project_has_exactly_these_seven_in_its_sidebar(world: World, viewer: User, enter: Enter) -> None:
    text = enter(viewer).get(reverse("project", args=[world.project.slug])).content.decode()
    sidebar = text.split('aria-label="Project"')[1].split("</nav>")[0]
    assert re.findall(r">(\w+)</a>", sidebar) == [
        "Dashboard", "Clients", "Combiners", "Sessions", "Models", "Events", "Settings",
    ]  # fmt: skip


def test_what_a_client_reports_is_never_markup(world: World, owner: User, enter: Enter) -> None:
    text = enter(owner).get(reverse("model", args=[world.project.slug, world.model.pk])).content.decode()
    assert "&lt;b&gt;not markup&lt;/b&gt;" in text and "<b>not markup" not in text


def test_a_page_names_the_last_event_that_it_includes(world: World, owner: User, enter: Enter) -> None:
    last = publish(project_id=world.project.pk, kind="client.log", message="the last one")
    text = enter(owner).get(reverse("events", args=[world.project.slug])).content.decode()
    assert f'data-after="{last.pk}"' in text and "the last one" in text


def test_htmx_gets_only_the_part_that_changes(world: World, owner: User, enter: Enter) -> None:
    response = enter(owner).get(reverse("events", args=[world.project.slug]), headers={"HX-Request": "true"})
    text = response.content.decode()
    assert "<html" not in text and 'id="live"' in text


@pytest.mark.parametrize("page", ["project", "clients", "sessions", "models", "events"])
def test_a_page_costs_no_more_queries_when_there_is_more_to_show(
    page: str, world: World, owner: User, enter: Enter, django_assert_num_queries: Any
) -> None:
    browser, url = enter(owner), reverse(page, args=[world.project.slug])
    with CaptureQueriesContext(connection) as few:
        assert browser.get(url).status_code == 200
    for number in range(30):
        Event.objects.create(project=world.project, kind="round.started", message="x", session=world.session)
        Client.objects.create(project=world.project, name=f"more {number}")
        Session.objects.create(
            project=world.project,
            name=f"s{number}",
            config={},
            seed_model=world.seed,
            current_model=world.seed,
            rounds_wanted=1,
        )
    with django_assert_num_queries(len(few)):
        assert browser.get(url).status_code == 200


def test_older_and_newer_lead_through_all_events_once(world: World, owner: User, enter: Enter) -> None:
    for number in range(120):
        Event.objects.create(project=world.project, kind="client.log", message=f"number {number}")
    browser, url = enter(owner), reverse("events", args=[world.project.slug])
    seen: list[str] = []
    query = ""
    while True:
        text = browser.get(url + query).content.decode()
        seen += re.findall(r'data-event="(\d+)"', text)
        older = re.search(r'rel="next" href="(\?[^"]+)"', text)
        if older is None:
            break
        query = older.group(1).replace("&amp;", "&")
    assert len(seen) == len(set(seen)) == Event.objects.filter(project=world.project).count()
    newer = re.search(r'rel="prev" href="(\?[^"]+)"', text)
    assert newer is not None
    above = browser.get(url + newer.group(1).replace("&amp;", "&")).content.decode()
    assert re.findall(r'data-event="(\d+)"', above) == seen[50:100]


def test_events_narrow_to_a_level_a_kind_a_session_and_a_client(
    world: World, owner: User, enter: Enter
) -> None:
    publish(project_id=world.project.pk, kind="round.failed", level="error", message="it broke")
    publish(
        project_id=world.project.pk,
        kind="round.finished",
        message="it went well",
        session_id=world.session.pk,
    )
    browser, url = enter(owner), reverse("events", args=[world.project.slug])

    def rows(query: str) -> str:
        return browser.get(url + query, headers={"HX-Request": "true"}).content.decode()

    assert "it broke" in rows("?level=warning") and "it went well" not in rows("?level=warning")
    assert "it broke" in rows("?kind=round") and "connected to c1" not in rows("?kind=round")
    only = rows(f"?session={world.session.pk}")
    assert "it went well" in only and "it broke" not in only
    only = rows(f"?client={world.client.pk}")
    assert "connected to c1" in only and "it broke" not in only


# --- the way of a newcomer, without JavaScript ---


def test_a_newcomer_signs_up_and_creates_a_project(db: None) -> None:
    browser = Browser()
    response = browser.post(
        reverse("account_signup"),
        {"username": "nora", "email": "nora@example.org", "password1": PASSWORD, "password2": PASSWORD},
    )
    assert response.status_code == 302
    assert "Federated learning" in browser.get(reverse("project-new")).content.decode()
    form = reverse("project-new") + "?template=federated-learning"
    assert "This field is required" in browser.post(form, {"name": ""}).content.decode()
    response = browser.post(form, {"name": "My first", "description": ""}, follow=True)
    assert "<h1>My first</h1>" in response.content.decode()
    assert "My first" in browser.get(reverse("projects")).content.decode()


def test_a_lost_password_is_reset_by_the_mailed_link(owner: User, mailoutbox: list[Any]) -> None:
    browser = Browser()
    text = browser.post(
        reverse("account_reset_password"), {"email": owner.email}, follow=True
    ).content.decode()
    assert "The mail is on its way" in text
    link = re.search(r"http://testserver(/accounts/password/reset/key/\S+)", mailoutbox[0].body)
    assert link is not None
    form = browser.get(link.group(1), follow=True)
    fresh = "another-horse-battery-2"
    answer = browser.post(form.request["PATH_INFO"], {"password1": fresh, "password2": fresh}, follow=True)
    assert "The password is changed" in answer.content.decode()
    assert "This link was used already" in browser.get(link.group(1), follow=True).content.decode()
    browser.post(reverse("account_login"), {"login": owner.email, "password": fresh})
    assert browser.get(reverse("projects")).status_code == 200


def test_a_shared_project_is_listed_with_my_role(project: Project, viewer: User, enter: Enter) -> None:
    text = enter(viewer).get(reverse("projects")).content.decode()
    assert "Digits" in text and '<span class="tag">viewer</span>' in text


def test_package_then_seed_then_start_makes_a_running_session(
    project: Project, member: User, enter: Enter, tmp_path: Path
) -> None:
    browser = enter(member)
    tab = reverse("session-new", args=[project.slug, "package"])
    package = SimpleUploadedFile("package.tgz", tar_bytes())
    text = browser.post(tab, {"name": "digits", "description": "", "file": package}).content.decode()
    assert "Upload a seed model" in text
    chosen = re.search(r'action="([^"]*seed/\?package=[^"]+)"', text)
    assert chosen is not None
    text = browser.post(chosen.group(1), {"name": "seed", "file": npz(tmp_path)}).content.decode()
    start = re.search(r'action="([^"]*start/\?[^"]+)"', text)
    assert start is not None and "Start run" in text
    values = dict(
        re.findall(r'name="(\w+)" value="([^"]*)"', text.split(start.group(0))[1].split("</form>")[0])
    )
    values["seed_model"] = str(project.trail.get().pk)
    values["package"] = str(project.packages.get().pk)
    response = browser.post(
        start.group(1).replace("&amp;", "&"), {**values, "rounds": "3", "min_clients": "2"}
    )
    session = Session.objects.get(project=project)
    assert response.status_code == 302 and str(session.pk) in response["Location"]
    assert (session.status, session.rounds_wanted, session.config["min_clients"]) == ("running", 3, 2)
    assert session.package == project.packages.get() and session.seed_model == project.trail.get()


def test_a_refused_upload_says_why_next_to_the_form(project: Project, member: User, enter: Enter) -> None:
    url = reverse("seed-upload", args=[project.slug])
    pickle = SimpleUploadedFile("seed.npz", b"\x80\x04\x95not a model")
    response = enter(member).post(url, {"name": "seed", "file": pickle})
    assert response.status_code == 422
    text = response.content.decode()
    assert "pickle" in text and 'value="seed"' in text, "the reason, and what was typed"
    assert not project.trail.exists()


def test_wrong_session_settings_come_back_with_a_sentence(world: World, owner: User, enter: Enter) -> None:
    url = reverse("session-new", args=[world.project.slug, "start"])
    values = {
        "rounds": "5", "seed_model": str(world.seed.pk), "package": "", "round_timeout_s": "60", "min_clients": "4",
        "requested_clients": "2", "max_failed_rounds": "3", "start_timeout_s": "60", "client_settings": "{lr}",
    }  # fmt: skip
    response = enter(owner).post(url, values)
    assert response.status_code == 422
    assert "“Requested clients” must not be fewer than “Minimum clients”" in response.content.decode()
    assert "{lr}" in response.content.decode(), "what was typed is kept"
    assert Session.objects.filter(project=world.project).count() == 1


# --- clients ---


def test_a_registered_client_shows_its_config_once_and_the_command(
    project: Project, member: User, enter: Enter
) -> None:
    browser = enter(member)
    response = browser.post(reverse("client-new", args=[project.slug]), {"name": "site-a"})
    text = response.content.decode()
    assert "studio client start -in client.yaml" in text and 'download="client.yaml"' in text
    assert "no-store" in response["Cache-Control"]
    secret = re.search(r"token: (stu_\w+_[\w-]+)", text)
    assert secret is not None
    client = Client.objects.get(project=project)
    for url in (reverse("clients", args=[project.slug]), reverse("client", args=[project.slug, client.pk])):
        assert secret.group(1) not in browser.get(url).content.decode()


def test_a_new_config_downloads_and_ends_the_old_token(project: Project, member: User, enter: Enter) -> None:
    browser = enter(member)
    browser.post(reverse("client-new", args=[project.slug]), {"name": "site-a"})
    client, old = Client.objects.get(project=project), Token.objects.get(kind="client")
    response = browser.post(reverse("client-config", args=[project.slug, client.pk]))
    assert response["Content-Disposition"] == 'attachment; filename="client.yaml"'
    config = yaml.safe_load(response.content)
    assert (config["name"], config["client_id"]) == ("site-a", str(client.pk))
    old.refresh_from_db()
    assert old.revoked_at is not None and old.key_id not in config["token"]


def test_removing_a_client_needs_its_name(world: World, owner: User, enter: Enter) -> None:
    browser, url = enter(owner), reverse("client-remove", args=[world.project.slug, world.client.pk])
    browser.post(url, {"confirm": "something else"})
    assert Client.objects.filter(pk=world.client.pk).exists()
    browser.post(url, {"confirm": world.client.name})
    assert not Client.objects.filter(pk=world.client.pk).exists()


# --- settings, members, tokens ---


def test_deleting_a_project_needs_its_name(project: Project, owner: User, enter: Enter) -> None:
    browser, url = enter(owner), reverse("project-delete", args=[project.slug])
    text = browser.post(url, {"confirm": "digits"}, follow=True).content.decode()
    assert "confirm with its exact name" in text and Project.objects.filter(pk=project.pk).exists()
    browser.post(url, {"confirm": "Digits"})
    assert not Project.objects.filter(pk=project.pk).exists()


def test_an_invited_person_joins_by_the_link_that_was_shown(
    project: Project, admin: User, stranger: User, enter: Enter
) -> None:
    page = reverse("project-members", args=[project.slug])
    text = enter(admin).post(page, {"email": "stan_new@example.org", "role": "member"}).content.decode()
    link = re.search(r"http://testserver(/invitations/[^/]+/)", text)
    assert link is not None
    browser = enter(stranger)
    assert "Join Digits" in browser.get(link.group(1)).content.decode()
    assert "<h1>Digits</h1>" in browser.post(link.group(1), follow=True).content.decode()
    assert Membership.objects.get(project=project, user=stranger).role == "member"
    assert browser.get(link.group(1)).status_code == 404


def test_a_token_is_shown_once_rotated_and_revoked_by_name(owner: User, enter: Enter) -> None:
    browser, page = enter(owner), reverse("my-tokens")
    text = browser.post(page, {"name": "script", "scope": "read", "life": "30"}).content.decode()
    secret = re.search(r"stu_\w+_[\w-]+", text)
    assert secret is not None and secret.group() not in browser.get(page).content.decode()
    token = Token.objects.get(user=owner)
    assert token.scopes == ["read"] and token.expires_at is not None
    text = browser.post(reverse("my-token-rotate", args=[token.pk])).content.decode()
    fresh = Token.objects.get(user=owner, revoked_at=None)
    assert fresh.pk != token.pk and fresh.key_id in text
    revoke = reverse("my-token-revoke", args=[fresh.pk])
    browser.post(revoke, {"confirm": "wrong"})
    assert Token.objects.filter(user=owner, revoked_at=None).exists()
    browser.post(revoke, {"confirm": "script"})
    assert not Token.objects.filter(user=owner, revoked_at=None).exists()


def test_a_viewer_is_offered_no_button_that_would_refuse(world: World, viewer: User, enter: Enter) -> None:
    browser, slug = enter(viewer), world.project.slug
    for name in ("project", "clients", "sessions", "models"):
        text = browser.get(reverse(name, args=[slug])).content.decode()
        main = text.split("<main")[1].split("<nav class")[0]
        assert "button primary" not in main, name
    text = browser.get(reverse("session", args=[slug, world.session.pk])).content.decode()
    assert 'data-opens="stop-session"' not in text
    text = browser.get(reverse("project-settings", args=[slug])).content.decode()
    assert "Delete project" not in text and ">Save<" not in text


def test_a_session_is_stopped_and_one_that_ended_goes_on(world: World, member: User, enter: Enter) -> None:
    browser, args = enter(member), [world.project.slug, world.session.pk]
    text = browser.post(reverse("session-stop", args=args), follow=True).content.decode()
    assert "is stopping" in text and Session.objects.get(pk=world.session.pk).stop_asked
    Session.objects.filter(pk=world.session.pk).update(status="stopped", stop_asked=False)
    browser.post(reverse("session-continue", args=args), {"rounds": "3"})
    session = Session.objects.get(pk=world.session.pk)
    assert (session.status, session.rounds_wanted) == ("running", 4)
    text = browser.post(reverse("session-continue", args=args), {"rounds": "3"}, follow=True).content.decode()
    assert "it can be continued once it has ended" in text


def test_a_validation_report_downloads_whole(world: World, viewer: User, enter: Enter) -> None:
    url = reverse("validation-json", args=[world.project.slug, world.model.pk, world.validation.pk])
    response = enter(viewer).get(url)
    assert response.json() == world.validation.data
    assert response["Content-Disposition"].startswith("attachment")


def test_an_unknown_project_and_one_of_somebody_else_look_the_same(
    project: Project, stranger: User, enter: Enter
) -> None:
    browser = enter(stranger)
    unknown = browser.get(reverse("project", args=["no-such-project"]))
    foreign = browser.get(reverse("project", args=[project.slug]))
    assert unknown.status_code == foreign.status_code == 404

    def plain(body: bytes) -> str:
        return re.sub(r'"X-CSRFToken": "\w+"|value="\w{64}"', "", body.decode())

    assert plain(unknown.content) == plain(foreign.content)


def test_a_refusal_in_an_open_page_is_a_toast(world: World, viewer: User, enter: Enter) -> None:
    url = reverse("client-new", args=[world.project.slug])
    response = enter(viewer).get(url, headers={"HX-Request": "true"})
    text = response.content.decode()
    assert response.status_code == 403 and "data-toast" in text and "<html" not in text


# --- vendored files ---


@pytest.mark.once
def test_vendored_files_are_the_ones_that_were_recorded() -> None:
    vendor = settings.BASE_DIR / "static" / "vendor"
    recorded = {
        name: digest
        for digest, name in (
            line.split(maxsplit=1) for line in (vendor / "SHA256SUMS").read_text().splitlines()
        )
    }
    found = {str(path.relative_to(vendor)) for path in vendor.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    assert found == set(recorded)
    for name, digest in recorded.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest, name
    for folder in (path for path in vendor.iterdir() if path.is_dir()):
        assert (folder / "LICENSE").is_file(), f"{folder.name} has no licence"
