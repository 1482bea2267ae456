"""Devices that register themselves bring an id and a name; each is bound to the token that it came with."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest
from django.utils import timezone

from clients_app.models import Client, Registration
from clients_app.selectors import living_registration, registered_with
from clients_app.services import register_device
from federation.events.models import Event
from foundation.errors import StudioError
from projects.actors import Actor
from projects.models import Project, User
from projects.tokens.choices import Scope, TokenKind
from projects.tokens.models import Token
from projects.tokens.services import create_token

pytestmark = pytest.mark.django_db


def token(owner: User, project: Project, kind: str = TokenKind.ENROLMENT, **more: object) -> Token:
    return create_token(actor=Actor.of_user(owner), kind=kind, name="fleet", project=project, **more)[0]  # type: ignore[arg-type]


def register(
    token_: Token, name: str | None = "site", client_id: uuid.UUID | None = None, **more: object
) -> Client:
    return register_device(
        token=token_, client_id=client_id or uuid.uuid4(), name=name, dialect="fedn", version="", **more
    )  # type: ignore[arg-type]


@pytest.fixture
def fleet(owner: User, project: Project) -> Token:
    return token(owner, project)


def test_a_device_keeps_the_id_it_brought_and_is_bound_to_its_token(fleet: Token, project: Project) -> None:
    wanted = uuid.uuid4()
    client = register(fleet, "hospital", wanted)
    assert (client.pk, client.project, client.name) == (wanted, project, "hospital")
    assert Registration.objects.get().token == fleet
    assert list(Event.objects.values_list("kind", flat=True)) == ["client.registered"]


def test_a_device_that_comes_back_is_the_same_client_under_its_new_name_and_token(
    fleet: Token, owner: User, project: Project
) -> None:
    client = register(fleet, "old name")
    other = token(owner, project)
    again = register(other, "new name", client.pk)
    assert (again.pk, again.name, Client.objects.count()) == (client.pk, "new name", 1)
    assert Registration.objects.get().token == other


def test_a_device_that_brings_no_name_keeps_the_one_it_has_or_gets_one(fleet: Token) -> None:
    client = register(fleet, "hospital")
    assert register(fleet, None, client.pk).name == "hospital"
    assert register(fleet, None).name.startswith("device-")


def test_a_taken_name_gets_a_number_and_keeps_it(fleet: Token) -> None:
    register(fleet, "site")
    second = register(fleet, "site")
    assert second.name == "site (2)"
    assert register(fleet, "site (3)").name == "site (3)"
    assert register(fleet, "site", second.pk).name == "site (2)"


def test_an_id_of_another_project_is_refused_and_changes_nothing(
    fleet: Token, stranger: User, other_project: Project
) -> None:
    theirs = register(token(stranger, other_project), "theirs")
    with pytest.raises(StudioError) as refused:
        register(fleet, "mine", theirs.pk)
    assert (refused.value.code, refused.value.status) == ("client_id_taken", 400)
    theirs.refresh_from_db()
    assert (theirs.name, theirs.project) == ("theirs", other_project)
    assert Registration.objects.get().token != fleet


def test_an_enrolment_token_cannot_take_over_a_client_that_has_a_token_of_its_own(
    fleet: Token, project: Project
) -> None:
    made = Client.objects.create(project=project, name="made on the page")
    with pytest.raises(StudioError) as refused:
        register(fleet, "mine", made.pk)
    assert refused.value.code == "client_id_taken"


def test_a_client_token_registers_its_own_client_only(owner: User, project: Project) -> None:
    mine, other = (Client.objects.create(project=project, name=name) for name in ("mine", "other"))
    own = token(owner, project, TokenKind.CLIENT, client=mine)
    assert register(own, "mine", mine.pk).pk == mine.pk
    with pytest.raises(StudioError) as refused:
        register(own, "mine", other.pk)
    assert refused.value.status == 401


def test_a_token_that_may_only_read_registers_nothing(owner: User, project: Project) -> None:
    reader = token(owner, project, TokenKind.PROJECT, scopes=[Scope.READ])
    with pytest.raises(StudioError) as refused:
        register(reader)
    assert refused.value.status == 401
    assert not Client.objects.exists()
    writer = token(owner, project, TokenKind.PROJECT, scopes=[Scope.WRITE])
    assert register(writer).project == project


def test_a_person_registers_in_their_own_projects_only(owner: User, stranger: User, project: Project) -> None:
    theirs = create_token(actor=Actor.of_user(stranger), kind=TokenKind.USER, name="laptop")[0]
    with pytest.raises(StudioError) as refused:
        register(theirs, project=project)
    assert refused.value.status == 401
    mine = create_token(actor=Actor.of_user(owner), kind=TokenKind.USER, name="laptop")[0]
    assert register(mine, project=project).project == project
    with pytest.raises(StudioError) as unnamed:
        register(mine)
    assert unnamed.value.status == 400


@pytest.mark.parametrize("name", ["", "   ", "a" * 121, "tab\tand\x00null"])
def test_a_name_that_is_none_is_refused(fleet: Token, name: str) -> None:
    with pytest.raises(StudioError):
        register(fleet, name)
    assert not Client.objects.exists()


def test_a_registration_lives_as_long_as_its_token(fleet: Token, owner: User, project: Project) -> None:
    client = register(fleet)
    assert living_registration(client.pk) is not None
    assert registered_with(fleet.pk, client.pk) is not None
    assert registered_with(token(owner, project).pk, client.pk) is None
    for dead in ({"revoked_at": timezone.now()}, {"expires_at": timezone.now() - dt.timedelta(seconds=1)}):
        Token.objects.filter(pk=fleet.pk).update(**dead)
        assert living_registration(client.pk) is None
        Token.objects.filter(pk=fleet.pk).update(revoked_at=None, expires_at=None)
    assert living_registration(client.pk) is not None


def test_a_registration_by_a_person_ends_with_their_account(owner: User, project: Project) -> None:
    mine = create_token(actor=Actor.of_user(owner), kind=TokenKind.USER, name="laptop")[0]
    client = register(mine, project=project)
    User.objects.filter(pk=owner.pk).update(is_active=False)
    assert living_registration(client.pk) is None
