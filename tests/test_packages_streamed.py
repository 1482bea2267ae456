"""Large artifacts pass through the web process, never into its memory."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.models.models import Model
from foundation import storage
from projects.models import Project, User
from tests.cast import TokenFor
from tests.live_web import Web

MB = 1 << 20
SIZE = 300 * MB

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.once,
    pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc"),
]


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    server.start()
    yield server
    server.kill()


def peak_mb(web: Web) -> float:
    assert web.process is not None
    status = Path(f"/proc/{web.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def test_a_download_of_300_mb_costs_the_web_process_less_than_40(
    web: Web, viewer: User, project: Project, user_token: TokenFor, tmp_path: Path
) -> None:
    source = tmp_path / "large"
    with source.open("wb") as file:
        file.truncate(SIZE)
    key = f"models/{project.pk}/large.safetensors"
    storage.put(key, source)
    model = Model.objects.create(
        project=project, kind="seed", name="large", key=key, sha256="0" * 64, size_bytes=SIZE, layout=[]
    )
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)
    headers = {"Authorization": f"Bearer {user_token(viewer)}"}
    address = f"/api/v1/projects/{project.slug}/models/{model.pk}"
    connection.request("GET", f"{address}/", headers=headers)
    connection.getresponse().read()
    before = peak_mb(web)
    connection.request("GET", f"{address}/download/", headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200
    received = 0
    while block := answer.read(MB):
        received += len(block)
    connection.close()
    assert received == SIZE
    assert peak_mb(web) - before < 40
