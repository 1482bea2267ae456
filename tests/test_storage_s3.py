"""Artifacts behind one door: the same behaviour on files and on a real S3 server that checks signatures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from botocore.exceptions import ClientError
from botocore.response import StreamingBody
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import override_settings

from federation.models import services
from foundation import storage
from projects.models import Project, User
from studio.settings import _storage
from tests.archives import content_of, tar_bytes
from tests.cast import ApiFor, actor
from tests.services.fixtures import Bucket
from tests.test_seed_models import ARRAYS, npz_bytes

KEY = "models/p/one.safetensors"


def use(url: str) -> override_settings:
    return override_settings(
        STORAGES={
            "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
            "artifacts": _storage(url),
            "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
        }
    )


@pytest.fixture(params=["files", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Artifacts on either kind of storage; the value is its STORAGE_URL."""
    if request.param == "files":
        url = f"file://{tmp_path / 'artifacts'}"
    else:
        bucket: Bucket = request.getfixturevalue("s3_bucket")
        url = bucket.url
    with use(url):
        yield url


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(3_000_000))
    return path


def test_an_artifact_that_memory_is_not_to_hold_is_there_all_the_same(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "COOLED_FROM_BYTES", 1)
    body = os.urandom(3_000_000)
    (tmp_path / "source").write_bytes(body)
    storage.put(KEY, tmp_path / "source")
    storage.cool(KEY)
    storage.cool("models/p/none.safetensors")  # deleted meanwhile: nothing to do
    with storage.open_artifact(KEY) as file:
        assert file.read() == body


def test_an_artifact_comes_back_byte_for_byte(store: str, source: Path) -> None:
    storage.put(KEY, source)
    with storage.local(KEY) as path:
        assert storage.sha256_of(path) == hashlib.sha256(source.read_bytes()).hexdigest()
    with storage.open_artifact(KEY) as body:
        assert body.read() == source.read_bytes()


def test_a_stream_begins_at_any_byte(store: str, source: Path) -> None:
    storage.put(KEY, source)
    for offset in (0, 1, 1_500_000, 2_999_999):
        body = storage.open_at(KEY, offset)
        try:
            first = body.read(10)
            assert first == source.read_bytes()[offset : offset + 10]
            assert len(first) + len(body.read(1 << 24)) == 3_000_000 - offset
        finally:
            body.close()


def test_putting_a_key_again_replaces_it(store: str, source: Path, tmp_path: Path) -> None:
    storage.put(KEY, source)
    other = tmp_path / "other"
    other.write_bytes(b"second")
    storage.put(KEY, other)
    with storage.open_artifact(KEY) as body:
        assert body.read() == b"second"


def test_what_is_stored_survives_a_change_of_its_source(store: str, source: Path) -> None:
    before = source.read_bytes()
    storage.put(KEY, source)
    source.unlink()
    with storage.open_artifact(KEY) as body:
        assert body.read() == before


def test_an_artifact_that_is_not_there_says_so(store: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.open_at("models/p/none")
    with pytest.raises(FileNotFoundError), storage.open_artifact("models/p/none") as body:
        body.read(1)
    storage.delete("models/p/none")
    storage.delete("")


def test_a_deleted_artifact_is_gone(store: str, source: Path) -> None:
    storage.put(KEY, source)
    storage.delete(KEY)
    with pytest.raises(FileNotFoundError):
        storage.open_at(KEY)


def test_a_folder_is_removed_with_all_in_it_and_nothing_else(store: str, source: Path) -> None:
    for key in ("models/p/one", "models/p/sub/two", "models/q/three"):
        storage.put(key, source)
    storage.delete_under("models/p")
    for key in ("models/p/one", "models/p/sub/two"):
        with pytest.raises(FileNotFoundError):
            storage.open_at(key)
    with storage.open_artifact("models/q/three") as body:
        assert body.read(1)


@pytest.mark.django_db
def test_packages_and_seed_models_are_uploaded_and_downloaded(
    store: str, api: ApiFor, member: User, viewer: User, project: Project
) -> None:
    body = tar_bytes()
    package = services.create_package(
        actor=actor(member),
        project=project,
        name="digits",
        description="",
        upload=SimpleUploadedFile("client.tgz", body),
    )
    seed = services.create_seed_model(
        actor=actor(member),
        project=project,
        name="seed",
        upload=SimpleUploadedFile("s.npz", npz_bytes(ARRAYS)),
    )
    base = f"/api/v1/projects/{project.slug}"
    got = api(viewer).get(f"{base}/packages/{package.pk}/download/")
    assert content_of(got) == body
    part = api(viewer).get(f"{base}/packages/{package.pk}/download/", HTTP_RANGE="bytes=7-20")
    assert content_of(part) == body[7:21]
    weights = content_of(api(viewer).get(f"{base}/models/{seed.pk}/download/"))
    assert hashlib.sha256(weights).hexdigest() == seed.sha256
    assert content_of(api(viewer).get(f"{base}/models/{seed.pk}/download/?format=npz"))[:2] == b"PK"


@pytest.mark.s3
def test_a_wrong_secret_is_refused(s3_bucket: Bucket, source: Path) -> None:
    wrong = s3_bucket.url.replace(quote(s3_bucket.secret, safe=""), "not-the-secret", 1)
    assert wrong != s3_bucket.url
    with use(s3_bucket.url):
        storage.put(KEY, source)
    with use(wrong):
        with pytest.raises(ClientError) as refused:
            storage.put("models/p/two", source)
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        with pytest.raises((ClientError, PermissionError)):
            storage.open_at(KEY)
    with use(s3_bucket.url), pytest.raises(FileNotFoundError):
        storage.open_at("models/p/two")


@pytest.mark.s3
def test_a_download_streams_from_the_server_and_is_not_copied_aside(s3_bucket: Bucket, source: Path) -> None:
    with use(s3_bucket.url):
        storage.put(KEY, source)
        body = storage.open_at(KEY)
    assert isinstance(body, StreamingBody)
    assert body.read(4) == source.read_bytes()[:4]
    body.close()


@pytest.mark.parametrize(
    ("url", "options"),
    [
        (
            "s3://KEY:SE%2FCRET@127.0.0.1:9000/studio?tls=0",
            {
                "access_key": "KEY",
                "secret_key": "SE/CRET",
                "bucket_name": "studio",
                "endpoint_url": "http://127.0.0.1:9000",
                "region_name": "us-east-1",
            },
        ),
        (
            "s3://k:s@s3.example.org/b?region=eu-north-1",
            {"endpoint_url": "https://s3.example.org", "region_name": "eu-north-1", "bucket_name": "b"},
        ),
        ("s3://s3.example.org/b", {"access_key": None, "secret_key": None}),
        ("file:///var/lib/a%20b", {"location": "/var/lib/a b"}),
    ],
)
def test_a_storage_address_is_understood(url: str, options: dict[str, Any]) -> None:
    assert options.items() <= _storage(url)["OPTIONS"].items()


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "s3://k:s@host", "s3://k:s@host/a/b", "file://", "file://a/b", "nonsense"]
)
def test_a_storage_address_that_means_nothing_is_refused(url: str) -> None:
    with pytest.raises(Exception, match="STORAGE_URL"):
        _storage(url)
