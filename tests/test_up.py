"""`manage.py up`: one command serves everything, keeps it up, and takes it all along when it goes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests

from studio.supervisor import addresses, plan
from studio.supervisor.data_dir import DataDir
from studio.supervisor.plan import Options
from studio.supervisor.refusal import Refused
from tests.services.stack import ROOT, Stack, launch, running, stack_environment, wait_for
from tests.tls_files import certificate

CHILDREN = ("redis", "web", "combiner-1", "worker", "beat")


def accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def answers(stack: Stack, path: str) -> bool:
    """Whether the web process says 200; one that is starting lets the question wait."""
    try:
        return stack.get(path)[0] == 200
    except OSError:
        return False


def processes_of(data: Path) -> list[psutil.Process]:
    """Every process that serves from this data directory, the guard and `up` included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("STUDIO_DATA") == str(data):
                found.append(process)
        except psutil.Error:
            continue
    return found


def refused(*arguments: str, data: Path, env: dict[str, str] | None = None) -> str:
    """The sentence with which `up` refuses to start."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "up", "--data", str(data), *arguments],
        env=stack_environment(data, env), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_one_json_line_tells_where_everything_is(live_stack: Stack) -> None:
    assert live_stack.said["pid"] == live_stack.process.pid
    assert live_stack.said["data"] == str(live_stack.data)
    assert live_stack.web.startswith("http://127.0.0.1:")
    assert accepts(live_stack.combiner)
    status, body = live_stack.get("/readyz")
    assert status == 200, body
    assert json.loads(body)["ready"] is True


def test_every_child_runs_and_logs_to_its_own_file(live_stack: Stack) -> None:
    for name in CHILDREN:
        assert live_stack.pid_of(name)
        assert (live_stack.data / "logs" / f"{name}.log").exists()


def test_private_things_are_readable_by_their_owner_only(live_stack: Stack) -> None:
    assert live_stack.data.stat().st_mode & 0o777 == 0o700
    files = [path for path in live_stack.data.rglob("*") if path.is_file()]
    secret = [path for path in files if path.parent.name in ("secrets", "run", "logs")]
    assert len(secret) >= 5
    assert [path.name for path in secret if path.stat().st_mode & 0o077] == []
    password = live_stack.redis_url.split(":")[2].split("@")[0]
    for child in psutil.Process(live_stack.process.pid).children():
        assert password not in " ".join(child.cmdline())


@pytest.mark.parametrize("name", CHILDREN)
def test_a_killed_child_is_started_again_and_reported(live_stack: Stack, name: str) -> None:
    before = len(live_stack.reports().splitlines())
    old = live_stack.kill(name)
    wait_for(
        lambda: f"{name} started again" in "\n".join(live_stack.reports().splitlines()[before:]), 20, name
    )
    assert live_stack.pid_of(name) != old
    assert f"{name} died (signal SIGKILL)" in live_stack.reports()
    if name == "web":
        wait_for(lambda: answers(live_stack, "/healthz"), 40, "the web process on its old port")
    if name.startswith("combiner"):
        wait_for(lambda: accepts(live_stack.combiner), 40, "the combiner on its old port")
    if name == "redis":
        wait_for(lambda: answers(live_stack, "/readyz"), 20, "Redis on its old port")


def test_a_dead_guard_is_replaced(live_stack: Stack) -> None:
    guards = [
        p for p in psutil.Process(live_stack.process.pid).children() if "guard.py" in " ".join(p.cmdline())
    ]
    assert len(guards) == 1
    guards[0].kill()
    wait_for(lambda: "guard process had died" in live_stack.reports(), 10, "the report")


def test_a_second_up_on_the_same_data_is_refused(live_stack: Stack) -> None:
    said = refused("--port", "0", "--combiner-port", "0", data=live_stack.data)
    assert f"already serves {live_stack.data} (process {live_stack.process.pid})" in said


def test_createsuperuser_acts_on_what_up_serves(live_stack: Stack) -> None:
    live_stack.manage(
        "createsuperuser", "--noinput", "--username", "root", "--email", "root@example.org",
        env={"DJANGO_SUPERUSER_PASSWORD": "a-long-pass-phrase"},
    )  # fmt: skip
    wait_for(lambda: answers(live_stack, "/readyz"), 40, "the web process")
    browser = requests.Session()
    login = f"{live_stack.web}/accounts/login/"
    assert browser.get(login, timeout=20).status_code == 200
    form = {
        "login": "root",
        "password": "a-long-pass-phrase",
        "csrfmiddlewaretoken": browser.cookies["csrftoken"],
    }
    browser.post(login, data=form, headers={"Referer": live_stack.web}, timeout=20)
    assert browser.get(f"{live_stack.web}/admin/", timeout=20, allow_redirects=False).status_code == 200


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that another program holds."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.once
def test_plain_text_beyond_this_machine_needs_insecure(tmp_path: Path) -> None:
    said = refused("--host", "0.0.0.0", "--port", "0", data=tmp_path / "data")
    assert "--insecure" in said and "--tls-cert" in said
    cert, key = certificate(tmp_path, "localhost")
    Options(data=tmp_path, host="0.0.0.0", insecure=True).check()
    Options(data=tmp_path, host="0.0.0.0", tls_cert=cert, tls_key=key).check()


def test_a_taken_port_is_named(taken_port: int) -> None:
    for option in ("--port", "--combiner-port"):
        with pytest.raises(Refused, match=rf"Port {taken_port} on 127.0.0.1 .* Choose another with {option}"):
            addresses.pick_port("127.0.0.1", taken_port, option)


def test_a_lane_port_that_nobody_asked_for_keeps_nothing_from_starting(
    tmp_path: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "LANE_PORT", taken_port)

    def lane(combiner_port: int, lane_port: int | None = None) -> int:
        options = Options(data=tmp_path, port=0, combiner_port=combiner_port, lane_port=lane_port)
        made = plan.Plan(options, DataDir(tmp_path), "redis://x")
        made.socket.close()
        return made.combiners[0].lane

    free = addresses.pick_port("127.0.0.1", 0, "--combiner-port")
    assert lane(combiner_port=free) == 0
    monkeypatch.setattr(plan, "LANE_PORT", free)
    assert lane(combiner_port=free) == 0, "the combiner's own port"
    with pytest.raises(Refused, match="--lane-port"):
        lane(combiner_port=free, lane_port=taken_port)


def test_half_a_tls_pair_and_missing_files_are_refused(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "localhost")
    for half in (Options(data=tmp_path, tls_cert=cert), Options(data=tmp_path, tls_key=key)):
        with pytest.raises(Refused, match="go together"):
            half.check()
    with pytest.raises(Refused, match=r"--tls-key .*no.pem is not a readable file"):
        Options(data=tmp_path, tls_cert=cert, tls_key=tmp_path / "no.pem").check()


@pytest.mark.parametrize(
    "wrong", [{"combiners": 0}, {"combiners": 65}, {"port": -1}, {"combiner_port": 70000}]
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(Refused, match=r"out of range|is not a port"):
        Options(data=tmp_path, **wrong).check()  # type: ignore[arg-type]


def test_a_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert "cannot be used" in refused(data=tmp_path / "data")


@pytest.mark.once
def test_sigterm_stops_every_child_and_exits_0(start_stack: Callable[..., Stack]) -> None:
    stack = start_stack()
    assert len(processes_of(stack.data)) >= len(CHILDREN) + 1
    stack.process.send_signal(signal.SIGTERM)
    assert stack.process.wait(25) == 0
    assert processes_of(stack.data) == []
    assert stack.process.stdout is not None
    assert stack.process.stdout.read() == b"", "exactly one line on standard output"


@pytest.mark.once
def test_sigint_while_starting_stops_everything_too(tmp_path: Path) -> None:
    data = tmp_path / "data"
    stack = launch(data)
    wait_for(lambda: (data / "logs" / "web.log").exists(), 60, "the web process")
    stack.process.send_signal(signal.SIGINT)
    assert stack.stop() == 0
    assert processes_of(data) == []


@pytest.mark.once
def test_kill_9_leaves_no_orphan_and_up_starts_again_at_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(data) as stack:
        ports = [stack.combiner, stack.web.removeprefix("http://")]
        os.kill(stack.process.pid, signal.SIGKILL)
        killed = time.monotonic()
        # a new `up` waits for the guard to clear the place instead of meeting its predecessor's children
        (data / "run" / "redis_url").unlink()
        again = launch(data)
        try:
            wait_for(lambda: not any(map(accepts, ports)), 4, "the orphans' end")
            assert time.monotonic() - killed < 4
            wait_for((data / "run" / "redis_url").exists, 60, "the new one's turn")
        finally:
            assert again.stop() == 0
    assert processes_of(data) == []


@pytest.mark.once
def test_a_killed_up_that_is_still_a_zombie_does_not_hold_the_place(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    data.prepare()
    # as after `kill -9`: the process id lives on, its own lock is free, its guard still clears the place
    (data.run / "up.lock").write_text(f"{os.getppid()}\n")
    guard = os.open(data.run / "children.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(guard, fcntl.LOCK_EX)
    taken: list[int] = []
    waiting = threading.Thread(target=lambda: taken.append(data.lock()), daemon=True)
    waiting.start()
    wait_for(lambda: (data.run / "up.lock").read_text() == f"{os.getpid()}\n", 5, "the new one's claim")
    assert taken == []
    os.close(guard)
    waiting.join(10)
    assert len(taken) == 1
    with pytest.raises(Refused, match=f"already serves .* \\(process {os.getpid()}\\)"):
        DataDir(data.path).lock()


@pytest.mark.once
def test_several_combiners_and_tls_for_pages_and_combiners(
    start_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path, "localhost", "127.0.0.1")
    stack = start_stack("--combiners", "2", "--tls-cert", str(cert), "--tls-key", str(key))
    assert stack.web.startswith("https://")
    assert [entry["name"] for entry in stack.said["combiners"]] == ["combiner-1", "combiner-2"]
    assert len({entry["tls"] for entry in stack.said["combiners"]}) == 2
    assert stack.combiner == stack.said["combiners"][0]["tls"]
    context = ssl.create_default_context(cafile=str(cert))
    for address in (stack.web.removeprefix("https://"), *(entry["tls"] for entry in stack.said["combiners"])):
        host, _, port = address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            assert secure.version() in ("TLSv1.2", "TLSv1.3")


@pytest.mark.once
def test_a_child_that_keeps_dying_ends_up_with_its_last_words(tmp_path: Path) -> None:
    # a schema that cannot be migrated: the file is no database
    data = tmp_path / "data"
    data.mkdir()
    (data / "studio.sqlite3").write_bytes(b"this is not a database, whatever its name says" * 100)
    said = refused("--port", "0", "--combiner-port", "0", data=data)
    assert "could not be migrated" in said and "not a database" in said
    assert processes_of(data) == []
