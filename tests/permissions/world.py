"""The project on which the rules are tried, and everybody who tries."""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from django.db import transaction
from django.http import HttpResponseBase
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from clients_app.models import Client as Device
from federation.models.models import Validation
from federation.models.services import create_package, create_seed_model
from federation.sessions.config import parse_spec
from federation.sessions.models import Round
from federation.sessions.services import create_session
from projects.choices import Role
from projects.models import Membership, Project, User
from projects.services import add_member
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.services import create_token, revoke_token
from tests.archives import tar_bytes, upload
from tests.cast import ApiFor, ClientToken, actor
from tests.permissions.routes import BY_NAME
from tests.permissions.rules import PEOPLE


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
    round_ = Round.objects.create(
        project=project, session=session, number=1, status="finished", goal=1, min_updates=1, input_model=model,
        deadline=timezone.now(),
    )  # fmt: skip
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
        **{name: {"name": "c1"} for name in ("api-combiner", "api-combiner-drain", "api-combiner-resume")},
        "validation-json": {"pk": model.pk, "validation": validation.pk},
        "session-new": {"tab": "seed"},
        "session-round": {"pk": session.pk, "round_pk": round_.pk},
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
            "client-pin",
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
            ("client-pin", "POST"): lambda: {"pin": "region=eu"},
            ("client-rename", "POST"): named("site-renamed"),
            ("client-remove", "POST"): lambda: {"confirm": "site-z"},
            ("seed-upload", "POST"): lambda: {"name": "new", "file": seed_file()},
            ("session-new", "POST"): lambda: {"name": "new", "file": seed_file()},
            ("session-continue", "POST"): lambda: {"rounds": 1},
        },
        multipart={"api-packages", "api-models"},
    )  # fmt: skip
