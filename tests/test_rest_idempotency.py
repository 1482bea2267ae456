"""A creating request with an `Idempotency-Key` that is repeated creates once, and is answered alike."""

from __future__ import annotations

import datetime as dt
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import time_machine
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.utils import timezone
from rest_framework.parsers import JSONParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from foundation.idempotency import body_sha256, forget_old_answers
from foundation.models import IdempotentAnswer
from projects import services
from projects.models import Project, User
from projects.tokens.models import Token
from tests.cast import ApiFor

PROJECTS = "/api/v1/projects/"


def post(http: Any, name: str = "Wind", key: str = "k1", url: str = PROJECTS, **more: Any) -> Any:
    return http.post(url, {"name": name, **more}, HTTP_IDEMPOTENCY_KEY=key)


def test_a_repetition_creates_nothing_and_is_answered_alike(owner: User, api: ApiFor) -> None:
    first, second = post(api(owner)), post(api(owner))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert second["Idempotency-Replayed"] == "true" and "Idempotency-Replayed" not in first
    assert Project.objects.count() == 1


def test_another_body_under_the_same_key_is_a_conflict(owner: User, api: ApiFor) -> None:
    post(api(owner))
    refused = post(api(owner), name="Sun")
    assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_conflict")
    assert Project.objects.count() == 1


def test_the_order_of_fields_is_no_other_body(owner: User, api: ApiFor) -> None:
    http = api(owner)
    bodies = ('{"name": "Wind", "description": "d"}', '{"description": "d",\n "name": "Wind"}')
    answers = [
        http.post(PROJECTS, body, content_type="application/json", HTTP_IDEMPOTENCY_KEY="k")
        for body in bodies
    ]
    assert answers[0].json() == answers[1].json()


def test_keys_are_of_one_person_and_one_route(owner: User, stranger: User, api: ApiFor) -> None:
    post(api(owner))
    assert post(api(stranger), name="Sun").status_code == 201
    assert post(api(owner), name="laptop", url="/api/v1/tokens/").status_code == 201
    assert Project.objects.count() == 2


def test_a_refused_request_may_be_mended_under_its_key(owner: User, api: ApiFor) -> None:
    assert post(api(owner), name="").status_code == 400
    assert post(api(owner), name="Wind").status_code == 201


def test_after_a_day_the_key_is_free_again(owner: User, api: ApiFor) -> None:
    post(api(owner))
    IdempotentAnswer.objects.update(created_at=timezone.now() - dt.timedelta(hours=24, seconds=1))
    assert post(api(owner), name="Sun").status_code == 201


def test_old_answers_are_forgotten(owner: User, api: ApiFor) -> None:
    post(api(owner))
    assert forget_old_answers() == 0
    with time_machine.travel(timezone.now() + dt.timedelta(hours=25)):
        assert forget_old_answers() == 1


def test_a_secret_that_is_shown_once_lies_readable_in_no_row(owner: User, api: ApiFor) -> None:
    http = api(owner)
    first, second = (post(http, name="laptop", url="/api/v1/tokens/") for _ in range(2))
    secret = first.json()["token"]
    assert second.json()["token"] == secret
    assert Token.objects.count() == 1
    kept = str(IdempotentAnswer.objects.values().get())
    assert secret not in kept and secret.split("_", 2)[2] not in kept


def test_a_first_request_that_died_is_taken_over_after_a_minute(
    owner: User, api: ApiFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foundation.idempotency.WAIT_S", 0.1)
    post(api(owner))
    dead = IdempotentAnswer.objects.get()
    Project.objects.all().delete()
    IdempotentAnswer.objects.update(status=None, body=None)
    waiting = post(api(owner))
    assert (waiting.status_code, waiting.json()["code"]) == (409, "in_progress")
    assert waiting["Retry-After"] == "1"
    IdempotentAnswer.objects.filter(pk=dead.pk).update(created_at=timezone.now() - dt.timedelta(seconds=61))
    assert post(api(owner)).status_code == 201
    assert Project.objects.count() == 1


def test_a_first_request_that_wakes_after_it_was_taken_over_leaves_nothing(
    owner: User, api: ApiFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = services.create_project

    def slow(**given: Any) -> Project:
        made = real(**given)
        IdempotentAnswer.objects.update(
            created_at=timezone.now() + dt.timedelta(seconds=1)
        )  # somebody took over
        return made

    monkeypatch.setattr(services, "create_project", slow)
    assert post(api(owner)).status_code == 409
    assert not Project.objects.exists()


@pytest.mark.parametrize("key", ["", "x" * 201, "a\tb"])
def test_a_key_that_cannot_be_one_is_refused(key: str, owner: User, api: ApiFor) -> None:
    refused = post(api(owner), key=key)
    assert (refused.status_code, refused.json()["field"]) == (400, "Idempotency-Key")


def test_files_are_told_apart_by_field_name_and_content_and_left_ready_to_read() -> None:
    def digest(field: str, name: str, content: bytes, text: str = "x") -> str:
        raw = APIRequestFactory().post(
            "/", {"text": text, field: SimpleUploadedFile(name, content)}, format="multipart"
        )
        request = Request(raw, parsers=[MultiPartParser(), JSONParser()])
        made = body_sha256(request)
        file = request.FILES[field]
        assert hashlib.sha256(file.read()).digest() == hashlib.sha256(content).digest()
        return made

    same = digest("file", "a.bin", b"1" * 3_000_000)
    assert same == digest("file", "a.bin", b"1" * 3_000_000)
    others = [
        digest("file", "a.bin", b"2" * 3_000_000),
        digest("file", "b.bin", b"1" * 3_000_000),
        digest("other", "a.bin", b"1" * 3_000_000),
        digest("file", "a.bin", b"1" * 3_000_000, text="y"),
    ]
    assert len({same, *others}) == 5


@pytest.mark.django_db(transaction=True)
def test_two_at_once_make_one_row_and_both_hear_of_it(owner: User, api: ApiFor) -> None:
    clients = [api(owner) for _ in range(4)]

    def go(http: Any) -> tuple[int, str]:
        try:
            answer = post(http)
            return answer.status_code, answer.json().get("slug", "")
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(go, clients))
    assert answers == {(201, Project.objects.get().slug)}
