"""Who may use the addresses that FEDn's and Scaleout's clients share, and FEDn's own: every one, for every caller.

What a person may do is their role's, by their own token at the project's address; cookies open none of it. Scaleout's
own addresses have a table beside this one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.core.cache import cache
from django.db import transaction
from django.http import HttpResponseBase
from django.urls import reverse
from django.utils import timezone

from clients_app.models import Client
from federation.events.models import Event
from federation.models.models import ProjectDefaults
from foundation import storage
from projects.models import Project, User
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.services import create_token, revoke_token
from tests.archives import tar_bytes, upload
from tests.cast import ClientToken, actor
from tests.controller_cast import HTTP, secret_of
from tests.pages_world import World
from tests.permissions.routes import ROUTES
from tests.permissions.rules import METHODS

pytestmark = pytest.mark.once  # who may do what is decided before the database is asked

PEOPLE = ("owner", "admin", "member", "viewer", "stranger")
CALLERS = (
    *PEOPLE,
    "owner's cookie",
    "nobody",
    "read token of the owner",
    "project token",
    "project token that may read",
    "project token of another project",
    "client",
    "client of another project",
    "enrolment token",
    "expired token",
    "revoked token",
)
OK = 0  # done, or refused for what it says rather than for who says it
Rule = dict[str, int]


def rule(**other: int) -> Rule:
    """Who has a part in the project, by a token of theirs; everybody else is 401, which the clients survive."""
    said = dict.fromkeys(CALLERS, 401) | dict.fromkeys(PEOPLE, OK) | {"stranger": 404}
    said |= dict.fromkeys(("read token of the owner", "project token", "project token that may read"), OK)
    return said | {who.replace("_", " "): code for who, code in other.items()}


READERS = ("viewer", "read token of the owner", "project token that may read")
VIEW = rule()
RUN = rule() | dict.fromkeys(READERS, 403)
DEVICE = rule(client=OK, enrolment_token=OK)
# a device's own is one client only; other people's refusals are 401 here: 403 would end FEDn's client
JOIN = DEVICE | dict.fromkeys(READERS, 401)
NOWHERE: Rule = dict.fromkeys(CALLERS, 404)

V1: dict[str, dict[str, Rule]] = {
    "clients-add": {"POST": JOIN},
    "clients-config": {"GET": VIEW},
    "client-attributes": {"GET": VIEW},
    "helpers-active": {"GET": VIEW, "PUT": RUN},
    "models": {"GET": VIEW, "POST": RUN},
    "model-download": {"GET": VIEW},
    "model-ancestors": {"GET": VIEW},
    "packages": {"GET": VIEW, "POST": RUN},
    "packages-active": {"GET": VIEW, "PUT": RUN},
    "packages-download": {"GET": DEVICE},
    "packages-checksum": {"GET": DEVICE},
    "sessions": {"GET": VIEW, "POST": RUN},
    "sessions-start": {"POST": RUN},
    "sessions-split-learning": {"POST": RUN},
    "sessions-one": {"GET": VIEW, "PATCH": RUN, "PUT": RUN},
    "statuses-glued": {"GET": VIEW},
    "attributes": {"GET": VIEW, "POST": RUN},
    "attributes-current": {"POST": VIEW},
    "attributes-list": {"POST": VIEW},
    "attributes-count": {"GET": VIEW, "POST": VIEW},
    "attributes-one": {"GET": VIEW},
    "predictions-start": {"POST": RUN},
}
for _noun in (
    "clients",
    "combiners",
    "rounds",
    "statuses",
    "validations",
    "metrics",
    "telemetry",
    "runs",
    "predictions",
):
    V1 |= {_noun: {"GET": VIEW}, f"{_noun}-one": {"GET": VIEW}}
for _noun in ("models", "packages"):
    V1 |= {f"{_noun}-one": {"GET": VIEW}}
for _noun in ("clients", "combiners", "models", "packages", "sessions", "rounds", "statuses", "validations", "metrics",
              "telemetry", "runs", "predictions"):  # fmt: skip
    V1 |= {f"{_noun}-list": {"POST": VIEW}, f"{_noun}-count": {"GET": VIEW, "POST": VIEW}}

# Without the project in the address: a project's or a device's token says which; a person's is told to name one.
UNNAMED = {"several projects": 400}


def unnamed(said: Rule) -> Rule:
    other = dict.fromkeys((*PEOPLE, "read token of the owner"), UNNAMED["several projects"])
    return said | other


def of_any_project(said: Rule) -> Rule:
    """Where the token says the project, another project's opens its own."""
    mine = {"project token of another project": OK}
    return said | mine | ({"client of another project": OK} if said["client"] == OK else {})


PERSON: Rule = dict.fromkeys(CALLERS, 401) | dict.fromkeys(PEOPLE, OK)
KNOWN = PERSON | dict.fromkeys(
    (
        "read token of the owner",
        "project token",
        "project token that may read",
        "project token of another project",
    ),
    OK,
)
IN_PROJECT = KNOWN | {"stranger": 404, "project token of another project": 404}
ADMIN = IN_PROJECT | dict.fromkeys((*READERS, "member"), 403)
FEDN: dict[str, dict[str, Rule]] = {
    "log-in": {"POST": dict.fromkeys(CALLERS, OK)},
    "projects": {"GET": KNOWN},
    "project": {"GET": KNOWN},  # “no such project” is told with status 200
    "admin-token": {"GET": IN_PROJECT},  # who is no admin gets their own token back
    "client-token": {"GET": ADMIN},
    "project-create": {
        "POST": KNOWN
        | dict.fromkeys((*READERS[1:], "project token", "project token of another project"), 403)
    },
    "project-update": {"POST": ADMIN},
    "project-add-combiner": {"POST": ADMIN},
    "project-delete": {"DELETE": ADMIN | {"admin": 403, "project token": 403}},
}
TABLE = {
    **{f"reducer:v1:{name}": methods for name, methods in V1.items()},
    "reducer:status": {"GET": VIEW},
    "reducer:unknown": dict.fromkeys(METHODS, NOWHERE),
    **{
        f"controller:{name}": {method: of_any_project(unnamed(said)) for method, said in methods.items()}
        for name, methods in V1.items()
    },
    "controller-root:status": {"GET": of_any_project(unnamed(VIEW))},
    **{f"fedn:{name}": methods for name, methods in FEDN.items()},
}
# Both prefixes lead to the same views: at the one that names no project it is enough to ask those whom that concerns.
TELLING = (
    "owner",
    "project token",
    "project token of another project",
    "client",
    "client of another project",
    "nobody",
)
ROOMS = ("controller:", "controller-root:", "reducer:", "fedn:")
BY_NAME = {route.name: route for route in ROUTES if route.name.startswith(ROOMS)}
# What another project's token, which opens its own project, does not find there.
NOT_THERE = {name.partition(":")[2] for name, route in BY_NAME.items() if "pk" in route.params} | {
    "attributes", "packages-active", "packages-checksum", "packages-download", "predictions-start", "sessions-start",
    "sessions-split-learning",
}  # fmt: skip
# Without a project in the address some words are Scaleout's own, and in its table.
SCALEOUTS = {("controller:combiners-one", "PATCH"), ("controller:statuses", "POST")}


def test_every_address_is_in_the_table_and_the_table_holds_no_other() -> None:
    assert set(BY_NAME) == set(TABLE)


@dataclass
class Site:
    world: World
    headers: dict[str, dict[str, str]]
    params: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, Callable[[], dict[str, Any]]] = field(default_factory=dict)

    def ask(self, who: str, name: str, method: str) -> HttpResponseBase:
        """One request, after which everything is as before."""
        known = {"slug": self.world.project.slug, "pk": self.params.get(name.rpartition(":")[2], "")}
        url = reverse(name, kwargs={param: known[param] for param in BY_NAME[name].params})
        body = self.bodies.get(name.rpartition(":")[2], dict)() if method != "GET" else {}
        as_form = any(hasattr(value, "read") for value in body.values())
        options: dict[str, Any] = (
            {"data": body} if as_form else {"data": body, "content_type": "application/json"}
        )
        with contextlib.suppress(_Undo), transaction.atomic():
            answered: HttpResponseBase = getattr(HTTP, method.lower())(
                url, **({} if method == "GET" else options), **self.headers[who]
            )
            raise _Undo
        return answered


class _Undo(Exception):
    pass


@pytest.fixture
def site(
    furnished: World,
    project: Project,
    other_project: Project,
    client_token: ClientToken,
    request: Any,
    tmp_path: Any,
) -> Site:
    (tmp_path / "package.tgz").write_bytes(tar_bytes())
    storage.put(furnished.package.key, tmp_path / "package.tgz")
    ProjectDefaults.objects.create(project=project, helper="numpyhelper")
    Client.objects.filter(pk=furnished.client.pk).update(attributes={"region": "north"}, dialect="fedn")
    run = Event.objects.create(
        project=project, kind="session.started", message="x", session=furnished.session
    )
    people: dict[str, User] = {who: request.getfixturevalue(who) for who in PEOPLE}
    owner, stranger = people["owner"], people["stranger"]

    def dead(**fields: Any) -> str:
        row, secret = create_token(actor=actor(owner), kind=TokenKind.PROJECT, name="dead", project=project)
        Token.objects.filter(pk=row.pk).update(**fields)
        if not fields:
            revoke_token(actor=actor(owner), token=row)
        return secret

    _own, own_secret = client_token(project, "own")
    _foreign, foreign_secret = client_token(other_project, "foreign")
    secrets = {
        **{who: secret_of(user, TokenKind.USER) for who, user in people.items()},
        "read token of the owner": secret_of(owner, TokenKind.USER, scopes=("read",)),
        "project token": secret_of(owner, project=project),
        "project token that may read": secret_of(owner, project=project, scopes=("read",)),
        "project token of another project": secret_of(stranger, project=other_project),
        "client": own_secret,
        "client of another project": foreign_secret,
        "enrolment token": secret_of(owner, TokenKind.ENROLMENT, project=project),
        "expired token": dead(expires_at=timezone.now() - dt.timedelta(seconds=1)),
        "revoked token": dead(),
    }
    headers = {who: {"HTTP_AUTHORIZATION": f"Bearer {secret}"} for who, secret in secrets.items()}
    cookie = request.getfixturevalue("client")
    cookie.force_login(owner, backend="django.contrib.auth.backends.ModelBackend")
    headers |= {
        "nobody": {},
        "owner's cookie": {"HTTP_COOKIE": f"sessionid={cookie.cookies['sessionid'].value}"},
    }

    pk = {
        "clients": furnished.client.pk,
        "combiners": "c1",
        "models": furnished.model.pk,
        "packages": furnished.package.pk,
        "sessions": furnished.session.pk,
        "rounds": 1,
        "statuses": run.pk,
        "runs": run.pk,
        "validations": furnished.validation.pk,
        "metrics": project.metrics.first().pk,  # type: ignore[union-attr]
        "telemetry": project.telemetry.first().pk,  # type: ignore[union-attr]
        "predictions": "none",
    }
    params = {f"{noun}-one": str(value) for noun, value in pk.items()}
    params |= dict.fromkeys(("model-download", "model-ancestors"), str(furnished.model.pk))
    params |= {"client-attributes": str(furnished.client.pk), "statuses-glued": str(run.pk)}
    params |= {"attributes-one": f"{furnished.client.pk}:region"}
    config = {"session_config": {"model_id": str(furnished.seed.pk), "round_timeout": 60}}
    started = {"session_id": str(furnished.session.pk), "rounds": 1}
    attribute = {"key": "k", "value": "v", "sender": {"client_id": str(furnished.client.pk)}}
    bodies: dict[str, Callable[[], dict[str, Any]]] = {
        "clients-add": lambda: {"name": "new", "package": "local"},
        "helpers-active": lambda: {"helper": "numpyhelper"},
        "models": lambda: {"file": upload(b"no model", "seed.npz"), "helper": "numpyhelper"},
        "packages": lambda: {"file": upload(tar_bytes()), "helper": "numpyhelper", "name": "new"},
        "packages-active": lambda: {"package_id": str(furnished.package.pk)},
        "sessions": lambda: config,
        "sessions-start": lambda: started,
        "sessions-split-learning": lambda: started,
        "sessions-one": lambda: {"status": "Terminated"},
        "attributes": lambda: attribute,
        "attributes-current": lambda: {"client_ids": [str(furnished.client.pk)]},
        "predictions-start": lambda: {
            "prediction_id": str(uuid.uuid4()),
            "model_id": str(furnished.model.pk),
        },
        "log-in": lambda: {"username": "olivia_owner", "password": "correct-horse-battery-1"},
        "project-create": lambda: {"name": "New"},
        "project-update": lambda: {"slug": project.slug},
        "project-add-combiner": lambda: {"project_slug": project.slug},
    }
    return Site(furnished, headers, params, bodies)


def heard(answer: Any) -> int:
    """Let through, or the refusal's status."""
    if answer.status_code == 400 and b"several projects" in answer.content:
        return UNNAMED["several projects"]
    return OK if answer.status_code < 401 or answer.status_code == 409 else answer.status_code


GROUPS = [sorted(TABLE)[start : start + 30] for start in range(0, len(TABLE), 30)]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group[0]} to {group[-1]}")
def test_the_table(group: list[str], site: Site) -> None:
    wrong = []
    slugged = {"HTTP_X_PROJECT_SLUG": site.world.project.slug}
    named = {who: headers | slugged for who, headers in site.headers.items()}
    for name, method in [(each, method) for each in group for method in TABLE[each]]:
        by_header = name in ("fedn:admin-token", "fedn:client-token")
        asking = Site(site.world, named, site.params, site.bodies) if by_header else site
        for who, expected in TABLE[name][method].items():
            if name.startswith("controller:") and who not in TELLING:
                continue
            cache.clear()  # nobody is throttled here
            answer = asking.ask(who, name, method)
            code = heard(answer)
            if name.endswith("predictions-one") and expected == OK:
                expected = 404  # there are none
            elif expected == OK and who.endswith("of another project") and name.startswith("controller:"):
                code = OK if code == 404 and name.partition(":")[2] in NOT_THERE else code
            if code != expected:
                wrong.append(
                    f"{method} {name} as {who}: {answer.status_code}, not {expected or 'let through'}"
                )
            if answer.status_code >= 400:
                assert answer["Content-Type"] == "application/json", f"{method} {name} as {who}"
                assert answer.json()["message"], f"{method} {name} as {who}"  # type: ignore[attr-defined]
    assert not wrong, "\n".join(wrong)


def test_a_method_that_is_not_in_the_table_does_not_exist(site: Site) -> None:
    wrong = []
    for name in TABLE:
        for method in set(METHODS) - set(TABLE[name]):
            if (name, method) in SCALEOUTS:
                continue
            status = site.ask("project token", name, method).status_code
            if status != 405:
                wrong.append(f"{method} {name}: {status}")
    assert not wrong, "\n".join(wrong)
