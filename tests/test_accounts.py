"""Accounts: sign up, log in, log out, reset a password, by page and by script."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core import mail
from django.db import connection
from django.test import Client

from projects.models import User
from tests.cast import PASSWORD, ApiFor

ACCOUNTS = "/api/v1/accounts/"
LOGIN = "/api/v1/auth/token/"
NEW = {"username": "nora", "email": "Nora@Example.org", "password": "a-long-phrase-42"}
pytestmark = pytest.mark.django_db


def page_sign_up(**more: str) -> Client:
    http = Client()
    http.answer = http.post(  # type: ignore[attr-defined]
        "/accounts/signup/",
        {"username": "nora", "email": "nora@example.org", "password1": "a-long-phrase-42",
         "password2": "a-long-phrase-42", **more},
    )  # fmt: skip
    return http


def logged_in(http: Client) -> bool:
    return "_auth_user_id" in http.session


def test_a_script_signs_up_and_logs_in_by_name_or_e_mail(api: ApiFor) -> None:
    made = api().post(ACCOUNTS, NEW)
    assert (made.status_code, made.json()) == (201, {"username": "nora", "email": "nora@example.org"})
    for login in ("nora", "NORA", "nora@example.org", " Nora@EXAMPLE.org "):
        answer = api().post(LOGIN, {"login": login, "password": NEW["password"], "name": "ci"})
        assert answer.status_code == 201
        me = api(answer.json()["token"]).get("/api/v1/me/").json()
        assert me["user"] == {"username": "nora", "email": "nora@example.org"}
        assert me["token"]["kind"] == "user" and me["token"]["name"] == "ci"


def test_passwords_are_kept_as_argon2() -> None:
    from studio import settings

    assert settings.PASSWORD_HASHERS[0] == "django.contrib.auth.hashers.Argon2PasswordHasher"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("username", "OLIVIA_owner"),
        ("username", "somebody@example.org"),
        ("username", "оlivia"),  # begins with a Cyrillic letter
        ("email", "OLIVIA_OWNER@example.org"),
        ("email", "no address"),
        ("password", "12345678"),
        ("password", "short"),
        ("password", "nora@example.org"),
    ],
)
def test_sign_up_says_which_field_is_wrong_on_the_page_and_in_the_api(
    field: str, value: str, owner: User, api: ApiFor
) -> None:
    refused = api().post(ACCOUNTS, {**NEW, field: value})
    assert refused.status_code == 400
    assert list(refused.json()["errors"]) == [field]
    page = {"password1": value, "password2": value} if field == "password" else {field: value}
    http = page_sign_up(**page)
    assert http.answer.status_code == 200 and not logged_in(http)  # type: ignore[attr-defined]
    assert User.objects.count() == 1


def test_the_page_signs_up_logs_out_by_post_only_and_logs_in_again() -> None:
    http = page_sign_up()
    assert http.answer.status_code == 302 and logged_in(http)  # type: ignore[attr-defined]
    http.get("/accounts/logout/")
    assert logged_in(http)
    http.post("/accounts/logout/")
    assert not logged_in(http)
    for login in ("Nora", "NORA@example.org"):
        http = Client()
        http.post("/accounts/login/", {"login": login, "password": "a-long-phrase-42"})
        assert logged_in(http)


def test_a_forgotten_password_is_reset_by_mail(owner: User) -> None:
    http = Client()
    http.post("/accounts/password/reset/", {"email": "OLIVIA_owner@example.org"})
    link = re.search(r"http://testserver(/accounts/password/reset/key/\S+)", str(mail.outbox[-1].body))
    assert link
    form = http.get(link[1], follow=True)
    http.post(form.redirect_chain[-1][0], {"password1": "another-phrase-9", "password2": "another-phrase-9"})
    owner.refresh_from_db()
    assert owner.check_password("another-phrase-9")
    assert http.get(link[1], follow=True).status_code == 200
    again = Client()
    again.post("/accounts/login/", {"login": owner.username, "password": "another-phrase-9"})
    assert logged_in(again)


def test_asking_for_a_strangers_reset_tells_nothing_and_mails_nobody(owner: User) -> None:
    known = Client().post("/accounts/password/reset/", {"email": owner.email})
    count = len(mail.outbox)
    unknown = Client().post("/accounts/password/reset/", {"email": "nobody@example.org"})
    assert (known.status_code, known["Location"]) == (unknown.status_code, unknown["Location"])
    assert len(mail.outbox) == count


def test_an_operator_closes_sign_up(settings: object, api: ApiFor) -> None:
    settings.SIGNUP_OPEN = False  # type: ignore[attr-defined]
    assert api().post(ACCOUNTS, NEW).status_code == 403
    http = page_sign_up()
    assert http.answer.status_code == 200 and not logged_in(http)  # type: ignore[attr-defined]
    assert not User.objects.exists()


def test_a_wrong_password_an_unknown_name_and_a_closed_account_look_the_same(
    owner: User, api: ApiFor
) -> None:
    closed = User.objects.create_user("cloe", "cloe@example.org", PASSWORD, is_active=False)
    answers = [
        api().post(LOGIN, {"login": login, "password": password})
        for login, password in (
            (owner.username, "wrong"),
            ("nobody", "wrong"),
            ("nobody@example.org", "wrong"),
            (closed.username, PASSWORD),
        )
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0]["WWW-Authenticate"]


def test_guessing_a_password_is_throttled_by_page_and_by_script(owner: User, api: ApiFor) -> None:
    answers = [api().post(LOGIN, {"login": owner.username, "password": f"guess {n}"}) for n in range(7)]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 2
    assert int(answers[-1]["Retry-After"]) > 0
    right = api().post(LOGIN, {"login": owner.username, "password": PASSWORD})
    assert right.status_code == 429  # from this address, for this name
    pages = [
        Client().post("/accounts/login/", {"login": owner.username, "password": f"guess {n}"})
        for n in range(12)
    ]
    assert "Too many" in pages[-1].content.decode() or pages[-1].status_code == 429


def test_a_forged_forwarding_header_does_not_dodge_the_throttle(owner: User, api: ApiFor) -> None:
    codes = [
        api()
        .post(LOGIN, {"login": owner.username, "password": "x"}, HTTP_X_FORWARDED_FOR=f"10.0.0.{number}")
        .status_code
        for number in range(7)
    ]
    assert codes[-1] == 429


@pytest.mark.django_db(transaction=True)
def test_two_pages_that_sign_up_the_same_person_at_once_end_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from projects.accounts import AccountAdapter

    page_sign_up()
    # the second form was checked before the first was written
    monkeypatch.setattr(AccountAdapter, "clean_username", lambda self, username, shallow=False: username)
    http = page_sign_up(username="NORA", email="other@example.org")
    answer = http.answer  # type: ignore[attr-defined]
    assert answer.status_code == 409 and "contradicts" in answer.content.decode()
    assert User.objects.count() == 1


def test_bad_tokens_are_throttled_while_a_good_one_still_works(
    owner: User, api: ApiFor, user_token: object
) -> None:
    good = user_token(owner)  # type: ignore[operator]
    codes = [api("stu_0000000000000000_wrong").get("/api/v1/me/").status_code for _ in range(65)]
    assert codes[0] == 401 and codes[-1] == 429
    assert api(good).get("/api/v1/me/").status_code == 200


def test_without_redis_people_still_log_in(owner: User, api: ApiFor, settings: object) -> None:
    settings.CACHES = {  # type: ignore[attr-defined]
        "default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}  # type: ignore[attr-defined]
    }
    assert api().post(LOGIN, {"login": owner.username, "password": PASSWORD}).status_code == 201
    assert api("stu_0_x").get("/api/v1/me/").status_code == 401
    http = Client()
    http.post("/accounts/login/", {"login": owner.username, "password": PASSWORD})
    assert logged_in(http)


def test_a_log_in_works_although_a_stale_token_is_sent_along(owner: User, api: ApiFor) -> None:
    answer = api("stu_0000000000000000_old").post(LOGIN, {"login": owner.username, "password": PASSWORD})
    assert answer.status_code == 201


def test_the_admin_is_entered_through_the_same_throttled_door(operator: User) -> None:
    answer = Client().get("/admin/", follow=True)
    assert answer.redirect_chain[-1][0].startswith("/accounts/login/")


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_two_who_sign_up_with_one_name_at_once_make_one_account(api: ApiFor) -> None:
    def go(name: str) -> int:
        try:
            return api().post(ACCOUNTS, {**NEW, "username": name}).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        codes = sorted(pool.map(go, ["nora", "Nora"]))
    assert codes[0] == 201 and codes[1] in (400, 409)
    assert User.objects.count() == 1
