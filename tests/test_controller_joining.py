"""How a published client joins: clients/add, the package and its checksum, in statuses that the client survives."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from clients_app.models import Client, Combiner, Registration
from federation.dialects.controller.slashes import collapsed
from federation.models.models import ComputePackage
from projects.models import Project, User
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from tests.archives import content_of, tar_bytes, upload
from tests.cast import ClientToken
from tests.controller_cast import HTTP, AsPerson, Controller
from tests.pages_world import World


def me(**more: Any) -> dict[str, Any]:
    return {
        "name": "north",
        "client_id": str(uuid.uuid4()),
        "preferred_combiner": "",
        "package": "remote",
        **more,
    }


def test_a_device_is_told_its_combiner_in_both_clients_words(furnished: World, enrolment: Controller) -> None:
    asked = me()
    answer = enrolment("POST", "clients/add", asked)
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "assigned",
        "client_id": asked["client_id"],
        "host": "127.0.0.1",
        "port": 9000,
        "fqdn": "",
        "ip": "127.0.0.1",
        "package": "remote",
        "helper_type": "numpyhelper",
        "public_hostname": "127.0.0.1",
        "internal_hostname": "127.0.0.1",
        "grpc_secure": False,
    }
    row = Registration.objects.get(client_id=asked["client_id"])
    assert (row.client.project, row.client.name, row.dialect) == (furnished.project, "north", "fedn")


def test_a_combiner_with_tls_on_443_is_named_by_fqdn(furnished: World, enrolment: Controller) -> None:
    Combiner.objects.update(tls_address="fl.example.org:443")
    said = enrolment("POST", "clients/add", me()).json()
    assert (said["fqdn"], said["host"], said["port"], said["grpc_secure"]) == (
        "fl.example.org", "fl.example.org", 443, True,
    )  # fmt: skip


def test_tls_on_another_port_is_no_address_for_fedn(furnished: World, enrolment: Controller) -> None:
    Combiner.objects.update(tls_address="fl.example.org:9443")
    said = enrolment("POST", "clients/add", me()).json()
    assert (said["fqdn"], said["host"], said["port"]) == ("", "127.0.0.1", 9000)


def test_a_client_that_names_its_version_is_scaleouts(furnished: World, enrolment: Controller) -> None:
    asked = me(client_version="1.1.0")
    enrolment("POST", "clients/add", asked)
    row = Registration.objects.get(client_id=asked["client_id"])
    assert (row.dialect, row.version) == ("scaleout", "1.1.0")


def test_a_device_that_comes_back_is_the_same_client(furnished: World, enrolment: Controller) -> None:
    asked = me()
    for name in ("north", "far north"):
        assert enrolment("POST", "clients/add", {**asked, "name": name}).status_code == 200
    assert Client.objects.get(pk=asked["client_id"]).name == "far north"


@pytest.mark.parametrize("word", ["preferred_combiner", "combiner_preferred"])
def test_the_combiner_that_a_device_prefers_is_given(
    furnished: World, enrolment: Controller, word: str
) -> None:
    alive = Combiner.objects.get()
    Combiner.objects.create(
        name="zz", epoch=1, address="10.0.0.9:1", lease_until=alive.lease_until, started_at=alive.started_at
    )
    said = enrolment("POST", "clients/add", {**me(), "preferred_combiner": None, word: "zz"}).json()
    assert said["host"] == "10.0.0.9"


def test_without_a_package_a_remote_client_is_told_to_come_back(
    furnished: World, enrolment: Controller
) -> None:
    ComputePackage.objects.update(form="importer")
    asked = me()
    answer = enrolment("POST", "clients/add", asked)
    assert (answer.status_code, answer.json()["status"]) == (203, "retry")
    assert Client.objects.filter(pk=asked["client_id"]).exists(), "it shows on the page while it waits"
    assert enrolment("POST", "clients/add", me(package="local")).status_code == 200


def test_without_a_combiner_a_client_is_told_to_come_back(furnished: World, enrolment: Controller) -> None:
    Combiner.objects.update(lease_until=None)
    answer = enrolment("POST", "clients/add", me())
    assert (answer.status_code, answer.json()["message"]) == (203, "No combiner available.")


@pytest.mark.parametrize("token", ["", "None", "stu_0_x", "a.b.c", "ünïcode"])
def test_a_wrong_token_is_401_with_a_message(furnished: World, token: str) -> None:
    if not token.isascii():
        token = token.encode().decode("latin-1")
    answer = Controller(token)("POST", "clients/add", me())
    assert answer.status_code == 401
    assert answer.json()["message"]


def test_a_flood_of_wrong_tokens_never_crashes_a_client(furnished: World, enrolment: Controller) -> None:
    heard = {Controller("stu_0_x")("POST", "clients/add", me()).status_code for _ in range(70)}
    assert heard == {401, 203}
    assert enrolment("POST", "clients/add", me()).status_code == 200, "a good token still passes"


@pytest.mark.parametrize("client_id", ["x", "1234", "../etc", 5, ["a"]])
def test_an_id_that_is_no_uuid_is_refused(furnished: World, enrolment: Controller, client_id: Any) -> None:
    answer = enrolment("POST", "clients/add", me(client_id=client_id))
    assert answer.status_code == 400
    assert "UUID" in answer.json()["message"]


def test_another_projects_client_id_is_refused_and_stays(
    furnished: World, elsewhere: Controller, enrolment: Controller, other_project: Project
) -> None:
    for package in ("local", "remote"):  # the other project has no package, which would be a reason to wait
        answer = elsewhere("POST", "clients/add", me(package=package, client_id=str(furnished.client.pk)))
        assert answer.status_code == 400
    furnished.client.refresh_from_db()
    assert furnished.client.project == furnished.project


def test_a_token_of_another_project_is_401_at_this_projects_address(
    furnished: World, elsewhere: Controller
) -> None:
    elsewhere.prefix = f"/{furnished.project.slug}-fedn-reducer"
    for method, path in (("POST", "clients/add"), ("GET", "packages/download"), ("GET", "packages/checksum")):
        answer = elsewhere(method, path, me() if method == "POST" else None)
        assert answer.status_code == 401, path
        assert "another project" in answer.json()["message"]


def test_a_person_joins_as_far_as_their_role_goes(
    furnished: World, as_person: AsPerson, member: User, viewer: User, stranger: User
) -> None:
    assert as_person(member)("POST", "clients/add", me()).status_code == 200
    assert as_person(viewer)("POST", "clients/add", me()).status_code == 401
    assert as_person(stranger)("POST", "clients/add", me()).status_code == 404


def test_a_clients_own_token_is_good_for_that_client_only(
    furnished: World, client_token: ClientToken
) -> None:
    client, secret = client_token(furnished.project)
    mine = Controller(secret)
    assert mine("POST", "clients/add", me(client_id=str(client.pk))).status_code == 200
    assert mine("POST", "clients/add", me()).status_code == 401


def test_a_revoked_token_is_401(furnished: World, enrolment: Controller) -> None:
    Token.objects.filter(kind=TokenKind.ENROLMENT).update(revoked_at="2020-01-01T00:00:00Z")
    answer = enrolment("POST", "clients/add", me())
    assert (answer.status_code, "revoked" in answer.json()["message"]) == (401, True)


@pytest.mark.parametrize(
    "path",
    ["clients/add", "clients/add/", "/api/v1//clients/add", "/digits-1-fedn-reducer//api/v1/clients/add",
     "/digits-1-fedn-reducer///api//v1/clients//add/"],
)  # fmt: skip
def test_slashes_do_not_matter_and_nothing_redirects(
    furnished: World, enrolment: Controller, path: str
) -> None:
    assert enrolment("POST", path, me()).status_code == 200


@pytest.mark.parametrize(
    ("path", "single"),
    [("//api/v1/packages/download", "/api/v1/packages/download"), ("//projects//x", "//projects//x"),
     ("/x-fedn-reducer//api", "/x-fedn-reducer/api"), ("//x-fedn-reducer", "/x-fedn-reducer")],
)  # fmt: skip
def test_slashes_collapse_in_the_apis_addresses_only(path: str, single: str) -> None:
    assert collapsed(path) == single


# --- the package ---


@pytest.fixture
def uploaded(furnished: World, controller: Controller) -> ComputePackage:
    body = tar_bytes(
        {"fedn.yaml": b"entry_points:\n  train: {command: python train.py}\n", "train.py": b"pass\n"}
    )
    sent = {"file": upload(body), "helper": "numpyhelper", "name": "v1", "description": "first"}
    answer = controller("POST", "packages/", sent)
    assert (answer.status_code, answer.json()) == (200, {"message": "Package uploaded"})
    return ComputePackage.objects.get(name="v1")


def test_a_device_fetches_the_active_package_and_its_checksum(
    uploaded: ComputePackage, enrolment: Controller, controller: Controller, client_token: ClientToken
) -> None:
    _client, secret = client_token(uploaded.project)
    for asked in (enrolment, Controller(secret), controller):
        answer = asked("GET", "packages/download")
        assert answer.status_code == 200
        name = answer["Content-Disposition"].partition("filename=")[2].strip('"')
        assert name.endswith((".tgz", ".tar.gz", ".tar.bz2"))
        assert len(content_of(answer)) == uploaded.size_bytes
        said = {"message": "Checksum created.", "checksum": uploaded.sha256}
        assert asked.get("packages/checksum") == asked.get(f"packages/checksum?name={name}") == said


def test_two_packages_of_one_file_name_have_checksums_of_their_own(
    uploaded: ComputePackage, controller: Controller, enrolment: Controller
) -> None:
    body = tar_bytes(
        {"fedn.yaml": b"entry_points:\n  train: {command: python other.py}\n", "other.py": b"pass\n"}
    )
    controller("POST", "packages/", {"file": upload(body), "helper": "numpyhelper", "name": "v1"})
    newest = ComputePackage.objects.get(name="v1 (2)")
    assert newest.file_name == uploaded.file_name
    for row in (uploaded, newest):
        name = row.key.rpartition("/")[2]
        assert enrolment.get(f"packages/checksum?name={name}")["checksum"] == row.sha256
    assert enrolment.get("packages/checksum")["checksum"] == newest.sha256, (
        "the last upload is the active one"
    )


def test_no_package_of_another_project_is_found_by_name(
    uploaded: ComputePackage, elsewhere: Controller
) -> None:
    name = uploaded.key.rpartition("/")[2]
    for path in ("download", "checksum"):
        assert elsewhere("GET", f"packages/{path}?name={name}").status_code == 404


def test_a_device_opens_nothing_else(furnished: World, enrolment: Controller) -> None:
    for path in ("clients/", "models/", "sessions/", "helpers/active", "packages/", "/get_controller_status"):
        assert enrolment("GET", path).status_code == 401, path


@pytest.mark.parametrize("path", ["/api/v1/clients/add", "/digits-1-fedn-reducer/api/v1/clients/add"])
def test_a_host_name_that_is_not_ours_is_told_in_words_that_the_client_reads(
    enrolment: Controller, path: str
) -> None:
    answer = HTTP.post(path, {}, headers={"host": "elsewhere.example.org"})
    assert answer.status_code == 400
    assert "STUDIO_ALLOWED_HOSTS" in answer.json()["message"]
