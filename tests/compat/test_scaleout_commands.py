"""Scaleout's own commands from the log-in to a stopped session. They are enumerated from the wheel: one that is not
used here must be named as local."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from studio_sdk import StudioApi

from tests.compat.environments import Environment, environment
from tests.compat.outcomes import Outcomes
from tests.compat.runners import scaleout
from tests.compat.wheels import enumerated
from tests.compat.world import Site, World, assert_equal_layers, expected, package_folder, share
from tests.services.stack import wait_for

pytestmark = [pytest.mark.once, pytest.mark.slow]

PASSWORD = "correct-horse-battery-9"
ROUNDS = 2
SHARE = (2.0, 5)
NOUNS = ("client", "combiner", "model", "package", "round", "session", "status", "validation")
# they speak to no server; the first two want a python_env and fill it from a package index
LOCAL = {"run build", "run install"}


@dataclass
class Terminal:
    """Somebody at a terminal with Scaleout's command line."""

    home: Path
    used: set[str] = field(default_factory=set)

    def type(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command that ended well and had nothing to complain of."""
        self.used.add(command)
        done = scaleout(*command.split(), *arguments, home=self.home)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert not re.search("Error|Traceback|Unexpected|Failed|Could not", said), said
        return done

    def read(self, command: str, *arguments: str) -> Any:
        """The JSON that it printed."""
        said = self.type(command, *arguments, "-o", "json").stdout
        return json.loads(said[re.search(r"[{\[]", said).start() :])  # type: ignore[union-attr]


@dataclass
class Trained:
    terminal: Terminal
    site: Site
    session_id: str
    client_id: str


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a command prints for scripts comes after its warnings."""
    return done.stdout.strip().splitlines()[-1]


def log_in(terminal: Terminal, site: Site, name: str) -> None:
    """`scaleout login`, approved in a browser."""
    device = site.world.devices.start(
        "login", "scaleout", [str(environment("scaleout").bin / "scaleout"), "login", site.url], "",
        {"BROWSER": "true", "HOME": str(terminal.home), "SCALEOUT_HOME_DIR": str(terminal.home)},
    )  # fmt: skip
    [line] = device.until_said(r"https?://\S+/\S{8,}")[:1]
    page = re.search(r"https?://\S+", line)
    assert page
    with requests.Session() as browser:
        for address, fields in (
            (f"{site.url}/accounts/login/", {"login": name, "password": PASSWORD}),
            (page[0], {"project": site.slug}),
        ):
            form = browser.get(address, timeout=20)
            fields["csrfmiddlewaretoken"] = browser.cookies["csrftoken"]
            answer = browser.post(form.url, fields, headers={"Referer": form.url}, timeout=20)
            assert answer.ok, answer.text[:2000]
    assert device.ended() == 0
    assert device.said("Logged in successfully")
    terminal.used.add("login")


@pytest.fixture(scope="module")
def trained(scaleout_environment: Environment, world: World) -> Iterator[Trained]:
    """From a log-in to a trained model."""
    name = f"sky-{secrets.token_hex(3)}"
    with StudioApi(world.stack.web) as anonymous:
        anonymous.sign_up(name, f"{name}@example.org", PASSWORD)
        token = str(anonymous.log_in(name, PASSWORD, "tests")["token"])
    terminal = Terminal(world.folder / "terminal")
    terminal.home.mkdir()
    with StudioApi(world.stack.web, token) as api:
        site = World(world.stack, api, world.devices, world.folder).site("Commands")
        log_in(terminal, site, name)
        assert site.url in terminal.type("context").stdout

        folder = package_folder("importer", terminal.home)
        terminal.type("package create", "-p", str(folder), "-o", str(terminal.home))
        terminal.type("package set-active", "-f", str(terminal.home / "package.tgz"), "-n", "mine")
        terminal.type("model set-active", "-f", str(site.seed_file()))
        ticket = last_line(terminal.type("client create-enrollment-token", "-n", "lab"))
        asked = str(uuid.uuid4())
        enrol = ["--enrollment-token", ticket, "-u", site.url, "-n", "north", "--client-id", asked]
        assert last_line(terminal.type("client enroll", *enrol, "-p", str(terminal.home))) == asked
        command = [str(environment("scaleout").bin / "scaleout"), "client", "start", "--remote-package"]
        homes = {"HOME": str(terminal.home), "SCALEOUT_HOME_DIR": str(terminal.home)}
        polling = {"SCALEOUT_CLIENT_TASK_POLLING_INTERVAL": "1", **homes, **share(*SHARE)}
        world.devices.start("north", "scaleout", [*command, "--init", str(terminal.home / f"{asked}.yaml")],
                            asked, polling)  # fmt: skip
        terminal.used.add("client start")
        site.until_online("north")
        terminal.type("session start", "-n", "mine", "-r", str(ROUNDS), "-rt", "60")
        [session] = api.sessions(site.slug)
        site.until_session(session["id"])
        wait_for(lambda: len(list(api.validations(site.slug))) == ROUNDS, 20, "the validations")
        yield Trained(terminal, site, session["id"], asked)


def test_the_session_ended_with_the_right_model(trained: Trained) -> None:
    session = trained.site.api.session(trained.site.slug, trained.session_id)
    assert (session["name"], session["status"], session["rounds_done"]) == ("mine", "finished", ROUNDS)
    assert_equal_layers(trained.site.layers_of(session["current_model"]), expected(ROUNDS, SHARE))


def test_everything_is_listed_and_got(trained: Trained) -> None:
    """Several terminals at once: each command takes a second only to start."""
    counts = {"client": 1, "combiner": 1, "model": ROUNDS + 1, "package": 1, "round": ROUNDS, "session": 1,
              "validation": ROUNDS}  # fmt: skip

    def both(noun: str) -> None:
        listed = trained.terminal.read(f"{noun} list")
        rows = listed["result"] if isinstance(listed, dict) else listed
        assert len(rows) == counts.get(noun, len(rows)) >= 1, listed
        name = rows[0][f"{noun}_id"]
        got = trained.terminal.read(f"{noun} get", "-id", str(name))
        assert got[f"{noun}_id"] == name

    with ThreadPoolExecutor(4) as terminals:
        for job in [terminals.submit(both, noun) for noun in NOUNS]:
            job.result()


def test_a_validation_is_asked_for_and_a_session_stopped(trained: Trained) -> None:
    terminal, api, slug = trained.terminal, trained.site.api, trained.site.slug
    model = api.session(slug, trained.session_id)["current_model"]
    before = len(list(api.validations(slug)))
    terminal.type("validation start", "--session-id", trained.session_id, "--model-id", model)
    wait_for(lambda: len(list(api.validations(slug))) == before + 1, 20, "the validation that was asked for")
    terminal.type("session start", "-n", "long", "-r", "500", "-rt", "60")
    terminal.type("session stop")
    [long] = [row for row in api.sessions(slug) if row["name"] == "long"]
    assert trained.site.until_session(long["id"])["status"] == "stopped"


def test_a_combiner_is_named_and_contexts_are_left(trained: Trained) -> None:
    terminal = trained.terminal
    terminal.type("client get-config", "-n", "south", "-p", str(terminal.home))
    assert (terminal.home / "south_0.yaml").exists()
    combiner = next(iter(trained.site.api.combiners(trained.site.slug)))["id"]
    terminal.type("combiner set-public-hostname", "-id", str(combiner), "edge.example.org")
    assert "edge.example.org" in json.dumps(terminal.read("combiner list"))
    terminal.type("remove", "0", "--yes")
    assert "No contexts" in terminal.type("context").stdout


def test_every_command_of_the_wheel_was_used_or_is_local(
    trained: Trained, tmp_path: Path, outcomes: Outcomes
) -> None:
    commands = set(enumerated("scaleout", tmp_path)["commands"])
    assert commands == trained.terminal.used | LOCAL, commands ^ (trained.terminal.used | LOCAL)
    outcomes.works("scaleout", "commands", *trained.terminal.used)
    outcomes.local("scaleout", "commands", *LOCAL)
