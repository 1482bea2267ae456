"""A token's secret opens exactly what the token is for, for as long as it lives."""

from __future__ import annotations

import datetime as dt

import pytest
import time_machine
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from foundation.errors import StudioError
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project, User
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.selectors import dead_tokens
from projects.tokens.services import create_token, revoke_token, rotate_token
from projects.tokens.verify import actor_for, verify
from tests.cast import ClientToken, actor


def make(user: User, **more: object) -> tuple[Token, str]:
    return create_token(actor=actor(user), kind=TokenKind.USER, name="laptop", **more)  # type: ignore[arg-type]


def refusal(secret: str) -> str:
    with pytest.raises(StudioError) as caught:
        verify(secret)
    assert caught.value.status == 401
    return caught.value.code


def test_the_secret_finds_its_token_and_is_stored_nowhere(owner: User) -> None:
    token, secret = make(owner)
    assert verify(secret).pk == token.pk
    row = Token.objects.values().get(pk=token.pk)
    assert secret.split("_", 2)[2] not in str(row)
    assert secret.startswith(f"stu_{token.key_id}_")


def test_a_wrong_secret_and_an_unknown_key_look_the_same(owner: User) -> None:
    token, secret = make(owner)
    for wrong in (
        f"stu_{token.key_id}_wrong",
        "stu_0000000000000000_x",
        secret[:-1],
        "",
        "stu_",
        "x" * 500,
        "stu_ä_b",
    ):
        assert refusal(wrong) == "invalid_token"


def test_a_revoked_an_expired_and_a_closed_accounts_token_say_so(owner: User) -> None:
    revoked, revoked_secret = make(owner)
    revoke_token(actor=actor(owner), token=revoked)
    _expired, expired_secret = make(owner, expires_at=timezone.now() + dt.timedelta(hours=1))
    _living, living_secret = make(owner)
    assert refusal(revoked_secret) == "token_revoked"
    with time_machine.travel(dt.datetime.now(dt.UTC) + dt.timedelta(hours=2)):
        assert refusal(expired_secret) == "token_expired"
    User.objects.filter(pk=owner.pk).update(is_active=False)
    assert refusal(living_secret) == "account_closed"


def test_removing_a_pepper_ends_all_tokens_made_with_it(owner: User, settings: object) -> None:
    token, secret = make(owner)
    settings.TOKEN_PEPPERS = {2: "another pepper"}  # type: ignore[attr-defined]
    assert refusal(secret) == "invalid_token"
    assert dead_tokens([token.pk]) == {token.pk}


def test_a_new_pepper_serves_new_tokens_while_old_ones_still_work(owner: User, settings: object) -> None:
    _old, old_secret = make(owner)
    settings.TOKEN_PEPPERS = {**settings.TOKEN_PEPPERS, 2: "newer"}  # type: ignore[attr-defined]
    new, new_secret = make(owner)
    assert new.pepper == 2
    assert verify(old_secret) and verify(new_secret)


def test_verifying_costs_one_query_and_one_write_a_minute(
    owner: User, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    token, secret = make(owner)
    with time_machine.travel(dt.datetime(2030, 1, 1, tzinfo=dt.UTC), tick=False) as clock:
        with django_assert_num_queries(2):
            verify(secret)
        with django_assert_num_queries(1):
            actor_for(verify(secret))
        clock.shift(61)
        with django_assert_num_queries(2):
            verify(secret)
        token.refresh_from_db()
        assert token.last_used_at == timezone.now()


def test_rotation_gives_a_new_secret_of_the_same_rights_and_ends_the_old(owner: User) -> None:
    token, secret = make(owner, scopes=("read",), expires_at=timezone.now() + dt.timedelta(days=10))
    fresh, fresh_secret = rotate_token(actor=actor(owner), token=token)
    assert refusal(secret) == "token_revoked"
    assert verify(fresh_secret).scopes == ["read"]
    assert fresh.expires_at is not None
    assert abs(fresh.expires_at - timezone.now() - dt.timedelta(days=10)) < dt.timedelta(minutes=1)
    with pytest.raises(StudioError) as caught:
        rotate_token(actor=actor(owner), token=token)
    assert caught.value.status == 409


def test_scopes_cap_what_the_persons_role_allows(owner: User, project: Project) -> None:
    def may(scopes: tuple[str, ...]) -> set[Action]:
        _row, secret = make(owner, scopes=scopes)
        who = actor_for(verify(secret))
        return {action for action in Action if Project.objects.visible_to(who, action).exists()}

    assert may(("read",)) == {Action.VIEW}
    assert may(("write",)) == {Action.VIEW, Action.RUN}
    assert may(("admin",)) == set(Action)


def test_a_project_token_reaches_its_project_only_and_never_owns_it(
    owner: User, project: Project, other_project: Project
) -> None:
    _row, secret = create_token(
        actor=actor(owner), kind=TokenKind.PROJECT, name="ci", project=project, scopes=("admin",)
    )
    who = actor_for(verify(secret))
    assert list(Project.objects.visible_to(who, Action.ADMIN)) == [project]
    assert not Project.objects.visible_to(who, Action.OWN).exists()


def test_a_client_token_is_that_client_and_sees_no_rows(project: Project, client_token: ClientToken) -> None:
    client, secret = client_token(project)
    who = actor_for(verify(secret))
    assert (who.client_id, who.project_id) == (client.pk, project.pk)
    assert not Project.objects.visible_to(who).exists()


def test_an_enrolment_token_sees_nothing_at_all(owner: User, project: Project) -> None:
    _row, secret = create_token(actor=actor(owner), kind=TokenKind.ENROLMENT, name="lab", project=project)
    who = actor_for(verify(secret))
    assert who.project_id == project.pk and who.actions == frozenset()
    assert not Project.objects.visible_to(who).exists()


@pytest.mark.parametrize("kind", [TokenKind.PROJECT, TokenKind.ENROLMENT])
def test_only_a_projects_admins_make_its_tokens(
    kind: str, project: Project, admin: User, member: User, viewer: User, stranger: User
) -> None:
    assert create_token(actor=actor(admin), kind=kind, name="ci", project=project)
    for user, status in ((member, 403), (viewer, 403), (stranger, 404)):
        with pytest.raises(StudioError) as caught:
            create_token(actor=actor(user), kind=kind, name="ci", project=project)
        assert caught.value.status == status


def test_nobody_makes_a_token_that_may_do_more_than_their_own(owner: User) -> None:
    _row, secret = make(owner, scopes=("write",))
    weak = actor_for(verify(secret))
    with pytest.raises(StudioError) as caught:
        create_token(actor=weak, kind=TokenKind.USER, name="stronger", scopes=("admin",))
    assert caught.value.status == 403
    strong, _secret = make(owner, scopes=("admin",))
    with pytest.raises(StudioError) as caught:
        rotate_token(actor=weak, token=strong)
    assert caught.value.status == 403
    _row, secret = make(owner, scopes=("read",))
    with pytest.raises(StudioError) as caught:
        create_token(actor=actor_for(verify(secret)), kind=TokenKind.USER, name="same", scopes=("read",))
    assert caught.value.status == 403


def test_nobody_revokes_another_persons_token(owner: User, admin: User, project: Project) -> None:
    token, secret = make(owner)
    for who in (actor(admin), Actor(project_id=project.pk), Actor()):
        with pytest.raises(StudioError) as caught:
            revoke_token(actor=who, token=token)
        assert caught.value.status == 404
    assert verify(secret)


def test_dead_tokens_are_told_apart_in_one_query(
    owner: User, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    alive, _ = make(owner)
    revoked, _ = make(owner)
    expired, _ = make(owner)
    gone, _ = make(owner)
    gone_id = gone.pk
    revoke_token(actor=actor(owner), token=revoked)
    Token.objects.filter(pk=expired.pk).update(expires_at=timezone.now() - dt.timedelta(seconds=5))
    gone.delete()
    with django_assert_num_queries(1):
        assert dead_tokens([alive.pk, revoked.pk, expired.pk, gone_id]) == {revoked.pk, expired.pk, gone_id}
    with django_assert_num_queries(0):
        assert dead_tokens([]) == set()
