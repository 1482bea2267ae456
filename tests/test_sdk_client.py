"""The federated client against a whole Studio: training, refusals, stops, and coming back."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from studio_sdk import StudioApi
from studio_sdk.client.link import Link
from studio_sdk.errors import Exit

from tests.sdk_site import GOOD_TRAIN, Site, Wire, add_one, free_address, new_person, until
from tests.services.stack import Stack

# the client knows nothing of the database behind Studio
pytestmark = pytest.mark.once

WRONG_METADATA = "\nopen(sys.argv[2] + '-metadata', 'w').write('{\"num_things\": 3}')\n"


@pytest.fixture(scope="module")
def person(live_stack: Stack) -> StudioApi:
    return new_person(live_stack.web)


@pytest.fixture
def site(person: StudioApi, tmp_path: Path) -> Iterator[Site]:
    with Site.open(person, tmp_path) as opened:
        yield opened


def test_callbacks_of_two_clients_make_the_weighted_average(site: Site) -> None:
    def trainer(step: float, examples: int) -> Any:
        def train(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
            made = {"w": arrays["w"] + np.float32(step * settings["lr"]), "n": arrays["n"] + 1}
            return made, {"num_examples": np.int64(examples), "step": step}

        return train

    def validate(arrays: dict[str, Any], _settings: dict[str, Any]) -> dict[str, Any]:
        return {"mean": float(arrays["w"].mean()), "num_examples": 2, "nested": {"deep": 1.5}}

    for step, examples in ((1.0, 10), (4.0, 30)):
        site.callbacks(trainer(step, examples), validate)
    until(lambda: site.online(2))
    session = site.session(
        site.seed(), rounds=2, validate=True, min_clients=2, min_updates=2, client_settings={"lr": 2}
    )
    assert until(lambda: site.ended(session), 40)["status"] == "finished"
    np.testing.assert_allclose(
        site.model(session)["w"], np.full(4, 2 * 2 * (1 * 10 + 4 * 30) / 40), rtol=1e-6
    )
    assert site.model(session)["n"] == 2
    steps = [
        row["metadata"].get("step")
        for row in site.api.assignments(site.slug, session)
        if row["kind"] == "train"
    ]
    assert sorted(steps) == [1.0, 1.0, 4.0, 4.0]
    validations = list(site.api.validations(site.slug, session=session))
    assert {row["data"]["nested"]["deep"] for row in validations} == {1.5}


def test_an_update_with_nan_is_refused_with_the_reason_and_the_client_goes_on(site: Site) -> None:
    def train(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
        made = {name: array + 1 for name, array in arrays.items()}
        if settings.get("bad"):
            made["w"] = made["w"] * np.float32("nan")
        return made, {"num_examples": 1}

    running = site.callbacks(train)
    until(lambda: site.online(1))
    bad = site.session(site.seed(), client_settings={"bad": True})
    assert until(lambda: site.ended(bad), 30)["status"] == "failed"
    assert until(lambda: running.said("rejected"))[0].endswith(")")
    good = site.session(site.seed())
    assert until(lambda: site.ended(good), 30)["status"] == "finished"
    assert running.end() == Exit.STOPPED


def test_a_callback_that_raises_fails_its_assignment_only(site: Site) -> None:
    def train(_arrays: dict[str, Any], _settings: dict[str, Any]) -> Any:
        raise RuntimeError("no images today")

    running = site.callbacks(train)
    until(lambda: site.online(1))
    session = site.session(site.seed())
    assert until(lambda: site.ended(session), 30)["status"] == "failed"
    assert site.errors(session) == ["train raised RuntimeError: no images today"]
    assert running.end() == Exit.STOPPED


@pytest.mark.parametrize(
    ("script", "settings", "error"),
    [
        ("import sys; print('no luck'); sys.exit(3)", {}, "exit code 3"),
        (GOOD_TRAIN.replace("save_metadata({", "({"), {}, "wrote no metadata"),
        (
            GOOD_TRAIN.replace("num_examples", "num_things").replace("save_metadata({", "({"),
            {},
            "wrote no metadata",
        ),
        ("print('done')", {}, "wrote no update.safetensors"),
        ("import time; time.sleep(600)", {"round_timeout_s": 5}, ""),
    ],
    ids=["exits-3", "omits-metadata", "wrong-metadata", "omits-the-model", "hangs"],
)
def test_an_entry_point_that_fails_says_why(
    site: Site, script: str, settings: dict[str, Any], error: str
) -> None:
    package, _folder = site.package(script)
    _config, path = site.config()
    child, log = site.process(path)
    until(lambda: site.online(1))
    session = site.session(site.seed(), package=package, **settings)
    assert until(lambda: site.ended(session), 40)["status"] == "failed"
    if error:
        assert error in site.errors(session)[0]
    else:
        until(lambda: "stopped" in log.read_text(), 10, "the hanging entry point to be stopped")
    # the client is still there, and does the next session
    good, _ = site.package()
    again = site.session(site.seed(), package=good)
    assert until(lambda: site.ended(again), 40)["status"] == "finished", log.read_text()
    assert child.poll() is None


def test_stopping_the_session_ends_the_entry_points_process_group(site: Site) -> None:
    marker = site.folder / "pids"
    script = f"""
import os, signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])
open({str(marker)!r}, "w").write(f"{{os.getpid()}} {{child.pid}} ")
time.sleep(600)
"""
    package, _folder = site.package(script)
    _config, path = site.config()
    _child, log = site.process(path)
    until(lambda: site.online(1))
    session = site.session(site.seed(), package=package)
    pids = until(
        lambda: marker.exists() and marker.read_text().endswith(" ") and marker.read_text().split(), 30
    )
    site.api.stop_session(site.slug, session)
    asked = time.monotonic()
    until(lambda: not any(_lives(int(pid)) for pid in pids), 8, "both processes to be gone")
    assert time.monotonic() - asked < 5 + 2.5, (
        "five seconds from the Cancel, which a lost hint may delay by two"
    )
    until(lambda: "stopped (" in log.read_text())


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_package_runs_with_the_data_path_and_its_log_reaches_the_events(site: Site) -> None:
    package, _folder = site.package(
        "import os; print('data is', os.environ['STUDIO_DATA_PATH'])\n" + GOOD_TRAIN
    )
    _config, path = site.config()
    child, _log = site.process(path, "--data-path", "mine.npz")
    until(lambda: site.online(1))
    session = site.session(site.seed(), package=package)
    assert until(lambda: site.ended(session), 40)["status"] == "finished"
    wanted = f"data is {site.folder / 'mine.npz'}"
    until(lambda: any(wanted in row["message"] for row in site.api.events(site.slug, kind="client.log")))
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == Exit.STOPPED


def test_revoking_the_client_ends_it_with_a_clear_line_and_exit_code(site: Site) -> None:
    config, path = site.config()
    child, log = site.process(path)
    until(lambda: site.online(1))
    site.api.new_client_config(site.slug, config.client_id)  # the old token is revoked
    assert child.wait(15) == Exit.REFUSED
    assert "revoked" in log.read_text().splitlines()[-1]
    child, log = site.process(path)
    assert child.wait(15) == Exit.REFUSED
    assert "refuses this client's token" in log.read_text().splitlines()[-1]


def test_a_deleted_client_ends(site: Site) -> None:
    running = site.callbacks()
    until(lambda: site.online(1))
    site.api.delete_client(site.slug, running.client.config.client_id)
    assert running.code(15) == Exit.REFUSED


def test_the_web_being_down_does_not_keep_a_client_from_training(site: Site) -> None:
    running = site.callbacks(api_url=f"http://{free_address()}")
    until(lambda: site.online(1))
    session = site.session(site.seed())
    assert until(lambda: site.ended(session), 30)["status"] == "finished"
    assert running.said("connected to combiner-1")


def test_a_package_is_fetched_when_the_web_is_back(site: Site, live_stack: Stack) -> None:
    wire = Wire(live_stack.web.removeprefix("http://"))
    site.exits.callback(wire.close)
    wire.blocked = True
    package, _folder = site.package()
    _config, path = site.config(api_url=f"http://{wire.address}")
    _child, log = site.process(path)
    until(lambda: site.online(1))
    session = site.session(site.seed(), package=package)
    until(lambda: "cannot be fetched yet" in log.read_text(), 30)
    wire.blocked = False
    assert until(lambda: site.ended(session), 50)["status"] == "finished"


@pytest.fixture(params=["the lane", "gRPC"])
def broken(
    request: pytest.FixtureRequest, site: Site, live_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Wire, dict[str, str]]]:
    """A wire that large models take, and what to change in the client's config so that they do."""
    lane_of = Link._lane
    if request.param == "gRPC":
        monkeypatch.setattr(Link, "_lane", lambda _link, _named: None)
        wire = Wire(live_stack.combiner)
        changes = {"combiner": wire.address}
    else:
        wire, changes = Wire(""), {}

        def over_wire(link: Link, named: str) -> Any:
            assert named.startswith(":"), "the combiner names a port of its own host"
            wire.target = ("127.0.0.1", int(named[1:]))
            return lane_of(link, wire.address)

        monkeypatch.setattr(Link, "_lane", over_wire)
    site.exits.callback(wire.close)
    yield wire, changes


def test_an_upload_goes_on_where_the_network_broke_it_off(
    site: Site, broken: tuple[Wire, dict[str, str]]
) -> None:
    wire, changes = broken

    def train(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
        wire.cut_after = 12_000_000
        return add_one(arrays, settings)

    running = site.callbacks(train, api_url=f"http://{free_address()}", **changes)
    until(lambda: site.online(1))
    session = site.session(site.seed({"w": np.zeros(5_000_000, np.float32)}))
    assert until(lambda: site.ended(session), 50)["status"] == "finished"
    assert running.said("the upload broke off")
    resumed = running.said("upload goes on at")
    assert resumed and float(resumed[-1].split()[4]) > 1
    np.testing.assert_array_equal(site.model(session)["w"][:5], np.ones(5, np.float32))


def test_a_download_goes_on_where_the_network_broke_it_off(
    site: Site, broken: tuple[Wire, dict[str, str]]
) -> None:
    wire, changes = broken
    wire.cut_after_down = 12_000_000
    running = site.callbacks(api_url=f"http://{free_address()}", **changes)
    until(lambda: site.online(1))
    session = site.session(site.seed({"w": np.zeros(5_000_000, np.float32)}))
    assert until(lambda: site.ended(session), 50)["status"] == "finished"
    assert running.said("the download broke off")
    # what was under way when it broke comes again (a few MB, as the client falls behind); from the start were 32 MB
    assert 15_000_000 < wire.down_bytes < 30_000_000, "20 MB, not again what had arrived before the cut"


def nobody(_heard: socket.socket) -> None:
    """Takes the connection, and cuts it."""


def another(heard: socket.socket) -> None:
    """A proxy that answers everything."""
    heard.recv(65536)
    heard.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nhello")


@pytest.mark.parametrize("answer", [None, nobody, another])
def test_a_lane_on_which_no_combiner_answers_is_left_for_grpc(
    site: Site, monkeypatch: pytest.MonkeyPatch, answer: Callable[[socket.socket], None] | None
) -> None:
    address, lane_of = free_address(), Link._lane
    if answer is not None:
        listener = site.exits.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as heard:
                        answer(heard)

        threading.Thread(target=serve, daemon=True).start()
    monkeypatch.setattr(Link, "_lane", lambda link, _named: lane_of(link, address))
    running = site.callbacks()
    until(lambda: site.online(1))
    session = site.session(site.seed({"w": np.zeros(600_000, np.float32)}), rounds=2)
    assert until(lambda: site.ended(session), 50)["status"] == "finished"
    assert len(running.said("they go the slower way")) == 1
    np.testing.assert_array_equal(site.model(session)["w"][:5], np.full(5, 2, np.float32))


def test_a_client_killed_before_its_receipt_sends_the_kept_update_without_training_again(
    site: Site, live_stack: Stack
) -> None:
    wire = Wire(live_stack.combiner)
    site.exits.callback(wire.close)
    count = site.folder / "trainings"
    package, folder = site.package(GOOD_TRAIN + f"\nopen({str(count)!r}, 'a').write('x')\n")
    _config, path = site.config(api_url=f"http://{free_address()}", combiner=wire.address)
    wire.cut_after = 500_000
    child, log = site.process(path, "--path", str(folder))
    until(lambda: site.online(1))
    session = site.session(site.seed({"w": np.zeros(240_000, np.float32)}), package=package)

    def broken_off() -> bool:
        if wire.cut_after is None:
            wire.blocked = True
        return "the upload broke off" in log.read_text()

    until(broken_off, 30)
    child.kill()
    child.wait()
    wire.blocked = False
    _child, log = site.process(path, "--path", str(folder))
    assert until(lambda: site.ended(session), 50)["status"] == "finished"
    assert "sending the update trained before" in log.read_text()
    assert count.read_text() == "x"


def test_a_client_comes_back_by_itself_after_the_combiner_was_killed(site: Site, live_stack: Stack) -> None:
    training = threading.Event()
    go_on = threading.Event()

    def train(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
        training.set()
        go_on.wait(60)
        return add_one(arrays, settings)

    running = site.callbacks(train)
    until(lambda: site.online(1))
    session = site.session(site.seed())
    assert training.wait(20)
    live_stack.kill("combiner-1")
    until(lambda: running.said("connection lost"))
    go_on.set()
    assert until(lambda: site.ended(session), 60)["status"] == "finished"
    assert len(running.said("training")) == 1, "what it held it did not train twice"


def test_two_sessions_packages_do_not_mix(site: Site) -> None:
    twice, _ = site.package(GOOD_TRAIN.replace("a + 1", "a + 2"))
    once, _ = site.package()
    _config, path = site.config()
    site.process(path)
    until(lambda: site.online(1))
    sessions = [site.session(site.seed(), package=package) for package in (once, twice, once)]
    for session in sessions:
        assert until(lambda session=session: site.ended(session), 60)["status"] == "finished"
    assert [float(site.model(session)["w"][0]) for session in sessions] == [1, 2, 1]


def test_an_environment_that_cannot_be_built_ends_with_its_own_exit_code(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    _package, folder = site.package()
    content = yaml.safe_load((folder / "studio.yaml").read_text())
    (folder / "studio.yaml").write_text(yaml.safe_dump({**content, "python_env": "python_env.yaml"}))
    (folder / "python_env.yaml").write_text("dependencies: [no-such-thing==9.9]\n")
    _config, path = site.config()
    child, log = site.process(path, "--path", str(folder))
    assert child.wait(60) == Exit.ENVIRONMENT
    assert "pip says: ERROR" in log.read_text().splitlines()[-1]
