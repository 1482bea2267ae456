"""`make demo`, as a newcomer's machine runs it: from nothing to a trained model, twice."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.sdk_site import until

ROOT = Path(__file__).resolve().parent.parent
DEMO = [sys.executable, "-m", "examples.digits.demo"]

pytestmark = [pytest.mark.once, pytest.mark.slow, pytest.mark.timeout(400)]


def environment(data: Path, cache: Path) -> dict[str, str]:
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("STUDIO_")
        and key not in ("DATABASE_URL", "REDIS_URL", "STORAGE_URL", "DJANGO_SETTINGS_MODULE")
    }
    return {**clean, "STUDIO_DATA": str(data), "STUDIO_CACHE_DIR": str(cache)}


def left_over(data: Path) -> list[str]:
    """Processes that still work on this data directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("STUDIO_DATA") == str(data):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def first(
    tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run on an empty data directory."""
    data = tmp_path_factory.mktemp("demo") / "data"
    return data, run(data, cache)


def run(data: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    env = environment(data, cache)
    return subprocess.run(
        DEMO, cwd=ROOT, env=env, capture_output=True, text=True, timeout=390, stdin=subprocess.DEVNULL
    )


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr + done.stdout
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_from_nothing_to_a_trained_model(first: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    data, done = first
    result = result_of(done)
    assert (result["rounds"], result["clients"], result["data"]) == (5, 3, str(data))
    assert result["accuracy"] >= 0.90
    assert result["accuracy"] > result["seed_accuracy"] + 0.5
    assert result["seconds"] > 0
    rows = re.findall(r"^ +(\d)  +3  +\d+\.\d\d  +\d\.\d{4}  +\d\.\d{4}$", done.stdout, re.MULTILINE)
    assert rows == ["1", "2", "3", "4", "5"], done.stdout
    assert re.search(
        r"http://127\.0\.0\.1:\d+/projects/\S+/ +log in as demo-\w+ with password \S+", done.stdout
    )


def test_everything_it_started_is_stopped(first: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    data, done = first
    assert done.returncode == 0
    until(lambda: not left_over(data), 5, "no process on the demo's data")


def test_the_three_clients_built_their_environment_once_and_share_no_image(
    first: tuple[Path, subprocess.CompletedProcess[str]], cache: Path
) -> None:
    import numpy as np

    data, _done = first
    assert len([entry for entry in (cache / "envs").iterdir() if entry.is_dir()]) == 1
    files = [f"client-{number}.npz" for number in (1, 2, 3)] + ["test.npz"]
    images = [[image.tobytes() for image in np.load(data / "demo" / "data" / name)["x"]] for name in files]
    assert sum(map(len, images)) == 1797
    for number, one in enumerate(images):
        for other in images[number + 1 :]:
            assert not set(one) & set(other)


def test_again_on_a_terminal_it_gets_the_same_accuracy_and_serves_until_ctrl_c(
    first: tuple[Path, subprocess.CompletedProcess[str]], cache: Path
) -> None:
    import urllib.request

    data, done = first
    near, far = pty.openpty()
    child = subprocess.Popen(
        DEMO, cwd=ROOT, env=environment(data, cache), stdin=far, stdout=far, stderr=far,
        # whoever runs the tests in a shell's background ignores it, and what it starts does too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(far)
    said = bytearray()

    def read(until_text: bytes) -> None:
        while until_text not in said:
            try:
                said.extend(os.read(near, 4096))
            except OSError:  # the other side is closed
                raise AssertionError(f"exit code {child.wait(30)}: {said.decode()}") from None

    read(b"Studio keeps serving")
    accuracy = re.search(rb"([\d.]+) after 5 rounds", said)
    assert accuracy and abs(float(accuracy.group(1)) - result_of(done)["accuracy"]) < 0.01
    user = re.search(r"User (demo-\w+),", done.stdout)
    assert user and user.group(1).encode() in said, "the same login as in the first run"
    address = re.search(rb"The pages: (http://[^/]+)/", said)
    assert address, said.decode()
    with urllib.request.urlopen(address.group(1).decode() + "/healthz", timeout=5) as answer:
        assert answer.status == 200
    child.send_signal(signal.SIGINT)
    read(b"Stopped.")
    assert child.wait(30) == 0
    os.close(near)
    until(lambda: not left_over(data), 5, "no process on the demo's data")


def test_a_data_directory_that_cannot_be_one_gets_a_sentence(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "data").write_text("a file")
    done = run(tmp_path / "data", cache)
    assert done.returncode != 0
    assert "The demo failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupted_demo_leaves_no_process(tmp_path: Path, cache: Path) -> None:
    data = tmp_path / "data"
    child = subprocess.Popen(
        DEMO, cwd=ROOT, env=environment(data, cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until(lambda: any("celery" in line for line in left_over(data)), 60, "its Studio to run")
    child.send_signal(signal.SIGTERM)
    assert child.wait(40) != 0
    until(lambda: not left_over(data), 5, "no process on the demo's data")
