"""Every REST error is problem JSON, whatever went wrong and wherever."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import IntegrityError, OperationalError
from django.test import Client
from rest_framework.test import APIClient

from projects import selectors
from projects.models import Project, User
from tests.cast import PASSWORD, ApiFor, TokenFor

PROJECTS = "/api/v1/projects/"


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    said: dict[str, Any] = answer.json()
    assert said["status"] == status and said["code"] == code
    assert said["type"] == f"urn:studio:{code}" and said["title"]
    assert said["detail"] and "Traceback" not in said["detail"]
    return said


@pytest.mark.django_db
def test_who_sends_nothing_or_a_wrong_token_is_told_how_to_log_in(api: ApiFor) -> None:
    nobody = api().get(PROJECTS)
    assert "Bearer stu_" in problem(nobody, 401, "not_authenticated")["detail"]
    wrong = api("stu_no_such").get(PROJECTS)
    problem(wrong, 401, "invalid_token")
    assert nobody["WWW-Authenticate"].startswith("Bearer") and wrong["WWW-Authenticate"].startswith("Bearer")


def test_unknown_and_forbidden_look_the_same(project: Project, stranger: User, api: ApiFor) -> None:
    unknown = api(stranger).get(f"{PROJECTS}no-such/")
    hidden = api(stranger).get(f"{PROJECTS}{project.slug}/")
    assert problem(unknown, 404, "not_found") == problem(hidden, 404, "not_found")


def test_a_role_that_does_not_reach_is_told_so(project: Project, viewer: User, api: ApiFor) -> None:
    said = problem(api(viewer).patch(f"{PROJECTS}{project.slug}/", {"name": "x"}), 403, "forbidden")
    assert "role" in said["detail"]


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["get", "post", "put", "delete", "options"])
def test_addresses_below_api_that_lead_nowhere(method: str, api: ApiFor) -> None:
    problem(getattr(api(), method)("/api/v2/nothing/"), 404, "not_found")
    said = problem(getattr(api(), method)("/api/v1/tokens"), 404, "not_found")
    assert "slash" in said["detail"]


def test_a_method_that_an_address_does_not_have(owner: User, api: ApiFor) -> None:
    answer = api(owner).delete(PROJECTS)
    problem(answer, 405, "method_not_allowed")
    assert "GET" in answer["Allow"]


def test_field_errors_name_the_field(owner: User, api: ApiFor) -> None:
    said = problem(api(owner).post(PROJECTS, {"name": "", "template": "chess"}), 400, "invalid")
    assert set(said["errors"]) == {"name", "template"}
    assert all(isinstance(text, str) for texts in said["errors"].values() for text in texts)


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b'{"name": NaN}', b"[" * 100_000])
def test_a_body_that_is_no_json(body: bytes, owner: User, api: ApiFor) -> None:
    problem(api(owner).post(PROJECTS, body, content_type="application/json"), 400, "malformed")


@pytest.mark.parametrize("body", ["[]", '"text"', "7", "null"])
def test_json_that_is_no_object(body: str, owner: User, api: ApiFor) -> None:
    problem(api(owner).post(PROJECTS, body, content_type="application/json"), 400, "invalid")


def test_text_with_a_null_character_is_refused_and_breaks_nothing(owner: User, api: ApiFor) -> None:
    answer = api(owner).post(PROJECTS, {"name": "a\x00b"})
    assert answer.status_code == 400
    assert answer["Content-Type"] == "application/problem+json"
    assert api(owner).get(f"{PROJECTS}?name=a%00b").status_code in (200, 400)


def test_a_body_of_a_kind_nobody_reads(owner: User, api: ApiFor) -> None:
    problem(api(owner).post(PROJECTS, "a=1", content_type="text/csv"), 415, "unsupported_media_type")


def test_a_body_that_is_too_large(owner: User, api: ApiFor, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    problem(api(owner).post(PROJECTS, {"name": "x", "description": "y" * 2000}), 413, "too_large")
    form = {"name": "x", "description": "y" * 2000}
    problem(api(owner).post(PROJECTS, form, format="multipart"), 413, "too_large")


def test_an_answer_in_a_kind_nobody_writes(owner: User, api: ApiFor) -> None:
    problem(api(owner).get(PROJECTS, HTTP_ACCEPT="image/png"), 406, "not_acceptable")


def test_a_cookie_log_in_without_the_forms_token_changes_nothing(owner: User) -> None:
    http = APIClient(enforce_csrf_checks=True)
    http.login(username=owner.username, password=PASSWORD)
    said = problem(http.post(PROJECTS, {"name": "x"}), 403, "forbidden")
    assert "CSRF" in said["detail"]
    assert not Project.objects.exists()


def test_a_token_needs_no_cookie_and_no_forms_token(owner: User, user_token: TokenFor) -> None:
    http = APIClient(enforce_csrf_checks=True)
    http.credentials(HTTP_AUTHORIZATION=f"Bearer {user_token(owner)}")
    assert http.post(PROJECTS, {"name": "x"}).status_code == 201


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (RuntimeError("/etc/secret and SELECT"), 500, "internal"),
        (IntegrityError("duplicate key value"), 409, "conflict"),
        (OperationalError("server closed the connection at 10.0.0.1"), 503, "unavailable"),
    ],
)
def test_what_nobody_foresaw_tells_no_internals_and_names_a_reference(
    raised: Exception, status: int, code: str, owner: User, api: ApiFor, monkeypatch: Any, caplog: Any
) -> None:
    def fail(*_args: Any, **_named: Any) -> None:
        raise raised

    monkeypatch.setattr(selectors, "projects_of", fail)
    said = problem(api(owner).get(PROJECTS), status, code)
    assert str(raised) not in str(said)
    assert said["reference"] in caplog.text and str(raised) in caplog.text


@pytest.mark.django_db
def test_a_request_for_a_foreign_host_is_refused_in_the_same_shape() -> None:
    problem(Client(headers={"host": "evil.example"}).get(PROJECTS), 400, "wrong_host")


def test_a_person_in_a_browser_sees_errors_on_the_browsable_page(owner: User, api: ApiFor) -> None:
    answer = api(owner).get(f"{PROJECTS}no-such/", HTTP_ACCEPT="text/html")
    assert answer.status_code == 404
    assert answer["Content-Type"].startswith("text/html")
    assert "not_found" in answer.content.decode()


def test_a_file_where_a_text_belongs_is_a_field_error(owner: User, api: ApiFor) -> None:
    file = SimpleUploadedFile("name.txt", b"x")
    said = problem(api(owner).post(PROJECTS, {"name": file}, format="multipart"), 400, "invalid")
    assert "name" in said["errors"]
