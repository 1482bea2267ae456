"""A native client that is given a package in Scaleout's importer form says why it cannot run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.archives import tar_bytes
from tests.sdk_site import Site, new_person, until
from tests.services.stack import Stack

pytestmark = pytest.mark.once


def test_a_session_with_native_clients_only_fails_with_the_reason(live_stack: Stack, tmp_path: Path) -> None:
    archive = tmp_path / "edge.tgz"
    archive.write_bytes(
        tar_bytes(
            {"scaleout.yaml": b"entry_points: {startup: startup.py}", "startup.py": b"def startup(c): ..."}
        )
    )
    with new_person(live_stack.web) as api, Site.open(api, tmp_path) as site:
        package = str(site.api.upload_package(site.slug, archive, "edge")["id"])
        site.process(site.config()[1])
        until(lambda: site.online(1), 40)
        session = site.session(site.seed(), package=package)
        ended = until(lambda: site.ended(session), 40)
        assert ended["status"] == "failed"
        assert "importer form" in site.errors(session)[0]
        told = [row["message"] for row in site.api.events(site.slug)]
        assert any("importer form, which Scaleout's own client runs" in message for message in told), told
