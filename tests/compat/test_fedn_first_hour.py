"""The first hour with Studio by FEDn's own commands: log in, make a project, bring a model, start clients, train, and
list and get everything. Commands are enumerated from the wheel: one that is not used here must be named as local."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from studio_sdk import StudioApi

from tests.compat.environments import Environment, environment
from tests.compat.outcomes import Outcomes
from tests.compat.runners import fedn, run_in
from tests.compat.wheels import enumerated
from tests.compat.world import World, assert_equal_layers, expected, layers_in, package_folder, share
from tests.services.stack import wait_for

pytestmark = [pytest.mark.once, pytest.mark.slow]

CONFIG = {"client_id", "discover_host", "name", "refresh_token", "token"}
PASSWORD = "correct-horse-battery-9"
ROUNDS = 2
NOUNS = ("client", "combiner", "model", "package", "round", "session", "status", "validation")
# they speak to nobody, or start a server of FEDn's own in place of this one
LOCAL = {"run startup", "run train", "run validate", "run combiner", "controller start", "combiner start",
         "hooks start"}  # fmt: skip


# The wheel's own command line, several commands in one process: it takes more than a second only to be imported.
SEVERAL = """
import importlib, json, pkgutil, sys
import fedn.cli
from click.testing import CliRunner
for module in pkgutil.iter_modules(fedn.cli.__path__):
    importlib.import_module(f"fedn.cli.{module.name}")
from fedn.cli.main import main
ran = [CliRunner().invoke(main, arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([[one.exit_code, one.output + (repr(one.exception) if one.exception else "")] for one in ran]))
"""
BAD = re.compile("Error|Traceback|Unexpected|Failed")


@dataclass
class Hour:
    """Somebody at a terminal with FEDn's command line."""

    home: Path
    host: str
    world: World
    used: set[str] = field(default_factory=set)

    def type(self, command: str, *arguments: str) -> str:
        """What the installed program printed; it ended well and had nothing to complain of."""
        self.used.add(command)
        done = fedn(*command.split(), *arguments, home=self.home)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert not BAD.search(said), said
        return said

    def types(self, *lines: tuple[str, ...]) -> list[str]:
        """The same of several commands, one after the other."""
        self.used |= {command for command, *_ in lines}
        typed = json.dumps([[*command.split(), *arguments] for command, *arguments in lines])
        heard = run_in("fedn", SEVERAL, typed, home=self.home)
        for line, (code, said) in zip(lines, heard, strict=True):
            assert code == 0, (line, said)
            assert not BAD.search(said), (line, said)
        return [said for _code, said in heard]

    def studio(self, command: str, *arguments: str) -> tuple[str, ...]:
        """A command that speaks to the Studio rather than to a project."""
        return (command, "--protocol", "http", "-H", self.host, *arguments)


def value(said: str, key: str) -> str:
    """The first object's value in what `list` or `get` printed."""
    found = re.search(rf"^\s+{key}: (.+)$", said, re.MULTILINE)
    assert found, said
    return found[1]


@dataclass
class Trained:
    hour: Hour
    api: StudioApi
    slug: str
    session_id: str


@pytest.fixture(scope="module")
def hour(fedn_environment: Environment, world: World) -> Hour:
    home = world.folder / "first-hour"
    home.mkdir()
    return Hour(home, world.stack.web.partition("://")[2], world)


@pytest.fixture(scope="module")
def trained(hour: Hour) -> Iterator[Trained]:
    """From nothing to a trained model."""
    name = f"fay-{secrets.token_hex(3)}"
    with StudioApi(hour.world.stack.web) as anonymous:
        anonymous.sign_up(name, f"{name}@example.org", PASSWORD)
        token = str(anonymous.log_in(name, PASSWORD, "tests")["token"])
    assert "Login successful" in hour.type(*hour.studio("studio login", "-u", name, "-P", PASSWORD))
    *made, listed = hour.types(
        hour.studio("project create", "--name", "Other", "--no-interactive"),
        hour.studio("project create", "--name", "First hour", "--no-interactive"),
        hour.studio("project list"),
    )
    assert all("created" in said for said in made)
    assert name in listed
    [slug] = re.findall(r"first-hour-\w+", listed)
    folder = package_folder("command", hour.home)
    active, got, *_ = hour.types(
        hour.studio("project set-context", "-id", slug),
        hour.studio("project get", "-id", slug),
        hour.studio("client get-config", "-n", "north", "-g", "2"),
        ("run build", "-p", str(folder)),
        ("package create", "-p", str(folder), "-o", str(hour.home)),
        ("model set-active", "-f", str(folder / "seed.npz")),
    )
    assert "is now active" in active
    assert slug in got
    with StudioApi(hour.world.stack.web, token) as api:
        # FEDn's command line uploads no package: that is done on the page, or by its Python API
        api.upload_package(slug, hour.home / "package.tgz", "mine")
        for number, (step, examples) in enumerate([(1.0, 10), (3.0, 30)]):
            config = hour.home / f"north_{number}.yaml"
            assert set(yaml.safe_load(config.read_text())) == CONFIG
            command = [str(environment("fedn").bin / "fedn"), "client", "start", "-in", str(config)]
            hour.world.devices.start(f"north_{number}", "fedn", command, "", share(step, examples))
        hour.used.add("client start")

        def online() -> bool:
            return sum(row["online"] for row in api.clients(slug)) == 2

        wait_for(online, 40, "both clients to be online")
        said = hour.type("session start", "-n", "mine", "-r", str(ROUNDS), "-mc", "2", "-rt", "60")
        assert "'message': 'Session started'" in said
        [session] = api.sessions(slug)
        wait_for(lambda: api.session(slug, session["id"])["status"] != "running", 60, "the session to end")
        wait_for(lambda: len(list(api.validations(slug))) == 2 * ROUNDS, 20, "all validations")
        yield Trained(hour, api, slug, session["id"])


def test_both_clients_trained_the_session_to_its_end(trained: Trained) -> None:
    session = trained.api.session(trained.slug, trained.session_id)
    assert (session["name"], session["status"], session["rounds_done"]) == ("mine", "finished", ROUNDS)
    target = trained.hour.home / "final.npz"
    trained.api.download_model(trained.slug, session["current_model"], target, file_format="npz")
    assert_equal_layers(layers_in(target), expected(ROUNDS, (1.0, 10), (3.0, 30)))


def test_everything_is_listed_and_got(trained: Trained) -> None:
    hour = trained.hour
    counts = {"client": 2, "combiner": 1, "model": ROUNDS + 1, "package": 1, "round": ROUNDS, "session": 1,
              "validation": 2 * ROUNDS}  # fmt: skip

    narrowed = ("model", "round", "validation")
    listed = hour.types(
        *((f"{noun} list",) for noun in NOUNS),
        *((f"{noun} list", "-s", trained.session_id, "--n_max", "1") for noun in narrowed),
    )
    ids = {}
    for noun, said in zip(NOUNS, listed, strict=False):
        found = re.search(
            rf"^Found (\d+) {'statuses' if noun == 'status' else f'{noun}s'}$", said, re.MULTILINE
        )
        assert found, said
        assert int(found[1]) == counts.get(noun, int(found[1])) >= 1
        ids[noun] = value(said, f"{noun}_id")
    in_session = {**counts, "model": ROUNDS}
    for noun, said in zip(narrowed, listed[len(NOUNS) :], strict=True):
        assert re.search(rf"^Found {in_session[noun]} ", said, re.MULTILINE), said
        assert said.count(f"\t{noun}_id: ") == 1
    for noun, said in zip(
        NOUNS, hour.types(*((f"{noun} get", "-id", ids[noun]) for noun in NOUNS)), strict=True
    ):
        assert value(said, f"{noun}_id") == ids[noun]


def test_a_project_is_updated_and_removed(trained: Trained) -> None:
    hour = trained.hour
    other = next(row["slug"] for row in trained.api.projects() if row["name"] == "Other")
    updated, served, _, removed, listed = hour.types(
        hour.studio("project update", "-id", trained.slug),
        hour.studio("project add-combiner", "-id", trained.slug, "-nr_of_combiners", "2"),
        hour.studio("project set-context", "-id", other),
        hour.studio("project delete", "-id", other, "-y"),
        hour.studio("project list"),
    )
    assert "up-to-date" in updated
    assert "initiated" in served
    assert "has been removed" in removed
    assert other not in listed
    assert trained.slug in (hour.home / ".fedn" / "context.yaml").read_text(), (
        "the one that is left is active"
    )


def test_every_command_of_the_wheel_was_used_or_is_local(
    trained: Trained, tmp_path: Path, outcomes: Outcomes
) -> None:
    commands = set(enumerated("fedn", tmp_path)["commands"])
    assert commands == trained.hour.used | LOCAL, commands ^ (trained.hour.used | LOCAL)
    outcomes.works("fedn", "commands", *trained.hour.used)
    outcomes.local("fedn", "commands", *LOCAL)
