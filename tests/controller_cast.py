"""A furnished project as FEDn's and Scaleout's clients meet it: tokens of every kind, and requests with headers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.test import Client as Http

from projects.models import Project, User
from projects.tokens.choices import TokenKind
from projects.tokens.services import create_token
from tests.cast import actor
from tests.pages_world import World, furnish

HTTP = Http(raise_request_exception=False)  # made once: each loads the middleware anew
FULL = ("read", "write", "admin")


def secret_of(user: User, kind: str = TokenKind.PROJECT, **more: Any) -> str:
    """The secret of a new token that the user makes."""
    if kind != TokenKind.ENROLMENT:
        more.setdefault("scopes", FULL)
    return create_token(actor=actor(user), kind=kind, name="a token", **more)[1]


@dataclass
class Controller:
    """One project's controller, asked with one token. Paths are below /api/v1/ unless they begin with a slash."""

    token: str
    prefix: str = ""

    def __call__(self, method: str, path: str, data: Any = None, **headers: Any) -> Any:
        url = path if path.startswith("/") else f"{self.prefix}/api/v1/{path}"
        named = {f"HTTP_{name.upper()}": str(value) for name, value in headers.items()}
        if self.token:
            named["HTTP_AUTHORIZATION"] = f"Bearer {self.token}"
        body: dict[str, Any] = {}
        if data is not None:
            as_form = isinstance(data, dict) and any(hasattr(value, "read") for value in data.values())
            body = {"data": data} if as_form else {"data": data, "content_type": "application/json"}
        return getattr(HTTP, method.lower())(url, **body, **named)

    def get(self, path: str, **headers: Any) -> Any:
        """The JSON of a GET that succeeds."""
        answer = self("GET", path, **headers)
        assert answer.status_code == 200, (path, answer.status_code, answer.content)
        return answer.json()


@pytest.fixture
def furnished(project: Project, owner: User, tmp_path: Path) -> World:
    """A row of everything."""
    return furnish(project, owner, tmp_path)


@pytest.fixture
def controller(furnished: World, project: Project, owner: User) -> Controller:
    """With a project's token that may do all."""
    return Controller(secret_of(owner, project=project))


@pytest.fixture
def enrolment(project: Project, owner: User) -> Controller:
    """With what FEDn calls a client token."""
    return Controller(secret_of(owner, TokenKind.ENROLMENT, project=project))


@pytest.fixture
def elsewhere(other_project: Project, stranger: User) -> Controller:
    """With a token of another project."""
    return Controller(secret_of(stranger, project=other_project))


AsPerson = Callable[[User], Controller]


@pytest.fixture
def as_person(project: Project) -> AsPerson:
    """`as_person(user)`: with their own token, at the project's own address."""
    return lambda user: Controller(secret_of(user, TokenKind.USER), f"/{project.slug}-fedn-reducer")
