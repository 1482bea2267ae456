"""A project may reach a combiner by a host name of its own; no other project is told of it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.utils import timezone

from clients_app.models import Combiner
from clients_app.selectors import host_for
from clients_app.services import name_combiner_host
from foundation.errors import StudioError
from projects.actors import Actor
from projects.models import Project, User
from projects.tokens.choices import Scope, TokenKind
from projects.tokens.services import create_token
from tests.cast import ApiFor

pytestmark = pytest.mark.django_db


@pytest.fixture
def combiner(db: None) -> Combiner:
    later = timezone.now() + dt.timedelta(hours=1)
    return Combiner.objects.create(name="c1", epoch=1, address="10.0.0.7:9000", lease_until=later)


def admin_token(owner: User, project: Project, *scopes: str) -> str:
    actor = Actor.of_user(owner)
    scopes = scopes or (Scope.READ, Scope.WRITE, Scope.ADMIN)
    return create_token(actor=actor, kind=TokenKind.PROJECT, name="ci", project=project, scopes=scopes)[1]


def joined(http: Any) -> Any:
    return http.post("/api/v1/clients/add", {"name": "site", "package": "local"}, format="json").json()


def test_clients_of_the_project_are_told_its_name_and_those_of_others_the_combiners_own(
    api: ApiFor, owner: User, stranger: User, project: Project, other_project: Project, combiner: Combiner
) -> None:
    mine, theirs = api(admin_token(owner, project)), api(admin_token(stranger, other_project))
    changed = mine.patch(
        f"/api/v1/combiners/{combiner.pk}", {"public_hostname": "edge.example.org"}, format="json"
    )
    assert changed.status_code == 200 and changed.json()["public_hostname"] == "edge.example.org"
    told = joined(mine)
    assert (told["host"], told["public_hostname"], told["port"]) == ("edge.example.org",) * 2 + (9000,)
    assert joined(theirs)["host"] == "10.0.0.7"
    assert theirs.get(f"/api/v1/combiners/{combiner.pk}").json()["public_hostname"] == "10.0.0.7"
    mine.patch(f"/api/v1/combiners/{combiner.pk}", {"public_hostname": "gate.org:9001"}, format="json")
    told = joined(mine)
    assert (told["public_hostname"], told["port"]) == ("gate.org", 9001)
    mine.patch(f"/api/v1/combiners/{combiner.pk}", {"public_hostname": ""}, format="json")
    assert joined(mine)["host"] == "10.0.0.7"


@pytest.mark.parametrize(
    "name", ["with space", "host:", "host:0", "host:123456", "http://x", "-x", "a" * 254, "x\x00"]
)
def test_what_is_no_host_name_is_refused(
    owner: User, project: Project, combiner: Combiner, name: str
) -> None:
    with pytest.raises(StudioError) as refused:
        name_combiner_host(actor=Actor.of_user(owner), project=project, combiner=combiner, hostname=name)
    assert refused.value.data["field"] == "public_hostname"
    project.refresh_from_db()
    assert host_for(project, combiner) == ""


def test_only_an_admin_may_name_it(api: ApiFor, owner: User, project: Project, combiner: Combiner) -> None:
    writer = api(admin_token(owner, project, Scope.WRITE))
    answer = writer.patch(f"/api/v1/combiners/{combiner.pk}", {"public_hostname": "x.org"}, format="json")
    assert answer.status_code == 403
    project.refresh_from_db()
    assert host_for(project, combiner) == ""
