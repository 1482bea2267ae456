"""The `studio` command and the API client against a whole Studio."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studio_sdk import StudioApi, StudioApiError, load_parameters, save_parameters
from studio_sdk.rest import Multipart, RetryRule

from tests.sdk_site import STUDIO, Site, free_address, new_person, until
from tests.services.stack import Stack

# the client knows nothing of the database behind Studio
pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def person(live_stack: Stack) -> StudioApi:
    return new_person(live_stack.web)


@pytest.fixture
def site(person: StudioApi, tmp_path: Path) -> Iterator[Site]:
    with Site.open(person, tmp_path) as opened:
        yield opened


class Shell:
    """Runs `studio` with a config folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clean = {key: value for key, value in os.environ.items() if not key.startswith("STUDIO_")}
        self.env = {
            **clean,
            "STUDIO_CONFIG_DIR": str(folder / "config"),
            "STUDIO_CACHE_DIR": str(folder / "cache"),
        }

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [*STUDIO, *arguments], env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        if code:
            assert done.stderr.count("\n") == 1, f"one line says why: {done.stderr}"
            assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_from_login_to_a_downloaded_model(live_stack: Stack, shell: Shell) -> None:
    with StudioApi(live_stack.web) as anonymous:
        anonymous.sign_up("grace", "grace@example.org", "correct-horse-battery-9")
    shell.env["STUDIO_PASSWORD"] = "correct-horse-battery-9"
    shell("login", live_stack.web, "--user", "grace@example.org")
    saved = shell.folder / "config" / "login.json"
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert "correct-horse" not in saved.read_text()

    slug = shell.json("project", "create", "Walk")["slug"]
    assert slug in shell("project", "list")
    folder = shell.folder / "client"
    folder.mkdir()
    (folder / "studio.yaml").write_text(
        "entry_points:\n  build: {command: python build.py}\n  train: {command: python train.py}\n"
        "  validate: {command: python validate.py}\n"
    )
    (folder / "build.py").write_text(
        "import numpy as np\nfrom studio_sdk import save_parameters\n"
        "save_parameters({'w': np.zeros(3, np.float32)}, '../seed.npz')\n"
    )
    (folder / "train.py").write_text(
        "import sys\nfrom studio_sdk import *\n"
        "step = load_settings(sys.argv[1]).get('step', 1)\n"
        "save_parameters({n: a + step for n, a in load_parameters(sys.argv[1]).items()}, sys.argv[2])\n"
        "save_metadata({'num_examples': 1}, sys.argv[2])\n"
    )
    (folder / "validate.py").write_text(
        "import sys\nfrom studio_sdk import load_parameters, save_metrics\n"
        "save_metrics({'mean': load_parameters(sys.argv[1])['w'].mean()}, sys.argv[2])\n"
    )
    shell("run", "build", "--path", "client")
    shell(
        "run",
        "train",
        "--path",
        "client",
        "--input",
        "seed.npz",
        "--output",
        "u.safetensors",
        "--settings",
        '{"step": 4}',
    )
    assert load_parameters(shell.folder / "u.safetensors")["w"].tolist() == [4, 4, 4]
    shell("run", "validate", "--path", "client", "--input", "u.safetensors", "--output", "v.json")
    assert json.loads((shell.folder / "v.json").read_text()) == {"mean": 4.0}

    made = shell.json("package", "create", "--path", "client")
    assert shell.json("package", "upload", "package.tgz")["sha256"] == made["sha256"]
    shell("model", "upload", "seed.npz")
    shell("client", "create", "site-a", "--output", "a.yaml")
    assert stat.S_IMODE((shell.folder / "a.yaml").stat().st_mode) == 0o600
    client = subprocess.Popen(
        [*STUDIO, "client", "start", "-in", "a.yaml"],
        env=shell.env,
        cwd=shell.folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: shell.json("client", "list")[0]["online"])
        watched = shell("session", "start", "--rounds", "2", "--settings", '{"step": 2}', "--watch")
        assert "round 2: 1 updates  mean 4" in watched
        session = shell.json("session", "list")[0]
        assert (session["status"], session["rounds_done"]) == ("finished", 2)
        assert "round 1" in shell("session", "watch", session["id"])
        sha256 = shell.json("model", "download", session["current_model"], "--output", "final.safetensors")[
            "sha256"
        ]
        content = (shell.folder / "final.safetensors").read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
        shell("model", "download", session["current_model"], "--output", "final.npz")
        assert np.load(shell.folder / "final.npz")["w"].tolist() == [4, 4, 4]
        assert "site-a" in shell("event", "tail", "--no-follow")
        arguments = '{"serveropt": "yogi", "learning_rate": 0.5}'
        stepped = shell.json(
            "session", "start", "--rounds", "1", "--seed-model", session["current_model"], "--settings", '{"step": 2}',
            "--aggregator", "fedopt", "--aggregator-args", arguments,
        )  # fmt: skip
        assert stepped["config"]["aggregator_kwargs"] == {
            "serveropt": "yogi", "learning_rate": 0.5, "beta1": 0.9, "beta2": 0.99, "tau": 0.0001,
        }  # fmt: skip
        # from 4 towards 6, by 0.5 * (0.1 * 2) / (sqrt(0.01 * 2 * 2) + 0.0001)
        assert "round 1: 1 updates  mean 4.5" in shell("session", "watch", stepped["id"])
    finally:
        client.terminate()
        assert client.wait(10) == 0


def test_each_kind_of_refusal_has_its_exit_code(site: Site, shell: Shell, live_stack: Stack) -> None:
    assert "Not logged in" in shell("project", "list", code=3)
    shell("login", live_stack.web, "--token", "stu_nonsense", code=3)
    shell("nonsense", code=2)
    shell("session", "start", "--settings", "[]", code=2)
    shell("session", "start", "--aggregator", "fedopt", "--aggregator-args", "adam", code=2)
    shell.env |= {"STUDIO_URL": f"http://{free_address()}", "STUDIO_TOKEN": "t"}
    assert "cannot be reached" in shell("project", "list", code=5)
    token = str(site.api.rest._session.headers["Authorization"]).removeprefix("Bearer ")
    shell.env |= {"STUDIO_URL": live_stack.web, "STUDIO_TOKEN": token}
    shell("model", "list", "--project", "no-such-project", code=4)
    assert "no model yet" in shell("session", "start", "--project", site.slug, code=4)
    shell.env["STUDIO_TOKEN"] = site.config()[0].token
    shell("login", live_stack.web, "--token", shell.env["STUDIO_TOKEN"], code=3)


def test_a_saved_token_goes_to_no_other_server(shell: Shell) -> None:
    config = shell.folder / "config"
    config.mkdir()
    (config / "login.json").write_text(
        json.dumps({"url": "http://127.0.0.1:1", "token": "secret", "username": "a"})
    )
    shell.env["STUDIO_URL"] = f"http://{free_address()}"
    assert "Not logged in" in shell("project", "list", code=3)


def test_every_list_of_the_api_is_read_to_its_last_page(site: Site) -> None:
    for number in range(3):
        site.api.create_client(site.slug, f"c-{number}")
    assert len(list(site.api.clients(site.slug, limit=1))) == 3


def test_an_error_carries_code_sentence_and_status(site: Site) -> None:
    with pytest.raises(StudioApiError) as refused:
        site.api.project("no-such-project")
    assert (refused.value.status, refused.value.exit_code) == (404, 4)
    assert refused.value.code and refused.value.message


def test_a_large_upload_is_read_while_it_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    path.write_bytes(os.urandom(3_000_000))
    body = Multipart({"name": "x"}, "file", path, "m.npz")
    chunks = list(body)
    assert sum(map(len, chunks)) == len(body)
    assert max(map(len, chunks)) <= 1024 * 1024
    assert b"".join(chunks) == b"".join(body), "it can be sent again"


class Flaky(BaseHTTPRequestHandler):
    """Fails the first calls, then answers; remembers what it was asked."""

    seen: list[tuple[str, str | None]] = []
    fail = 0
    content = b"0123456789" * 1000

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        cls = type(self)
        cls.seen.append((self.command, self.headers.get("Idempotency-Key") or self.headers.get("Range")))
        if len(cls.seen) <= cls.fail:
            self.send_error(503)
            return
        if self.path.startswith("/file"):
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(self.content) - start))
            self.end_headers()
            # the first answer breaks off
            self.wfile.write(self.content[start : None if start else 4000])
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"ok": true}')

    do_GET = do_POST = _answer  # noqa: N815 - http.server calls them so

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def flaky() -> Iterator[StudioApi]:
    Flaky.seen, Flaky.fail = [], 0
    server = HTTPServer(("127.0.0.1", 0), Flaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield StudioApi(f"http://127.0.0.1:{server.server_port}", "t", retry=RetryRule(tries=4, first_s=0.01))
    server.shutdown()
    server.server_close()


def test_a_call_that_may_be_repeated_is_repeated_with_the_same_key(flaky: StudioApi) -> None:
    Flaky.fail = 2
    assert flaky.create_project("x") == {"ok": True}
    assert len(Flaky.seen) == 3
    assert len({key for _method, key in Flaky.seen}) == 1


def test_a_call_that_may_not_be_repeated_is_made_once(flaky: StudioApi) -> None:
    Flaky.fail = 1
    with pytest.raises(StudioApiError) as failed:
        flaky.stop_session("p", "s")
    assert failed.value.status == 503
    assert len(Flaky.seen) == 1


def test_a_broken_download_goes_on_where_it_stopped(flaky: StudioApi, tmp_path: Path) -> None:
    target = tmp_path / "out"
    sha256 = hashlib.sha256(Flaky.content).hexdigest()
    assert flaky.rest.download("/file", target, sha256=sha256) == sha256
    assert target.read_bytes() == Flaky.content
    assert Flaky.seen == [("GET", None), ("GET", "bytes=4000-")]


def test_a_download_with_another_checksum_leaves_nothing(flaky: StudioApi, tmp_path: Path) -> None:
    with pytest.raises(StudioApiError, match="Nothing was kept"):
        flaky.rest.download("/file", tmp_path / "out", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_seed_model_survives_the_way_through_studio(site: Site) -> None:
    arrays = {"a": np.arange(5, dtype=np.float16), "b": np.array([True, False])}
    path = site.folder / "seed.npz"
    save_parameters(arrays, path)
    row = site.api.upload_model(site.slug, path, "seed")
    site.api.download_model(site.slug, str(row["id"]), site.folder / "back.safetensors")
    back = load_parameters(site.folder / "back.safetensors")
    assert {name: (array.dtype, array.tolist()) for name, array in back.items()} == {
        name: (array.dtype, array.tolist()) for name, array in arrays.items()
    }
