"""Fixtures that need a server or a whole Studio of their own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.services import stack as stacks
from tests.services import swift
from tests.services.environment import worker_id


@dataclass(frozen=True)
class Bucket:
    """An S3 server and an empty bucket on it; `url` is a STORAGE_URL."""

    endpoint: str
    key: str
    secret: str
    region: str
    bucket: str
    url: str


def s3_client(server: swift.S3Server | Bucket) -> Any:
    """A boto3 client with path addressing, as every self-hosted server wants it."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
        region_name=server.region,
        config=Config(s3={"addressing_style": "path"}, signature_version="s3v4", retries={"max_attempts": 2}),
    )


@pytest.fixture(scope="session")
def s3_server() -> swift.S3Server:
    """An S3 server that checks signatures, shared by all workers of the run.

    Where it cannot run it is said loudly; with CI=true that is a failure.
    """
    try:
        return swift.shared()
    except swift.Unavailable as reason:
        if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
            pytest.fail(str(reason))
        pytest.skip(str(reason))


@pytest.fixture
def s3_bucket(s3_server: swift.S3Server) -> Bucket:
    """An empty bucket for one test."""
    name = f"studio-{worker_id()}-{secrets.token_hex(6)}"
    s3_client(s3_server).create_bucket(Bucket=name)
    return Bucket(
        s3_server.endpoint, s3_server.key, s3_server.secret, s3_server.region, name, s3_server.url(name)
    )


@pytest.fixture(scope="module")
def live_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stacks.Stack]:
    """A whole Studio (web, combiner, worker, beat, Redis), started once for the test module."""
    data = tmp_path_factory.mktemp("stack") / "data"
    with stacks.running(data) as stack:
        yield stack


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stacks.Stack]:
    """As `live_stack`, for every module that only adds projects of its own to it."""
    with stacks.running(tmp_path_factory.mktemp("shared") / "data") as stack:
        yield stack


@pytest.fixture
def start_stack(tmp_path: Path) -> Iterator[Callable[..., stacks.Stack]]:
    """`start_stack("--combiners", "2", env={…}, data=…)`: a Studio of the test's own, stopped after it."""
    with ExitStack() as exits:

        def start(
            *arguments: str, env: dict[str, str] | None = None, data: Path | None = None
        ) -> stacks.Stack:
            return exits.enter_context(stacks.running(data or tmp_path / "data", *arguments, env=env))

        yield start
