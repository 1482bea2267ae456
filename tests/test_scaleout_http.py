"""Scaleout's HTTP: enrolling, refreshing, logging in, uploading in chunks, and commands."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import time_machine
from django.test import Client as Browser
from django.utils import timezone
from rest_framework.test import APIClient

from clients_app.models import Client, Registration
from federation.models.models import ComputePackage, Model
from federation.models.services import chunked
from projects.models import Project, User
from projects.tokens import tickets
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.services import create_token
from projects.tokens.verify import verify
from tests.archives import tar_bytes
from tests.cast import ApiFor, actor
from tests.scaleout_wire import B, W, npz

pytestmark = pytest.mark.django_db

V1 = "/api/v1"


@pytest.fixture
def admin_token(owner: User, project: Project) -> str:
    return create_token(
        actor=actor(owner), kind=TokenKind.PROJECT, name="ci", project=project, scopes=("admin",)
    )[1]


@pytest.fixture
def enrolment(api: ApiFor, admin_token: str) -> str:
    made = api(admin_token).post(f"{V1}/auth/enrollment-tokens", {"name": "lab", "expires_in_hours": 2})
    assert made.status_code == 201
    return str(made.json()["token"])


def claims(ticket: str) -> dict[str, Any]:
    return jwt.decode(ticket, options={"verify_signature": False})


# --- enrolling ----------------------------------------------------------------------------------------------------
def test_a_project_makes_enrolment_tickets_that_expire(enrolment: str, project: Project) -> None:
    row = verify(enrolment)
    assert (row.kind, row.project) == (TokenKind.ENROLMENT, project)
    assert row.expires_at is not None
    assert abs(row.expires_at - timezone.now() - dt.timedelta(hours=2)) < dt.timedelta(minutes=1)
    assert claims(enrolment)["role"] == "enrollment"


def test_a_device_enrols_refreshes_and_is_that_client(api: ApiFor, enrolment: str, project: Project) -> None:
    client_id = str(uuid.uuid4())
    made = api(enrolment).post(f"{V1}/clients/enroll", {"name": "north", "client_id": client_id}).json()
    assert made["client_id"] == client_id
    assert claims(made["refresh_token"])["sub"] == client_id
    fresh = (
        api().post(f"{V1}/clients/token", {"refresh_token": made["refresh_token"], "role": "client"}).json()
    )
    assert verify(fresh["access_token"]).client == Client.objects.get(pk=client_id, project=project)
    assert 0 < fresh["expires_in"] <= 3600
    assert "refresh_token" not in fresh


def test_enrolling_without_an_id_or_a_name_makes_both(api: ApiFor, enrolment: str) -> None:
    made = api(enrolment).post(f"{V1}/clients/enroll").json()
    assert Client.objects.get(pk=made["client_id"]).name.startswith("device-")


def test_enrolling_the_same_id_again_is_the_same_client_under_its_own_name(
    api: ApiFor, enrolment: str
) -> None:
    body = {"name": "north", "client_id": str(uuid.uuid4())}
    first = api(enrolment).post(f"{V1}/clients/enroll", body).json()
    again = api(enrolment).post(f"{V1}/clients/enroll", {"client_id": body["client_id"]}).json()
    assert Client.objects.get().name == "north"
    assert api().post(f"{V1}/clients/token", {"refresh_token": first["refresh_token"]}).status_code == 401
    assert api().post(f"{V1}/clients/token", {"refresh_token": again["refresh_token"]}).status_code == 200


def test_the_id_of_another_projects_client_is_refused(
    api: ApiFor, enrolment: str, other_project: Project
) -> None:
    foreign = Client.objects.create(project=other_project, name="theirs")
    refused = api(enrolment).post(f"{V1}/clients/enroll", {"client_id": str(foreign.pk)})
    assert refused.status_code == 400 and "taken" in refused.json()["message"]
    assert not Registration.objects.exists()


@pytest.mark.parametrize(
    "body", [{"client_id": "no id"}, {"client_id": 7}, {"name": 7}, {"name": "x" * 121}, []]
)
def test_wrong_fields_are_refused_with_a_message(body: Any, api: ApiFor, enrolment: str) -> None:
    refused = api(enrolment).post(f"{V1}/clients/enroll", body)
    assert refused.status_code == 400 and list(refused.json()) == ["message"]
    assert not Client.objects.exists()


def test_only_an_enrolment_ticket_enrols(api: ApiFor, admin_token: str) -> None:
    for http in (api(), api(admin_token), api("x.y.z")):
        refused = http.post(f"{V1}/clients/enroll", {"name": "north"})
        assert refused.status_code == 401 and list(refused.json()) == ["message"]


def test_a_refresh_with_anything_else_is_401(api: ApiFor, admin_token: str, enrolment: str) -> None:
    access = api().post("/api/auth/refresh", {"refresh_token": admin_token}).json()["access_token"]
    for wrong in ("", "x", "x.y.z", access):
        assert api().post("/api/auth/refresh", {"refresh_token": wrong}).status_code == 401
    assert verify(access).kind == TokenKind.PROJECT


# --- scaleout login -----------------------------------------------------------------------------------------------
@pytest.fixture
def browser(owner: User) -> Browser:
    made = Browser()
    made.force_login(owner, backend="django.contrib.auth.backends.ModelBackend")
    return made


def test_a_person_lets_a_command_line_act_in_one_project(
    api: ApiFor, browser: Browser, project: Project, owner: User
) -> None:
    begun = api().post("/api/cli-auth/init").json()
    asked = {"requestId": begun["requestId"], "pollToken": begun["pollToken"]}
    assert api().get("/api/cli-auth/status", asked).json() == {"status": "pending"}
    page = begun["loginUrl"].removeprefix("http://testserver")
    assert project.name in browser.get(page).content.decode()
    assert b"Go back to your terminal" in browser.post(page, {"project": project.slug}).content
    done = api().get("/api/cli-auth/status", asked).json()
    assert done["status"] == "done" and done["api_url"] == "http://testserver"
    assert api().get("/api/cli-auth/status", asked).json()["status"] == "error", "it is given once"
    access = api().post("/api/auth/refresh", {"refresh_token": done["refresh_token"]}).json()["access_token"]
    row = verify(access)
    assert (row.user, row.project) == (owner, project)
    assert api(access).get(f"{V1}/clients/count").json() == 0


def test_nobody_fetches_a_login_without_its_poll_token(
    api: ApiFor, browser: Browser, project: Project
) -> None:
    begun = api().post("/api/cli-auth/init").json()
    browser.post(begun["loginUrl"].removeprefix("http://testserver"), {"project": project.slug})
    stolen = {"requestId": begun["requestId"], "pollToken": "guessed"}
    assert api().get("/api/cli-auth/status", stolen).json()["status"] == "error"
    assert not Token.objects.exists()


def test_a_login_is_approved_only_for_a_project_that_one_sees_and_by_who_is_logged_in(
    api: ApiFor, browser: Browser, other_project: Project
) -> None:
    page = api().post("/api/cli-auth/init").json()["loginUrl"].removeprefix("http://testserver")
    assert browser.post(page, {"project": other_project.slug}).status_code == 404
    assert Browser().get(page).status_code == 302
    assert browser.get("/login/command-line/unknown/").status_code == 404


# --- uploads ------------------------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def data_folder(settings: Any, tmp_path: Path) -> Iterator[Path]:
    settings.DATA_DIR = tmp_path
    yield tmp_path / "chunked"


Send = Callable[..., Any]


def begin(http: APIClient, size: int, chunk: int = 1024) -> str:
    answer = http.post(
        f"{V1}/file-upload/init", {"file_name": "../x.tgz", "file_size": size, "chunk_size": chunk}
    )
    assert answer.status_code == 200, answer.json()
    return str(answer.json()["upload_id"])


def chunk(http: APIClient, upload_id: str, index: Any, data: bytes) -> Any:
    return http.generic(
        "POST",
        f"{V1}/file-upload/{upload_id}/chunk",
        data,  # type: ignore[arg-type]  # bytes are fine
        content_type="application/octet-stream",
        headers={"X-Chunk-Index": str(index)},
    )


def send(http: APIClient, body: bytes, size: int = 1024) -> str:
    upload_id = begin(http, len(body), size)
    for index, at in enumerate(range(0, len(body), size)):
        assert chunk(http, upload_id, index, body[at : at + size]).status_code == 200
    done = http.post(f"{V1}/file-upload/{upload_id}/complete")
    assert done.status_code == 200, done.json()
    return str(done.json()["file_token"])


def test_a_package_and_a_model_come_in_chunks(
    api: ApiFor, admin_token: str, project: Project, data_folder: Path
) -> None:
    http = api(admin_token)
    package = tar_bytes({"scaleout.yaml": b"entry_points: {startup: startup.py}", "startup.py": b"x" * 5000})
    fields = {
        "name": "edge",
        "helper": "numpyhelper",
        "file_token": send(http, package),
        "file_name": "p.tgz",
    }
    made = http.post(f"{V1}/packages/", fields, format="multipart")
    assert made.status_code == 200, made.json()
    row = ComputePackage.objects.get(project=project)
    assert (row.name, row.form, row.helper) == ("edge", "importer", "numpyhelper")
    body = {"helper": "numpyhelper", "file_token": send(http, npz([W, B]))}
    assert http.post(f"{V1}/models/", body, format="multipart").status_code == 200
    assert Model.objects.get(project=project).kind == "seed"
    assert list(data_folder.iterdir()) == [], "what was taken is gone"
    assert http.post(f"{V1}/models/", body, format="multipart").status_code == 404, "a token is good once"


def test_chunks_come_in_order_and_the_last_may_be_sent_again(api: ApiFor, admin_token: str) -> None:
    http = api(admin_token)
    upload_id = begin(http, 2500)
    assert chunk(http, upload_id, 1, b"b" * 1024).status_code == 409
    assert chunk(http, upload_id, 0, b"a" * 1024).status_code == 200
    assert chunk(http, upload_id, 0, b"a" * 1024).status_code == 200
    assert chunk(http, upload_id, 1, b"b" * 1000).status_code == 400, "only the last chunk is shorter"
    assert chunk(http, upload_id, 2, b"b" * 452).status_code == 409
    assert http.post(f"{V1}/file-upload/{upload_id}/complete").status_code == 409
    assert chunk(http, upload_id, 1, b"b" * 1024).status_code == 200
    assert chunk(http, upload_id, 0, b"c" * 1024).status_code == 409
    assert chunk(http, upload_id, 2, b"b" * 452).status_code == 200
    assert chunk(http, upload_id, 3, b"x").status_code == 400
    assert http.post(f"{V1}/file-upload/{upload_id}/complete").status_code == 200
    assert http.post(f"{V1}/file-upload/{upload_id}/complete").status_code == 404


@pytest.mark.parametrize("index", ["", "x", "-1", "1.5", "9" * 30])
def test_a_chunk_needs_its_number(index: str, api: ApiFor, admin_token: str) -> None:
    http = api(admin_token)
    assert chunk(http, begin(http, 10), index, b"x" * 10).status_code == 400


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"file_size": 0}, 400),
        ({"file_size": -1}, 400),
        ({"file_size": 1 << 60}, 413),
        ({"file_size": "many"}, 400),
        ({"file_size": True}, 400),
        ({"file_size": 10, "chunk_size": 1}, 400),
        ({"file_size": 10, "chunk_size": 1 << 40}, 400),
        ({}, 400),
    ],
)
def test_an_upload_of_an_absurd_size_does_not_begin(
    fields: dict[str, Any], status: int, api: ApiFor, admin_token: str, data_folder: Path
) -> None:
    refused = api(admin_token).post(f"{V1}/file-upload/init", {"file_name": "x", **fields})
    assert refused.status_code == status and list(refused.json()) == ["message"]
    assert not data_folder.exists() or not list(data_folder.iterdir())


def test_an_upload_belongs_to_who_began_it(
    api: ApiFor, admin_token: str, stranger: User, other_project: Project
) -> None:
    http = api(admin_token)
    theirs = api(
        create_token(
            actor=actor(stranger), kind=TokenKind.PROJECT, name="ci", project=other_project, scopes=("admin",)
        )[1]
    )
    upload_id = begin(http, 10)
    assert chunk(theirs, upload_id, 0, b"x" * 10).status_code == 404
    for what in ("complete", "abort"):
        assert theirs.post(f"{V1}/file-upload/{upload_id}/{what}").status_code == 404
    token = send(http, npz([W, B]))
    body = {"helper": "numpyhelper", "file_token": token}
    assert theirs.post(f"{V1}/models/", body, format="multipart").status_code == 404
    assert http.post(f"{V1}/models/", body, format="multipart").status_code == 200


def test_an_aborted_upload_is_gone_and_a_forgotten_one_goes(
    api: ApiFor, admin_token: str, data_folder: Path
) -> None:
    http = api(admin_token)
    upload_id = begin(http, 10)
    assert http.post(f"{V1}/file-upload/{upload_id}/abort").status_code == 200
    assert list(data_folder.iterdir()) == []
    begin(http, 10)
    with time_machine.travel(timezone.now() + dt.timedelta(seconds=chunked.STALE_S + 5)):
        kept = begin(http, 10)
    assert {path.stem for path in data_folder.iterdir()} == {kept}


def test_nobody_fills_the_disk_with_uploads_that_never_end(api: ApiFor, admin_token: str) -> None:
    http = api(admin_token)
    for _ in range(chunked.OPEN_AT_ONCE):
        begin(http, 10)
    refused = http.post(f"{V1}/file-upload/init", {"file_name": "x", "file_size": 10, "chunk_size": 1024})
    assert refused.status_code == 429


def test_a_refused_package_leaves_nothing(
    api: ApiFor, admin_token: str, project: Project, data_folder: Path
) -> None:
    http = api(admin_token)
    fields = {"name": "edge", "file_token": send(http, b"no archive")}
    assert http.post(f"{V1}/packages/", fields, format="multipart").status_code == 400
    assert not ComputePackage.objects.exists() and list(data_folder.iterdir()) == []


# --- the rest -----------------------------------------------------------------------------------------------------
def test_a_command_without_a_client_is_refused_with_a_message(api: ApiFor, admin_token: str) -> None:
    http = api(admin_token)
    refused = http.post(f"{V1}/control/run_command", {"command_type": "Custom_echo", "parameters": {}})
    assert refused.status_code == 400 and "online" in refused.json()["message"]
    assert http.get(f"{V1}/commands/").json() == {"count": 0, "result": []}
    assert http.get(f"{V1}/commands/count").json() == 0
    assert http.get(f"{V1}/commands/{uuid.uuid4()}").status_code == 404
    assert http.post(f"{V1}/control/stop").status_code == 400
    assert http.post(f"{V1}/control/continue").status_code == 400


def test_a_status_that_is_posted_is_an_event(api: ApiFor, admin_token: str) -> None:
    http = api(admin_token)
    assert http.post(f"{V1}/statuses/", {"status": "done", "log_level": "WARNING"}).status_code == 201
    listed = http.get(f"{V1}/statuses/").json()["result"]
    assert (listed[0]["status"], listed[0]["log_level"]) == ("done", "WARNING")


def test_other_projects_enrolment_tickets_do_not_list_anything(api: ApiFor, enrolment: str) -> None:
    assert tickets.is_ticket(enrolment)
    assert api(enrolment).get(f"{V1}/clients/").status_code == 401
