"""Artifacts: compute packages, models, partials. One door to files or S3, through django-storages."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.files import File
from django.core.files.storage import FileSystemStorage, Storage, storages

CHUNK_BYTES = 1 << 20
COOLED_FROM_BYTES = 16 << 20
SIGNED_S = 3600  # long enough to begin; a transfer that has begun goes on


def artifacts() -> Storage:
    return storages["artifacts"]


def put(key: str, source: Path) -> None:
    """Store the file `source` under `key`, durably. On one disk this is a link or a copy, never a re-read in Python."""
    store = artifacts()
    if isinstance(store, FileSystemStorage):
        target = Path(store.path(key))
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        try:
            os.link(source, draft)
        except OSError:
            shutil.copyfile(source, draft)
        with open(draft, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(draft, 0o600)
        os.replace(draft, target)
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return
    with open(source, "rb") as body:
        store.save(key, File(body, name=key))


def is_local() -> bool:
    """Whether artifacts are files here, that cost nothing to read a part of."""
    return isinstance(artifacts(), FileSystemStorage)


@contextmanager
def local(key: str) -> Iterator[Path]:
    """A local path to read the artifact from: the file itself, or a copy that is removed afterwards."""
    store = artifacts()
    if isinstance(store, FileSystemStorage):
        yield Path(store.path(key))
        return
    with tempfile.NamedTemporaryFile(prefix="studio-") as draft, store.open(key, "rb") as body:
        shutil.copyfileobj(body, draft, CHUNK_BYTES)
        draft.flush()
        yield Path(draft.name)


def open_artifact(key: str) -> IO[bytes]:
    """An open file; FileNotFoundError when there is none."""
    return artifacts().open(key, "rb")


def open_at(key: str, offset: int = 0) -> IO[bytes]:
    """An open stream from byte `offset` on, read as it comes: nothing is copied aside first. FileNotFoundError when
    there is no such artifact."""
    store = artifacts()
    if isinstance(store, FileSystemStorage):
        body = Path(store.path(key)).open("rb")  # noqa: SIM115  (the caller closes it)
        body.seek(offset)
        return body
    return _open_remote(store, key, offset)


def _open_remote(store: Storage, key: str, offset: int) -> IO[bytes]:
    from botocore.exceptions import ClientError

    bucket: Any = store.bucket  # type: ignore[attr-defined]  # of storages.backends.s3
    try:
        body: IO[bytes] = bucket.Object(key).get(**({"Range": f"bytes={offset}-"} if offset else {}))["Body"]
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
            raise FileNotFoundError(key) from None
        raise
    return body


def cool(key: str) -> None:
    """This artifact is unlikely to be read soon: if it is a large file here, the system may use its memory for others.
    Whoever reads it all the same reads the disk."""
    store = artifacts()
    if not isinstance(store, FileSystemStorage) or not hasattr(os, "posix_fadvise"):  # such as on a Mac
        return
    with suppress(OSError), open(store.path(key), "rb") as file:
        if os.fstat(file.fileno()).st_size >= COOLED_FROM_BYTES:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def signs() -> bool:
    """Whether artifacts are in a bucket that clients reach (`STUDIO_DIRECT_DOWNLOADS`)."""
    return bool(settings.DIRECT_DOWNLOADS) and not is_local()


def signed_url(key: str) -> str:
    """Where whoever has it may fetch the artifact from the bucket itself, for an hour; only where storage `signs`.
    Nothing is asked of the bucket, but whoever gives credentials may be, and each raises its own."""
    store: Any = artifacts()
    url: str = _signing(settings.DIRECT_DOWNLOADS, store).generate_presigned_url(
        "get_object", Params={"Bucket": store.bucket_name, "Key": key}, ExpiresIn=SIGNED_S
    )
    return url


@lru_cache(maxsize=1)
def _signing(endpoint: str, store: Any) -> Any:
    """As the store's own, but for the address by which clients know the bucket; nothing is sent."""
    import boto3

    return boto3.client(
        "s3", endpoint_url=endpoint, region_name=store.region_name, config=store.client_config,
        aws_access_key_id=store.access_key, aws_secret_access_key=store.secret_key,
        aws_session_token=store.security_token,
    )  # fmt: skip


def delete(key: str) -> None:
    if key:
        artifacts().delete(key)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as body:
        return hashlib.file_digest(body, "sha256").hexdigest()


def delete_under(prefix: str) -> None:
    """Remove every artifact whose key begins with the folder `prefix`; none is fine."""
    store = artifacts()
    folder = prefix.strip("/")
    if not folder or ".." in folder.split("/"):
        raise ValueError(f"not a folder of artifacts: {prefix!r}")
    if isinstance(store, FileSystemStorage):
        shutil.rmtree(store.path(folder), ignore_errors=True)
        return
    folders, files = store.listdir(folder)
    for name in files:
        store.delete(f"{folder}/{name}")
    for name in folders:
        delete_under(f"{folder}/{name}")
