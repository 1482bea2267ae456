"""The fixed cast: one project and everybody who may or may not touch it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from django.core.cache import cache
from rest_framework.test import APIClient

from clients_app.models import Client
from projects.actors import Actor
from projects.choices import Role
from projects.models import Membership, Project, User
from projects.tokens.choices import TokenKind
from projects.tokens.services import create_token

PASSWORD = "correct-horse-battery-1"

ApiFor = Callable[..., APIClient]
TokenFor = Callable[..., str]
ClientToken = Callable[..., tuple[Client, str]]


def make_user(name: str) -> User:
    return User.objects.create_user(username=name, email=f"{name}@example.org", password=PASSWORD)


@pytest.fixture
def owner(db: None) -> User:
    return make_user("olivia_owner")


@pytest.fixture
def admin(db: None) -> User:
    """A project's admin; not staff of the site."""
    return make_user("adam_admin")


@pytest.fixture
def member(db: None) -> User:
    return make_user("mia_member")


@pytest.fixture
def viewer(db: None) -> User:
    return make_user("victor_viewer")


@pytest.fixture
def stranger(db: None) -> User:
    """Has an account and a project of their own, and no part in `project`."""
    return make_user("stan_stranger")


@pytest.fixture
def operator(db: None) -> User:
    """The superuser who runs the site."""
    return User.objects.create_superuser("otto_operator", "otto_operator@example.org", PASSWORD)


@pytest.fixture
def project(owner: User, admin: User, member: User, viewer: User) -> Project:
    """The project `digits` of the owner, with one person in each role."""
    row = Project.objects.create(slug="digits-1", name="Digits", description="Handwritten digits")
    for user, role in (
        (owner, Role.OWNER),
        (admin, Role.ADMIN),
        (member, Role.MEMBER),
        (viewer, Role.VIEWER),
    ):
        Membership.objects.create(project=row, user=user, role=role)
    return row


@pytest.fixture
def other_project(stranger: User) -> Project:
    """The stranger's own project."""
    row = Project.objects.create(slug="elsewhere-1", name="Elsewhere")
    Membership.objects.create(project=row, user=stranger, role=Role.OWNER)
    return row


def actor(user: User) -> Actor:
    """What a logged-in page or a session login acts as."""
    return Actor.of_user(user)


@pytest.fixture
def api() -> ApiFor:
    """`api()` for nobody, `api(user)` for a logged-in person, `api("stu_…")` for a token."""

    def for_whom(who: User | str | None = None) -> APIClient:
        http = APIClient()
        if isinstance(who, str):
            http.credentials(HTTP_AUTHORIZATION=f"Bearer {who}")
        elif who is not None:
            http.force_login(who, backend="django.contrib.auth.backends.ModelBackend")
        return http

    return for_whom


@pytest.fixture
def user_token() -> TokenFor:
    """`user_token(user, scopes=(…))`: the secret of a fresh token of that person."""

    def make(user: User, scopes: tuple[str, ...] = ("read", "write", "admin")) -> str:
        _row, secret = create_token(actor=actor(user), kind=TokenKind.USER, name="laptop", scopes=scopes)
        return secret

    return make


@pytest.fixture
def client_token() -> ClientToken:
    """`client_token(project, name="site-a")`: a client of that project and its secret."""

    def make(project: Project, name: str = "site-a") -> tuple[Client, str]:
        client = Client.objects.create(project=project, name=name)
        owner = project.memberships.get(role=Role.OWNER).user
        _row, secret = create_token(
            actor=actor(owner), kind=TokenKind.CLIENT, name=name, project=project, client=client
        )
        return client, secret

    return make


@pytest.fixture(autouse=True)
def fresh_limits() -> Iterator[None]:
    """Nobody starts a test throttled by the one before."""
    yield
    cache.clear()
