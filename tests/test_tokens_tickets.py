"""Tickets: what Scaleout's clients hold instead of `stu_…`, and what each is good for."""

from __future__ import annotations

import base64
import datetime as dt
import json
import uuid
from typing import Any

import jwt
import pytest
import time_machine
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_django import DjangoAssertNumQueries

from clients_app.models import Client
from foundation.errors import StudioError
from projects.choices import Action
from projects.models import Membership, Project, User
from projects.tokens import tickets
from projects.tokens.choices import TokenKind
from projects.tokens.exchange import GRACE, ROTATE_AFTER, exchange, ticket_for_device
from projects.tokens.models import Token
from projects.tokens.services import create_token, revoke_token
from projects.tokens.verify import actor_for, verify
from tests.cast import ApiFor, actor

pytestmark = pytest.mark.django_db


def refusal(secret: str) -> str:
    with pytest.raises(StudioError) as caught:
        verify(secret)
    assert caught.value.status == 401
    return caught.value.code


def claims_of(ticket: str) -> dict[str, Any]:
    """As a client reads them, without the key."""
    return jwt.decode(ticket, options={"verify_signature": False})


@pytest.fixture
def enrolment(owner: User, project: Project) -> tuple[Token, str]:
    row, secret = create_token(actor=actor(owner), kind=TokenKind.ENROLMENT, name="lab", project=project)
    return row, tickets.lasting_ticket(row, secret)


@pytest.fixture
def device(enrolment: tuple[Token, str], project: Project) -> tuple[Token, str]:
    """A device that enrolled, and its refresh ticket."""
    client = Client.objects.create(project=project, name="site-a")
    made = ticket_for_device(token=verify(enrolment[1]), client=client)
    return made.token, made.refresh


def test_an_enrolment_ticket_reads_as_one_and_is_the_token(enrolment: tuple[Token, str]) -> None:
    row, ticket = enrolment
    assert claims_of(ticket)["role"] == "enrollment"
    assert verify(ticket) == row


def test_a_devices_ticket_names_the_client_and_refreshes(device: tuple[Token, str]) -> None:
    row, ticket = device
    said = claims_of(ticket)
    assert (said["role"], said["sub"]) == ("client_refresh", str(row.client_id))
    assert row.expires_at is not None and said["exp"] == int(row.expires_at.timestamp())
    given_back = exchange(ticket)
    assert verify(given_back.access) == row
    assert given_back.refresh == ""


def test_an_access_ticket_lives_an_hour_at_most(device: tuple[Token, str]) -> None:
    made = exchange(device[1])
    assert made.expires_in_s <= 3600
    assert claims_of(made.access)["exp"] <= timezone.now().timestamp() + 3600
    with time_machine.travel(timezone.now() + dt.timedelta(minutes=61)):
        assert refusal(made.access) == "token_expired"
        assert verify(exchange(device[1]).access)


def test_an_access_ticket_carries_no_secret_and_prolongs_nothing(device: tuple[Token, str]) -> None:
    access = exchange(device[1]).access
    assert "secret" not in claims_of(access)
    with pytest.raises(StudioError) as caught:
        exchange(access)
    assert caught.value.status == 401


def test_revoking_the_row_ends_every_ticket_of_it_at_once(device: tuple[Token, str], owner: User) -> None:
    row, ticket = device
    access = exchange(ticket).access
    revoke_token(actor=actor(owner), token=row)
    assert refusal(ticket) == refusal(access) == "token_revoked"


def test_a_closed_account_ends_its_tickets(owner: User) -> None:
    row, secret = create_token(actor=actor(owner), kind=TokenKind.USER, name="laptop")
    access, _ = tickets.access_ticket(row)
    User.objects.filter(pk=owner.pk).update(is_active=False)
    assert refusal(tickets.lasting_ticket(row, secret)) == refusal(access) == "account_closed"


def test_a_plain_secret_is_exchanged_too(owner: User) -> None:
    row, secret = create_token(actor=actor(owner), kind=TokenKind.USER, name="laptop")
    made = exchange(secret)
    assert verify(made.access) == row
    assert made.refresh == ""


def test_a_persons_ticket_for_one_project_reaches_that_one_only(
    owner: User, project: Project, other_project: Project
) -> None:
    Membership.objects.create(project=other_project, user=owner, role="member")
    row, secret = create_token(
        actor=actor(owner), kind=TokenKind.USER, name="laptop", scopes=("read", "write", "admin")
    )
    ticket = tickets.lasting_ticket(row, secret, project_id=project.pk)
    for shown in (ticket, exchange(ticket).access):
        token = verify(shown)
        assert token.project == project
        assert list(Project.objects.visible_to(actor_for(token), Action.RUN)) == [project]
    row.refresh_from_db()
    assert row.project_id is None


def test_a_day_old_ticket_is_replaced_and_the_old_one_ends_after_a_grace(device: tuple[Token, str]) -> None:
    row, old = device
    with time_machine.travel(timezone.now() + ROTATE_AFTER, tick=False) as clock:
        made = exchange(old)
        assert made.refresh and made.token != row and made.token.client_id == row.client_id
        assert verify(made.access) == made.token
        assert verify(old) == row, "an answer that was lost locks nobody out"
        assert exchange(made.refresh).refresh == "", "the new one is young"
        clock.shift(GRACE)
        assert refusal(old) == "token_expired"
        assert verify(made.refresh) == made.token


def test_asking_twice_with_the_old_ticket_gives_the_same_successor(device: tuple[Token, str]) -> None:
    with time_machine.travel(timezone.now() + ROTATE_AFTER, tick=False) as clock:
        first = exchange(device[1])
        clock.shift(GRACE / 2)
        assert exchange(device[1]).token == first.token
        assert Token.objects.filter(client=device[0].client).count() == 2
        clock.shift(GRACE / 2)
        assert refusal(device[1]) == "token_expired", "asking again does not prolong the grace"


def test_enrolling_again_ends_what_the_device_had(device: tuple[Token, str], enrolment: Any) -> None:
    row, ticket = device
    assert row.client is not None
    again = ticket_for_device(token=verify(enrolment[1]), client=row.client)
    assert refusal(ticket) == "token_revoked"
    assert verify(again.refresh) == again.token


def test_removing_a_pepper_ends_all_tickets_made_with_it(device: Any, settings: Any) -> None:
    access = exchange(device[1]).access
    settings.TOKEN_PEPPERS = {2: "another pepper"}
    assert refusal(device[1]) == refusal(access) == "invalid_token"


def test_a_token_of_a_removed_pepper_is_dead_under_a_newer_signature_too(device: Any, settings: Any) -> None:
    settings.TOKEN_PEPPERS = {**settings.TOKEN_PEPPERS, 2: "newer"}
    access = exchange(device[1]).access
    assert verify(access)
    settings.TOKEN_PEPPERS = {2: "newer"}
    assert refusal(access) == "invalid_token"


def test_a_new_pepper_signs_new_tickets_while_old_ones_still_work(device: Any, settings: Any) -> None:
    settings.TOKEN_PEPPERS = {**settings.TOKEN_PEPPERS, 2: "newer"}
    fresh = exchange(device[1]).access
    assert jwt.get_unverified_header(fresh)["kid"] == "2"
    assert verify(fresh) and verify(device[1])


def forged(claims: dict[str, Any], key: str | bytes, algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": "1", **headers})


@pytest.mark.filterwarnings("ignore:The HMAC key")
def test_forged_tickets_are_all_refused_alike(device: tuple[Token, str], settings: Any) -> None:
    claims = claims_of(exchange(device[1]).access)
    right = tickets._key(1)
    unsigned = jwt.encode(claims, "", algorithm="none", headers={"kid": "1"})
    signed = forged(claims, right)
    assert verify(signed), "the test forges well"
    head, body, signature = signed.split(".")
    other = base64.urlsafe_b64encode(json.dumps({**claims, "key": "0" * 16}).encode()).rstrip(b"=").decode()
    for wrong in (
        unsigned,
        f"{head}.{body}.",
        f"{head}.{other}.{signature}",
        forged(claims, b"x" * 32),
        forged(claims, settings.SECRET_KEY),
        forged(claims, settings.TOKEN_PEPPERS[1]),
        forged(claims, right, "HS512"),
        forged(claims, right, kid="9"),
        forged(claims, right, kid="x"),
        forged({**claims, "key": 7}, right),
        forged({**claims, "key": "0" * 16}, right),
        forged({key: value for key, value in claims.items() if key != "exp"}, right),
        forged({**claims, "project": "no id"}, right),
        forged({**claims, "pad": "x" * tickets.MAX_CHARS}, right),
        "..",
        "a.b.c",
        "é.é.é",
    ):
        assert refusal(wrong) == "invalid_token"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(st.text(max_size=300), st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"))
)
def test_no_text_does_more_than_be_refused(text: str, db: None) -> None:
    assert refusal(text) == "invalid_token"


def test_verifying_a_ticket_costs_one_query(
    device: tuple[Token, str], django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    access = exchange(device[1]).access
    with django_assert_num_queries(1):
        actor_for(verify(access))


def test_rest_takes_an_access_ticket_as_it_takes_a_token(owner: User, project: Project, api: ApiFor) -> None:
    row, _ = create_token(actor=actor(owner), kind=TokenKind.USER, name="laptop")
    answer = api(tickets.access_ticket(row)[0]).get(f"/api/v1/projects/{project.slug}/")
    assert answer.status_code == 200
    assert api(f"{uuid.uuid4()}.x.y").get(f"/api/v1/projects/{project.slug}/").status_code == 401
