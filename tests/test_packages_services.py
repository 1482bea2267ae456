"""Uploading compute packages: what is kept, what is refused, and who may."""

from __future__ import annotations

import hashlib

import pytest
from django.conf import settings
from django.core.files.storage import FileSystemStorage

from federation.events.models import Event
from federation.models import services
from federation.models.models import ComputePackage, Model
from federation.models.services.packages import _file_name
from federation.sessions.models import Session
from foundation import storage
from foundation.errors import StudioError
from projects.models import AuditEvent, Project, User
from tests.archives import tar_bytes, upload
from tests.cast import actor

pytestmark = pytest.mark.django_db


def add(user: User, project: Project, name: str = "digits", body: bytes | None = None) -> ComputePackage:
    return services.create_package(
        actor=actor(user), project=project, name=name, description="", upload=upload(body or tar_bytes())
    )


def stored_files(project: Project) -> list[str]:
    store = storage.artifacts()
    assert isinstance(store, FileSystemStorage)
    try:
        return store.listdir(f"packages/{project.pk}")[1]
    except FileNotFoundError:
        return []


def test_a_package_is_stored_under_its_checksum_and_told(member: User, project: Project) -> None:
    body = tar_bytes()
    row = add(member, project, body=body)
    assert row.sha256 == hashlib.sha256(body).hexdigest()
    assert row.size_bytes == len(body)
    with storage.open_artifact(row.key) as kept:
        assert kept.read() == body
    assert row.entry_points["train"] == "python train.py"
    assert Event.objects.get(project=project).kind == "package.created"
    assert AuditEvent.objects.get(verb="package.create").target == str(row.pk)


def test_a_refused_archive_leaves_nothing(member: User, project: Project) -> None:
    with pytest.raises(StudioError):
        add(member, project, body=tar_bytes({"a.py": b""}))
    assert not ComputePackage.objects.exists()
    assert not Event.objects.exists()
    assert stored_files(project) == []


def test_a_name_that_is_taken_is_refused_and_leaves_nothing(member: User, project: Project) -> None:
    add(member, project)
    with pytest.raises(StudioError) as refused:
        add(member, project)
    assert (refused.value.code, refused.value.status) == ("name_taken", 409)
    assert len(stored_files(project)) == 1


def test_the_same_name_in_another_project_is_free(
    member: User, project: Project, stranger: User, other_project: Project
) -> None:
    add(member, project)
    assert add(stranger, other_project).name == "digits"


@pytest.mark.parametrize("name", ["", "   ", "x" * 121, "a\u202eb", "a\x00b"])
def test_a_name_that_nobody_can_read_is_refused(name: str, member: User, project: Project) -> None:
    with pytest.raises(StudioError) as refused:
        add(member, project, name=name)
    assert refused.value.data["field"] == "name"


def test_a_package_over_the_limit_is_refused_before_it_is_read(
    member: User, project: Project, settings: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MAX_PACKAGE_BYTES = 10  # type: ignore[attr-defined]
    with pytest.raises(StudioError) as refused:
        add(member, project, body=b"not an archive at all")
    assert (refused.value.code, refused.value.status) == ("too_large", 413)


def test_a_viewer_may_not_upload_and_a_stranger_sees_no_project(
    viewer: User, stranger: User, project: Project
) -> None:
    for user, status in ((viewer, 403), (stranger, 404)):
        with pytest.raises(StudioError) as refused:
            add(user, project)
        assert refused.value.status == status


@pytest.mark.django_db(transaction=True)
def test_a_deleted_package_takes_its_file_along(member: User, project: Project) -> None:
    row = add(member, project)
    services.delete_package(actor=actor(member), package=row)
    assert not ComputePackage.objects.exists()
    assert stored_files(project) == []


def test_a_package_that_a_session_uses_stays(member: User, project: Project) -> None:
    row = add(member, project)
    seed = Model.objects.create(
        project=project, kind="seed", name="s", key="k", sha256="0", size_bytes=1, layout=[]
    )
    Session.objects.create(
        project=project,
        name="S",
        config={},
        package=row,
        seed_model=seed,
        current_model=seed,
        rounds_wanted=1,
    )
    with pytest.raises(StudioError) as refused:
        services.delete_package(actor=actor(member), package=row)
    assert refused.value.code == "package_in_use"
    assert len(stored_files(project)) == 1


@pytest.mark.parametrize(
    ("given", "suffix", "kept"),
    [
        ("client.tgz", ".tgz", "client.tgz"),
        ("client.tar.gz", ".tgz", "client.tar.gz"),
        ("client.zip", ".tgz", "client.zip.tgz"),
        ('../e"v\r\nil.tgz', ".tgz", "e_v__il.tgz"),
        ("", ".tar.bz2", "package.tar.bz2"),
        (None, ".tgz", "package.tgz"),
    ],
)
def test_a_download_name_is_safe_in_a_header(given: str | None, suffix: str, kept: str) -> None:
    assert _file_name(given, suffix) == kept


def test_the_limits_are_the_documented_ones() -> None:
    assert settings.MAX_PACKAGE_BYTES == 200 * 2**20
