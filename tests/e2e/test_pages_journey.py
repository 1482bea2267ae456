"""From sign-up to results in the browser; only the client is not a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from playwright.sync_api import expect

from tests.archives import tar_bytes
from tests.cast import PASSWORD
from tests.e2e.conftest import Complaints, Enter
from tests.rig import Rig
from tests.wire_client import ACCEPTED

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True), pytest.mark.slow]


def test_from_sign_up_to_a_downloaded_model(
    rig: Rig, enter: Enter, complaints: Complaints, tmp_path: Path
) -> None:
    combiner, _worker, _beat = rig.combiner(), rig.worker(), rig.beat()
    (tmp_path / "package.tgz").write_bytes(tar_bytes())
    np.savez(tmp_path / "seed.npz", w=np.zeros((4, 3), np.float32))
    page = enter()

    page.goto("/")
    page.get_by_role("link", name="Sign up").click()
    page.get_by_label("Username").fill("nora")
    page.get_by_label("Email").fill("nora@example.org")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password (again)").fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()

    page.get_by_role("link", name="New project").first.click()
    page.get_by_role("link", name="Create a project: Federated learning").click()
    page.get_by_label("Name").fill("Digits by Nora")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", name="Digits by Nora")).to_be_visible()

    page.get_by_role("link", name="Register", exact=True).click()
    page.get_by_label("Name", exact=True).fill("site-a")
    page.get_by_role("dialog").get_by_role("button", name="Register").click()
    expect(page.get_by_text("studio client start -in client.yaml").last).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download client.yaml").click()
    assert download.value.suggested_filename == "client.yaml"
    config = yaml.safe_load(Path(download.value.path()).read_text())
    assert config == yaml.safe_load(page.locator("#config-yaml").inner_text())
    page.get_by_role("link", name="Close").click()
    row = page.locator("tr[id^=client-]").filter(has_text="site-a")
    expect(row).to_contain_text("offline")
    wire = rig.connect(combiner, config["token"])
    expect(row).to_contain_text("online", timeout=10_000)

    page.get_by_role("link", name="Sessions", exact=True).click()
    page.get_by_role("link", name="New session").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("my package")
    dialog.get_by_label("Compute package").set_input_files(tmp_path / "package.tgz")
    dialog.get_by_role("button", name="Upload and go on").click()
    dialog.get_by_label("Seed model", exact=True).set_input_files(tmp_path / "seed.npz")
    dialog.get_by_role("button", name="Upload and go on").click()
    dialog.get_by_label("Rounds", exact=True).fill("2")
    expect(dialog.get_by_label("Compute package")).to_contain_text("my package")
    dialog.get_by_role("button", name="Start run").click()

    expect(page.get_by_role("heading", name="Session 1")).to_be_visible()
    for number in (1, 2):
        task = wire.next_task()
        arrays = {name: np.asarray(value) + np.float32(1) for name, value in wire.arrays(task).items()}
        assert wire.upload(task, arrays, num_examples=10).status == ACCEPTED
        wire.validate(wire.next_task("validate"), accuracy=0.5 + number / 10)
    rounds = page.get_by_role("row").filter(has_text="1 of 1")
    expect(rounds.filter(has_text="0.6000")).to_have_count(1, timeout=20_000)
    expect(rounds.filter(has_text="0.7000")).to_have_count(1)
    expect(page.locator("#rounds-title + span")).to_contain_text("finished", timeout=20_000)
    expect(page.locator("#curves canvas")).to_be_visible()

    page.get_by_role("link", name="Models", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("link", name="as npz").first.click()
    with np.load(download.value.path()) as final:
        assert all((final[name] == 2).all() for name in final.files)
    assert not complaints, complaints
