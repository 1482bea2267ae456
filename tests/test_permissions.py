"""Who may do what: every address x every kind of caller, enumerated from the resolver.

An address, or a method of one, that is not in the tables below fails the first tests: say there who may use it.
RPCs have a table of their own in `test_permissions_rpc.py`.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from allauth.account.models import EmailAddress
from asgiref.testing import ApplicationCommunicator
from django.conf import settings
from django.core.cache import cache
from django.db import transaction
from django.http import HttpResponseBase
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from django.utils import timezone
from rest_framework.test import APIClient

from clients_app.models import Client as Device
from federation.events.models import Event
from federation.events.routing import websocket_urlpatterns
from federation.models.models import Validation
from federation.models.services import create_package, create_seed_model
from federation.sessions.config import parse_spec
from federation.sessions.services import create_session
from projects.choices import Role
from projects.models import Invitation, Membership, Project, User
from projects.services import add_member
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.services import create_token, revoke_token
from studio.asgi import application
from tests.archives import tar_bytes, upload
from tests.cast import ApiFor, ClientToken, actor

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
PEOPLE = ("owner", "admin", "member", "viewer", "stranger")
TOKENS = (
    "read token of the owner",
    "project token",
    "project token of another project",
    "client",
    "client of another project",
    "enrolment token",
    "expired token",
    "revoked token",
)
CALLERS = (*PEOPLE, "nobody", *TOKENS)

OK = "ok"  # let through: done, or refused for what it says rather than for who says it
LOGIN = "login"  # a page sends them to log in
Rule = Mapping[str, int | str]


def api_rule(**other: int | str) -> dict[str, int | str]:
    """Everybody in the project is let through, but for what `other` says (a caller's first word, or all of it)."""
    rule: dict[str, int | str] = {
        **dict.fromkeys(PEOPLE, OK),
        "stranger": 404,
        "nobody": 401,
        "read token of the owner": OK,
        "project token": OK,
        "project token of another project": 404,
        "client": 403,
        "client of another project": 403,
        "enrolment token": 403,
        "expired token": 401,
        "revoked token": 401,
    }
    for who, answer in other.items():
        rule[who.replace("_", " ")] = answer
    return rule


def page_rule(**other: int | str) -> dict[str, int | str]:
    """Pages know people by their cookie; whoever comes with a token only is nobody here."""
    return {**api_rule(), "nobody": LOGIN, **dict.fromkeys(TOKENS, LOGIN), **other}


VIEW = api_rule()
RUN = api_rule(viewer=403, read_token_of_the_owner=403)
ADMIN = api_rule(viewer=403, member=403, read_token_of_the_owner=403)
OWN = api_rule(viewer=403, member=403, admin=403, read_token_of_the_owner=403, project_token=403)
KNOWN = api_rule(stranger=OK, project_token_of_another_project=OK)  # about the caller's own
PERSON = api_rule(
    stranger=OK, read_token_of_the_owner=403, project_token=403, project_token_of_another_project=403
)
ANY_TOKEN = {**KNOWN, "client": OK, "client of another project": OK, "enrolment token": OK}
OWNERS_THING = api_rule(**dict.fromkeys(PEOPLE[1:], 404), project_token=404)
PUBLIC: Rule = dict.fromkeys(CALLERS, OK)
PUBLIC_API: Rule = {
    **PUBLIC,
    "expired token": 401,
    "revoked token": 401,
}  # a dead token is told so, whatever is asked
NOWHERE: Rule = dict.fromkeys(CALLERS, 404)

TO_LOGIN: Rule = dict.fromkeys(CALLERS, LOGIN)
PAGE_VIEW = page_rule()
PAGE_RUN = page_rule(viewer=403)
PAGE_ADMIN = page_rule(viewer=403, member=403)
PAGE_OWN = page_rule(viewer=403, member=403, admin=403)
PAGE_PERSON = page_rule(stranger=OK)
PAGE_TOKEN_OF_PROJECT = page_rule(viewer=404, member=404)
PAGE_TOKEN_OF_OWNER = page_rule(**dict.fromkeys(PEOPLE[1:], 404))

TABLE: dict[str, dict[str, Rule]] = {
    # --- for everybody ---
    "healthz": {"GET": PUBLIC},
    "readyz": {"GET": PUBLIC},
    "home": {"GET": PUBLIC},
    "api-schema": {"GET": PUBLIC_API},
    "api-docs": {"GET": PUBLIC_API},
    "api-unknown": dict.fromkeys(METHODS, NOWHERE),
    "api-accounts": {"POST": PUBLIC_API},
    "api-auth-token": {"POST": PUBLIC},
    # --- about the caller ---
    "api-me": {"GET": ANY_TOKEN},
    "api-tokens": {"GET": KNOWN, "POST": PERSON},
    "api-token": {"GET": OWNERS_THING, "DELETE": {**OWNERS_THING, "read token of the owner": 403}},
    "api-token-rotate": {"POST": {**OWNERS_THING, "read token of the owner": 403}},
    "api-invitation-accept": {"POST": PERSON},
    # --- projects ---
    "api-projects": {"GET": KNOWN, "POST": PERSON},
    "api-project": {"GET": VIEW, "PATCH": ADMIN, "DELETE": OWN},
    "api-members": {"GET": VIEW, "POST": ADMIN},
    "api-member": {"GET": VIEW, "PATCH": ADMIN, "DELETE": ADMIN},
    "api-invitations": {"GET": ADMIN},
    "api-invitation": {"GET": ADMIN, "DELETE": ADMIN},
    # --- clients ---
    "api-clients": {"GET": VIEW, "POST": RUN},
    "api-client": {"GET": VIEW, "PATCH": RUN, "DELETE": RUN},
    "api-client-config": {"POST": RUN},
    "api-combiners": {"GET": VIEW},
    "api-client-self": {
        "GET": {
            **dict.fromkeys((*PEOPLE, *TOKENS), 403), "nobody": 401, "expired token": 401, "revoked token": 401,
            "client": OK, "client of another project": OK,
        }
    },
    "api-client-enrol": {
        "POST": {
            **dict.fromkeys((*PEOPLE, *TOKENS), 403), "nobody": 401, "expired token": 401, "revoked token": 401,
            "enrolment token": OK,
        }
    },
    # --- packages and models ---
    "api-packages": {"GET": VIEW, "POST": RUN},
    "api-package": {"GET": VIEW, "DELETE": RUN},
    "api-package-download": {
        "GET": {**VIEW, "client": OK, "client of another project": 404, "enrolment token": 404}
    },
    "api-models": {"GET": VIEW, "POST": RUN},
    "api-model": {"GET": VIEW, "DELETE": RUN},
    "api-model-download": {"GET": VIEW},
    "api-model-lineage": {"GET": VIEW},
    "api-model-validations": {"GET": VIEW},
    "api-validations": {"GET": VIEW},
    "api-metrics": {"GET": VIEW},
    # --- sessions and events ---
    "api-sessions": {"GET": VIEW, "POST": RUN},
    "api-session": {"GET": VIEW},
    "api-session-start": {"POST": RUN},
    "api-session-stop": {"POST": RUN},
    "api-session-continue": {"POST": RUN},
    "api-rounds": {"GET": VIEW},
    "api-assignments": {"GET": VIEW},
    "api-events": {"GET": VIEW},
    "api-telemetry": {"GET": VIEW},
    # --- pages ---
    "projects": {"GET": PAGE_PERSON},
    "project-new": {"GET": PAGE_PERSON, "POST": PAGE_PERSON},
    "project": {"GET": PAGE_VIEW},
    "project-settings": {"GET": PAGE_VIEW, "POST": PAGE_ADMIN},
    "project-delete": {"POST": PAGE_OWN},
    "project-members": {"GET": PAGE_VIEW, "POST": PAGE_ADMIN},
    "member-role": {"POST": PAGE_ADMIN},
    "member-remove": {"POST": PAGE_ADMIN},
    "invitation-withdraw": {"POST": PAGE_ADMIN},
    "invitation": {"GET": PAGE_PERSON, "POST": PAGE_PERSON},
    "my-account": {"GET": PAGE_PERSON},
    "my-tokens": {"GET": PAGE_PERSON, "POST": PAGE_PERSON},
    "my-token-revoke": {"POST": PAGE_TOKEN_OF_OWNER},
    "my-token-rotate": {"POST": PAGE_TOKEN_OF_OWNER},
    "project-tokens": {"GET": PAGE_VIEW, "POST": PAGE_ADMIN},
    "project-token-revoke": {"POST": PAGE_TOKEN_OF_PROJECT},
    "project-token-rotate": {"POST": PAGE_TOKEN_OF_PROJECT},
    "clients": {"GET": PAGE_VIEW},
    "client-new": {"GET": PAGE_RUN, "POST": PAGE_RUN},
    "client": {"GET": PAGE_VIEW},
    "client-config": {"POST": PAGE_RUN},
    "client-rename": {"POST": PAGE_RUN},
    "client-remove": {"POST": PAGE_RUN},
    "combiners": {"GET": PAGE_VIEW},
    "models": {"GET": PAGE_VIEW},
    "model": {"GET": PAGE_VIEW},
    "seed-upload": {"GET": PAGE_RUN, "POST": PAGE_RUN},
    "validation-json": {"GET": PAGE_VIEW},
    "sessions": {"GET": PAGE_VIEW},
    "session": {"GET": PAGE_VIEW},
    "session-new": {"GET": PAGE_RUN, "POST": PAGE_RUN},
    "session-start": {"POST": PAGE_RUN},
    "session-stop": {"POST": PAGE_RUN},
    "session-continue": {"POST": PAGE_RUN},
    "events": {"GET": PAGE_VIEW},
    # --- accounts: django-allauth's, each about the one who asks ---
    "account_login": {"GET": PUBLIC, "POST": PUBLIC},
    "account_logout": {"GET": PAGE_PERSON, "POST": TO_LOGIN},
    "account_inactive": {"GET": PUBLIC},
    "account_signup": {"GET": PUBLIC, "POST": PUBLIC},
    "account_reauthenticate": {"GET": PAGE_PERSON, "POST": PAGE_PERSON},
    "account_email": {"GET": PAGE_PERSON, "POST": PAGE_PERSON},
    "account_email_verification_sent": {"GET": PUBLIC},
    "account_change_password": {"GET": PAGE_PERSON, "POST": PAGE_PERSON},
    "account_set_password": {"GET": PAGE_PERSON, "POST": PAGE_PERSON},
    "account_reset_password": {"GET": PUBLIC, "POST": PUBLIC},
    "account_confirm_login_code": {"GET": PAGE_PERSON, "POST": PAGE_PERSON},
    "account_confirm_email": {"GET": PUBLIC, "POST": PUBLIC},
    "account_reset_password_from_key_done": {"GET": PUBLIC},
    "account_reset_password_from_key": {"GET": PUBLIC, "POST": PUBLIC},
    "account_reset_password_done": {"GET": PUBLIC},
}  # fmt: skip
ANY_METHOD_IS_FINE = {"healthz", "readyz"}  # no method of theirs changes a thing
SOCKETS = {"ws/projects/<slug:slug>/events/": "the project's viewers"}


# --- every address, from the resolver ---


@dataclass(frozen=True)
class Route:
    name: str
    pattern: str
    params: tuple[str, ...]


def _routes(resolver: URLResolver, prefix: str = "", space: str = "") -> Iterator[Route]:
    for entry in resolver.url_patterns:
        here = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from _routes(entry, here, f"{entry.namespace}:" if entry.namespace else space)
        elif isinstance(entry, URLPattern):
            params = tuple(re.findall(r"<(?:\w+:)?(\w+)>", here))
            yield Route(f"{space}{entry.name}", here, params)


ROUTES = list(_routes(get_resolver()))
OURS = [route for route in ROUTES if not route.pattern.startswith("admin/")]
ADMIN_SITE = [route for route in ROUTES if route.pattern.startswith("admin/")]
BY_NAME = {route.name: route for route in OURS}
CASES = [(route.name, method) for route in OURS for method in TABLE.get(route.name, {})]


def test_every_address_is_in_the_table_and_the_table_holds_no_other() -> None:
    assert {route.name for route in OURS} == set(TABLE)
    assert len(BY_NAME) == len(OURS), "two addresses share a name"


def test_every_cell_of_the_table_is_filled() -> None:
    for name, methods in TABLE.items():
        for method, rule in methods.items():
            assert set(rule) == set(CALLERS), f"{method} {name}"


def test_every_socket_is_in_the_table() -> None:
    assert {str(entry.pattern) for entry in websocket_urlpatterns} == set(SOCKETS)


# --- the world that they are tried on ---


@dataclass
class World:
    project: Project
    callers: dict[str, APIClient]
    params: dict[str, dict[str, Any]] = field(default_factory=dict)  # by route
    bodies: dict[tuple[str, str], Callable[[], dict[str, Any]]] = field(default_factory=dict)
    multipart: set[str] = field(default_factory=set)

    def url(self, name: str, **instead: Any) -> str:
        if name == "api-unknown":
            return "/api/v1/no/such/"
        known = {"slug": self.project.slug, **self.params.get(name, {}), **instead}
        return reverse(name, kwargs={param: known[param] for param in BY_NAME[name].params})

    def ask(self, who: str, name: str, method: str, **instead: Any) -> HttpResponseBase:
        """One request, after which the world is as before."""
        http = self.callers[who]
        body = self.bodies.get((name, method), dict)()
        options: dict[str, Any] = {}
        if method != "GET":
            as_form = name in self.multipart or not name.startswith("api-")
            options = {"data": body, "format": "multipart" if as_form else "json"}
        cookies = copy.copy(http.cookies)
        with contextlib.suppress(_Undo), transaction.atomic():
            answer: HttpResponseBase = getattr(http, method.lower())(self.url(name, **instead), **options)
            raise _Undo
        http.cookies = cookies
        return answer


class _Undo(Exception):
    pass


@pytest.fixture
def callers(
    project: Project, other_project: Project, api: ApiFor, client_token: ClientToken, request: Any
) -> dict[str, APIClient]:
    users: dict[str, User] = {who: request.getfixturevalue(who) for who in PEOPLE}
    owner, stranger = users["owner"], users["stranger"]

    def token(user: User, kind: str = TokenKind.USER, **more: Any) -> tuple[Token, str]:
        return create_token(actor=actor(user), kind=kind, name="a token", **more)

    expired, expired_secret = token(owner, scopes=("admin",))
    Token.objects.filter(pk=expired.pk).update(expires_at=timezone.now() - dt.timedelta(seconds=1))
    revoked, revoked_secret = token(owner, scopes=("admin",))
    revoke_token(actor=actor(owner), token=revoked)
    secrets = {
        "read token of the owner": token(owner, scopes=("read",))[1],
        "project token": token(owner, TokenKind.PROJECT, project=project, scopes=("admin",))[1],
        "project token of another project": token(
            stranger, TokenKind.PROJECT, project=other_project, scopes=("admin",)
        )[1],
        "client": client_token(project, "own")[1],
        "client of another project": client_token(other_project, "foreign")[1],
        "enrolment token": token(owner, TokenKind.ENROLMENT, project=project)[1],
        "expired token": expired_secret,
        "revoked token": revoked_secret,
    }
    return {
        **{who: api(user) for who, user in users.items()},
        "nobody": api(),
        **{who: api(secret) for who, secret in secrets.items()},
    }


def seed_file() -> Any:
    import io

    out = io.BytesIO()
    np.savez(out, np.zeros((2, 2), np.float32))
    return upload(out.getvalue(), "seed.npz")


@pytest.fixture
def world(project: Project, callers: dict[str, APIClient], request: Any, tmp_path: Any) -> World:
    owner: User = request.getfixturevalue("owner")
    me = actor(owner)
    package = create_package(
        actor=me, project=project, name="package", description="", upload=upload(tar_bytes())
    )
    model = create_seed_model(actor=me, project=project, name="seed", upload=seed_file())
    # of their own, so that they may be deleted
    idle_package = create_package(
        actor=me, project=project, name="idle", description="", upload=upload(tar_bytes())
    )
    idle_model = create_seed_model(actor=me, project=project, name="idle", upload=seed_file())
    spec = parse_spec({"name": "first", "seed_model": str(model.pk), "package": str(package.pk), "rounds": 1})
    session = create_session(actor=me, project=project, spec=spec)
    device = Device.objects.create(project=project, name="site-z")
    validation = Validation.objects.create(
        project=project, model=model, client=device, client_name="site-z", session=session,
        assignment_id=uuid.uuid4(), data={"accuracy": 0.5},
    )  # fmt: skip
    added = add_member(actor=me, project=project, email="new@example.org", role="viewer")
    assert isinstance(added, tuple)
    invitation, secret = added
    helper = User.objects.create_user("hanna_helper", "hanna@example.org", "x")
    member = Membership.objects.create(project=project, user=helper, role=Role.VIEWER)
    mine, _ = create_token(actor=me, kind=TokenKind.USER, name="mine")
    shared, _ = create_token(actor=me, kind=TokenKind.PROJECT, name="shared", project=project)

    def named(name: str, **more: Any) -> Callable[[], dict[str, Any]]:
        return lambda: {"name": name, **more}

    def new_session() -> dict[str, Any]:
        return {"name": "second", "seed_model": str(model.pk), "package": str(package.pk), "start": False}

    params: dict[str, dict[str, Any]] = {
        "invitation": {"secret": secret},
        "validation-json": {"pk": model.pk, "validation": validation.pk},
        "session-new": {"tab": "seed"},
        "account_confirm_email": {"key": "nonsense"},
        "account_reset_password_from_key": {"uidb36": "1", "key": "nonsense"},
    }
    of_row: dict[Any, list[str]] = {
        mine.pk: ["api-token", "api-token-rotate", "my-token-revoke", "my-token-rotate"],
        shared.pk: ["project-token-revoke", "project-token-rotate"],
        member.pk: ["api-member", "member-role", "member-remove"],
        invitation.pk: ["api-invitation", "invitation-withdraw"],
        device.pk: [
            "api-client",
            "api-client-config",
            "client",
            "client-config",
            "client-rename",
            "client-remove",
        ],
        idle_package.pk: ["api-package", "api-package-download"],
        idle_model.pk: ["api-model"],
        model.pk: ["api-model-download", "api-model-lineage", "api-model-validations", "model"],
        session.pk: [
            *("api-session", "api-session-start", "api-session-stop", "api-session-continue"),
            *(
                "api-rounds",
                "api-assignments",
                "session",
                "session-start",
                "session-stop",
                "session-continue",
            ),
        ],
    }
    params |= {name: {"pk": pk} for pk, names in of_row.items() for name in names}
    return World(
        project,
        callers,
        params=params,
        bodies={
            ("api-accounts", "POST"): lambda: {
                "username": "nora", "email": "nora@example.org", "password": "a-long-phrase-42"
            },
            ("api-auth-token", "POST"): lambda: {"login": "olivia_owner", "password": "correct-horse-battery-1"},
            ("api-tokens", "POST"): named("new", scopes=["read"]),
            ("api-invitation-accept", "POST"): lambda: {"secret": secret},
            ("api-projects", "POST"): named("New"),
            ("api-project", "PATCH"): named("Renamed"),
            ("api-project", "DELETE"): lambda: {"confirm": project.name},
            ("api-members", "POST"): lambda: {"email": "someone@example.org", "role": "viewer"},
            ("api-member", "PATCH"): lambda: {"role": "member"},
            ("api-clients", "POST"): named("site-new"),
            ("api-client", "PATCH"): named("site-renamed"),
            ("api-client-enrol", "POST"): named("site-enrolled"),
            ("api-packages", "POST"): lambda: {"name": "new", "file": upload(tar_bytes())},
            ("api-models", "POST"): lambda: {"name": "new", "file": seed_file()},
            ("api-sessions", "POST"): new_session,
            ("api-session-continue", "POST"): lambda: {"rounds": 1},
            ("project-settings", "POST"): named("Renamed"),
            ("project-delete", "POST"): lambda: {"confirm": project.name},
            ("project-members", "POST"): lambda: {"email": "someone@example.org", "role": "viewer"},
            ("member-role", "POST"): lambda: {"role": "member"},
            ("my-tokens", "POST"): named("new", scope="read", life=""),
            ("my-token-revoke", "POST"): lambda: {"confirm": "mine"},
            ("project-tokens", "POST"): named("new", scope="read", life="", kind="project"),
            ("project-token-revoke", "POST"): lambda: {"confirm": "shared"},
            ("client-new", "POST"): named("site-new"),
            ("client-rename", "POST"): named("site-renamed"),
            ("client-remove", "POST"): lambda: {"confirm": "site-z"},
            ("seed-upload", "POST"): lambda: {"name": "new", "file": seed_file()},
            ("session-new", "POST"): lambda: {"name": "new", "file": seed_file()},
            ("session-continue", "POST"): lambda: {"rounds": 1},
        },
        multipart={"api-packages", "api-models"},
    )  # fmt: skip


def verdict(answer: HttpResponseBase) -> int | str:
    """What an answer means for who asked: let through, sent to log in, or the refusal's status."""
    if answer.status_code == 302 and answer["Location"].startswith("/accounts/login/"):
        return LOGIN
    if answer.status_code < 400 or answer.status_code in (409, 422):
        return OK
    return answer.status_code


REQUIRED = ("type", "title", "status", "detail", "code")
# What a right caller hears when there is nothing to do: a page of allauth for a key that is none.
SOFT = {"account_confirm_email": (404,)}

# A world is dear and every request leaves it as it was: some routes share one.
GROUPS = [OURS[start : start + 16] for start in range(0, len(OURS), 16)]


def ids(group: list[Route]) -> str:
    return f"{group[0].name} to {group[-1].name}"


@pytest.mark.parametrize("group", GROUPS, ids=ids)
def test_the_table(group: list[Route], world: World, settings: Any) -> None:
    settings.ACCOUNT_RATE_LIMITS = False
    wrong = []
    for name, method in [(route.name, method) for route in group for method in TABLE.get(route.name, {})]:
        cache.clear()  # nobody is throttled here
        for who, expected in TABLE[name][method].items():
            answer = world.ask(who, name, method)
            heard = OK if answer.status_code in SOFT.get(name, ()) else verdict(answer)
            if heard != expected:
                wrong.append(f"{method} {name} as {who}: {heard}, not {expected}")
            if name.startswith("api-") and answer.status_code >= 400:
                assert answer["Content-Type"] == "application/problem+json", f"{method} {name} as {who}"
                assert all(word in answer.json() for word in REQUIRED)  # type: ignore[attr-defined]
            if answer.status_code == 401:
                assert answer["WWW-Authenticate"], f"{method} {name} as {who}"
    assert not wrong, "\n".join(wrong)


def test_a_method_that_is_not_in_the_table_does_not_exist(world: World) -> None:
    wrong = []
    for name in TABLE:
        if name in ANY_METHOD_IS_FINE or name.startswith("account_"):  # allauth reads PUT as POST
            continue
        for method in set(METHODS) - set(TABLE[name]):
            answer = world.ask("owner", name, method)
            if answer.status_code != 405:
                wrong.append(f"{method} {name}: {answer.status_code}")
    assert not wrong, "\n".join(wrong)


def test_another_projects_rows_are_not_found_below_my_own_address(
    world: World, other_project: Project
) -> None:
    """The stranger owns `other_project`: all is allowed there, and nothing of `project` is reached from it."""
    wrong = []
    tried = 0
    for name, method in CASES:
        params = set(BY_NAME[name].params)
        if "slug" not in params or params <= {"slug", "tab"}:
            continue
        tried += 1
        answer = world.ask("stranger", name, method, slug=other_project.slug)
        if answer.status_code != 404:
            wrong.append(f"{method} {name} as stranger: {answer.status_code}")
        answer = world.ask("client of another project", name, method, slug=other_project.slug)
        if verdict(answer) not in (403, 404, LOGIN):
            wrong.append(f"{method} {name} as a client: {answer.status_code}")
    assert tried > 30
    assert not wrong, "\n".join(wrong)


def test_the_admin_site_lets_nobody_in_who_is_no_staff(world: World) -> None:
    tried = 0
    for route in ADMIN_SITE:
        known = {"object_id": "1", "app_label": "projects", "content_type_id": 1, "url": "x", "id": "1"}
        if not set(route.params) <= set(known):
            continue
        url = re.sub(r"<(?:\w+:)?(\w+)>", lambda found, known=known: str(known[found[1]]), route.pattern)  # type: ignore[misc]
        url = "/" + re.sub(r"\(\?P(\w+)\[?[^)]*\)", "projects", url).replace("^", "").replace("$", "")
        tried += 1
        for who in CALLERS:
            answer = world.callers[who].get(url)
            assert answer.status_code in (302, 403, 404), f"{who} {url}"
            if answer.status_code == 302:
                assert re.match(r"/admin/$|/(admin|accounts)/login/", answer["Location"]), f"{who} {url}"
    assert tried > 40


# --- WebSockets ---


@pytest.fixture
def happened(project: Project) -> Event:
    """Something that whoever may listen is told at once."""
    return Event.objects.create(project=project, kind="test.happened", message="It happened.")


@pytest.mark.django_db(transaction=True)
async def test_the_live_socket_opens_for_the_projects_viewers_only(
    project: Project, other_project: Project, happened: Event, callers: dict[str, APIClient]
) -> None:
    expected = dict.fromkeys(CALLERS, 4404) | dict.fromkeys(
        ("owner", "admin", "member", "viewer", "read token of the owner", "project token"), OK
    )
    expected |= {"nobody": 4401, "expired token": 4401, "revoked token": 4401}
    heard: dict[str, int | str] = {}
    for who, http in callers.items():
        headers = [(b"origin", b"http://testserver"), (b"host", b"testserver")]
        if cookie := http.cookies.get(settings.SESSION_COOKIE_NAME):
            headers.append((b"cookie", f"{settings.SESSION_COOKIE_NAME}={cookie.value}".encode()))
        bearer = http._credentials.get("HTTP_AUTHORIZATION")  # type: ignore[attr-defined]
        if bearer:
            headers.append((b"authorization", bearer.encode()))
        path = f"/ws/projects/{project.slug}/events/"
        scope = {
            "type": "websocket",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"after=0",
            "headers": headers,
            "subprotocols": [],
            "client": ("127.0.0.1", 1),
        }
        socket = ApplicationCommunicator(application, scope)
        await socket.send_input({"type": "websocket.connect"})
        message = await socket.receive_output(timeout=10)
        while message["type"] == "websocket.accept":  # a close code is only seen on an open socket
            message = await socket.receive_output(timeout=10)
        heard[who] = OK if message["type"] == "websocket.send" else message["code"]
        await socket.send_input({"type": "websocket.disconnect", "code": 1000})
        await socket.wait(timeout=5)
    assert heard == expected


def test_nobody_is_told_whether_an_account_exists_by_logging_in(owner: User, api: ApiFor) -> None:
    assert EmailAddress.objects.count() == 0
    known = api().post("/api/v1/auth/token/", {"login": owner.email, "password": "wrong"})
    unknown = api().post("/api/v1/auth/token/", {"login": "nobody@example.org", "password": "wrong"})
    assert known.content == unknown.content


def test_an_invitation_row_shows_its_secret_to_nobody(world: World) -> None:
    digest = Invitation.objects.get().digest
    for name in ("api-invitations", "api-invitation", "project-members"):
        answer = world.ask("owner", name, "GET")
        assert digest not in answer.content.decode()  # type: ignore[attr-defined]
