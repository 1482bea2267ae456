"""Compute packages over REST: upload, list, download, delete, and who may."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from rest_framework.test import APIClient

from federation.models.models import ComputePackage
from foundation import storage
from projects.models import Project, User
from tests.archives import content_of, tar_bytes, upload
from tests.cast import ApiFor, ClientToken

pytestmark = pytest.mark.django_db
PACKAGES = "/api/v1/projects/digits-1/packages/"


def post(http: APIClient, name: str = "digits", body: bytes | None = None, **more: Any) -> Any:
    fields = {"name": name, "file": upload(tar_bytes() if body is None else body, "client.tgz")}
    return http.post(PACKAGES, fields, format="multipart", **more)


def test_an_uploaded_package_is_described_listed_and_comes_back_byte_for_byte(
    api: ApiFor, member: User, viewer: User, project: Project
) -> None:
    body = tar_bytes()
    made = post(api(member), body=body)
    assert made.status_code == 201
    told = made.json()
    assert told["sha256"] == hashlib.sha256(body).hexdigest()
    assert (told["file_name"], told["size_bytes"], told["created_by"]) == (
        "client.tgz",
        len(body),
        "mia_member",
    )
    assert told["entry_points"]["train"] == "python train.py"
    assert "key" not in told
    assert api(viewer).get(PACKAGES).json()["results"] == [told]
    assert api(viewer).get(f"{PACKAGES}{told['id']}/").json() == told
    got = api(viewer).get(f"{PACKAGES}{told['id']}/download/")
    assert content_of(got) == body
    assert got["ETag"] == f'"{told["sha256"]}"'
    assert got["Content-Disposition"] == 'attachment; filename="client.tgz"'
    assert got["Content-Length"] == str(len(body))


def test_a_refusal_is_one_sentence_of_problem_json(api: ApiFor, member: User, project: Project) -> None:
    refused = post(api(member), body=tar_bytes({"a.py": b""}))
    assert refused.status_code == 400
    assert refused["Content-Type"] == "application/problem+json"
    told = refused.json()
    assert told["code"] == "invalid_package"
    assert "no project file" in told["detail"]
    assert not ComputePackage.objects.exists()


def test_a_request_without_a_file_or_with_an_empty_one_says_so(
    api: ApiFor, member: User, project: Project
) -> None:
    assert "file" in api(member).post(PACKAGES, {"name": "x"}, format="multipart").json()["detail"]
    empty = post(api(member), body=b"")
    assert (empty.status_code, empty.json()["detail"]) == (400, "The compute package is empty.")


def test_a_taken_name_is_a_conflict(api: ApiFor, member: User, project: Project) -> None:
    post(api(member))
    again = post(api(member))
    assert (again.status_code, again.json()["code"]) == (409, "name_taken")


def test_a_repeated_upload_with_one_key_makes_one_package(
    api: ApiFor, member: User, project: Project
) -> None:
    body = tar_bytes()
    first, second = (post(api(member), body=body, HTTP_IDEMPOTENCY_KEY="k1") for _ in range(2))
    assert first.json() == second.json()
    assert ComputePackage.objects.count() == 1
    other = post(api(member), name="other", body=body, HTTP_IDEMPOTENCY_KEY="k1")
    assert other.status_code == 409


def test_a_download_resumes_by_range(api: ApiFor, viewer: User, member: User, project: Project) -> None:
    body = tar_bytes()
    made = post(api(member), body=body).json()
    address = f"{PACKAGES}{made['id']}/download/"
    http = api(viewer)
    rest = http.get(address, HTTP_RANGE="bytes=10-")
    assert rest.status_code == 206
    assert content_of(rest) == body[10:]
    assert rest["Content-Range"] == f"bytes 10-{len(body) - 1}/{len(body)}"
    assert content_of(http.get(address, HTTP_RANGE="bytes=3-6")) == body[3:7]
    assert content_of(http.get(address, HTTP_RANGE="bytes=-4")) == body[-4:]
    assert content_of(http.get(address, HTTP_RANGE=f"bytes=5-{10**15}")) == body[5:]
    beyond = http.get(address, HTTP_RANGE=f"bytes={len(body)}-")
    assert (beyond.status_code, beyond["Content-Range"]) == (416, f"bytes */{len(body)}")
    changed = http.get(address, HTTP_RANGE="bytes=3-6", HTTP_IF_RANGE='"other"')
    assert (changed.status_code, content_of(changed)) == (200, body)
    odd = http.get(address, HTTP_RANGE="lines=1-2")
    assert (odd.status_code, content_of(odd)) == (200, body)


def test_who_has_the_package_already_is_told_so(
    api: ApiFor, viewer: User, member: User, project: Project
) -> None:
    made = post(api(member)).json()
    same = api(viewer).get(f"{PACKAGES}{made['id']}/download/", HTTP_IF_NONE_MATCH=f'"{made["sha256"]}"')
    assert same.status_code == 304


def test_a_client_may_download_the_packages_of_its_own_project_only(
    api: ApiFor, member: User, project: Project, other_project: Project, client_token: ClientToken
) -> None:
    made = post(api(member)).json()
    address = f"{PACKAGES}{made['id']}/download/"
    _ours, ours = client_token(project)
    _theirs, theirs = client_token(other_project)
    allowed = api(ours).get(address)
    assert allowed.status_code == 200
    assert content_of(allowed)
    assert api(theirs).get(address).status_code == 404
    assert api(ours).get(address.replace("digits-1", "elsewhere-1")).status_code == 404
    assert api(ours).get(PACKAGES).status_code == 403


def test_a_viewer_downloads_but_neither_uploads_nor_deletes_and_a_stranger_sees_nothing(
    api: ApiFor, member: User, viewer: User, stranger: User, project: Project
) -> None:
    made = post(api(member)).json()
    one = f"{PACKAGES}{made['id']}/"
    assert post(api(viewer), name="b").status_code == 403
    assert api(viewer).delete(one).status_code == 403
    for address in (PACKAGES, one, f"{one}download/"):
        assert api(stranger).get(address).status_code == 404
        assert api().get(address).status_code == 401
    assert post(api(stranger), name="b").status_code == 404
    assert api(stranger).delete(one).status_code == 404
    assert api(member).delete(one).status_code == 204
    assert api(member).get(one).status_code == 404


def test_a_package_whose_file_is_missing_says_who_can_help(
    api: ApiFor, member: User, project: Project
) -> None:
    made = post(api(member)).json()
    storage.delete(ComputePackage.objects.get().key)
    gone = api(member).get(f"{PACKAGES}{made['id']}/download/")
    assert (gone.status_code, gone.json()["code"]) == (503, "artifact_missing")
