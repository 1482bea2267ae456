"""`studio session start` and `show`: every setting can be said on the command line, and arrives."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from studio_sdk import StudioApi, StudioApiError, save_parameters
from studio_sdk.cli.main import cli
from studio_sdk.cli.session_settings import pairs_of
from studio_sdk.errors import SdkError

from tests.sdk_site import new_person
from tests.services.stack import Stack
from tests.session_samples import NEEDS, SAMPLES

pytestmark = pytest.mark.once
Run = Callable[..., str]


@pytest.fixture(scope="module")
def person(shared_stack: Stack) -> StudioApi:
    return new_person(shared_stack.web)


@pytest.fixture(scope="module")
def slug(person: StudioApi, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A project with a seed model and two clients that are never online: its sessions wait."""
    slug = str(person.create_project("Settings")["slug"])
    seed = tmp_path_factory.mktemp("seed") / "seed.npz"
    save_parameters({"w": np.zeros(3, np.float32)}, seed)
    person.upload_model(slug, seed, "seed")
    for name in ("north", "south"):
        person.create_client(slug, name)
    return slug


@pytest.fixture(scope="module")
def token(person: StudioApi) -> str:
    return str(person.create_token("command line")["token"])


@pytest.fixture
def studio(token: str, slug: str, shared_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, in this process, logged in by the environment."""
    for name, value in (("URL", shared_stack.web), ("TOKEN", token), ("PROJECT", slug)):
        monkeypatch.setenv(f"STUDIO_{name}", value)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, arguments, standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return done.stdout

    return run


def started(studio: Run, *arguments: str) -> dict[str, Any]:
    row = json.loads(studio("session", "start", "--package", "none", *arguments, "--json"))
    config: dict[str, Any] = row["config"]
    return config


def value_in(config: dict[str, Any], place: str) -> Any:
    value: Any = config
    for name in place.split("."):
        value = value[name]
    return value


@pytest.mark.parametrize("place", list(SAMPLES))
def test_a_setting_said_by_its_name_arrives(studio: Run, place: str) -> None:
    wanted = {**NEEDS.get(place, {}), place: SAMPLES[place]}
    pairs = [
        part
        for name, value in wanted.items()
        for part in ("--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    ]
    assert value_in(started(studio, *pairs), place) == SAMPLES[place]


def test_the_options_of_the_everyday_arrive(studio: Run, person: StudioApi, slug: str) -> None:
    config = started(
        studio, "--aggregator", "fedopt", "--aggregator-args", "serveropt=yogi,learning_rate=0.5",
        "--select", "guided,exploration=0.5", "--where", "region=eu and gpu>=1", "--fraction", "0.5",
        "--over-commit", "1.3", "--seed", "7", "--grace", "5", "--deterministic", "--clients", "north, south",
        "--min-clients", "2", "--no-validate",
    )  # fmt: skip
    assert config["aggregator_kwargs"]["serveropt"] == "yogi"
    assert config["aggregator_kwargs"]["learning_rate"] == 0.5
    chosen = config["selection"]
    assert (chosen["strategy"], chosen["exploration"], chosen["seed"]) == ("guided", 0.5, 7)
    assert (chosen["where"], chosen["fraction"]) == ("region=eu and gpu>=1", 0.5)
    assert chosen["over_commitment"] == 1.3
    assert (config["grace_s"], config["deterministic"], config["validate"]) == (5, True, False)
    assert config["client_ids"] == sorted(str(row["id"]) for row in person.clients(slug))


def test_every_example_of_the_help_starts_a_session_as_it_stands(studio: Run) -> None:
    help_ = studio("session", "start", "--help")
    examples = re.findall(r"^ +studio session start (.*)$", help_, re.MULTILINE)
    assert len(examples) >= 5
    for line in examples:
        words = [word for word in shlex.split(line) if word != "--watch"]
        assert started(studio, *words)


def test_the_help_names_aggregators_that_there_are(studio: Run) -> None:
    help_ = " ".join(studio("session", "start", "--help").split())
    named = re.findall(
        r"[a-z]+", help_.split("How updates become a model:")[1].split("…")[0].replace("default", "")
    )
    assert len(named) >= 3
    for name in named:
        assert started(studio, "--aggregator", name, "--min-clients", "9")["aggregator"] == name


def test_asynchronous_and_private_take_their_numbers_or_none(studio: Run) -> None:
    plain = started(studio, "--async", "--compression", "int8")
    assert plain["asynchronous"]["buffer_size"] == 10 and plain["privacy"] is None
    assert plain["compression"] == "int8"
    buffered = started(studio, "--async", "buffer=4,concurrency=9,staleness=2,exponent=1")
    assert buffered["asynchronous"] == {
        "buffer_size": 4, "concurrency": 9, "max_staleness": 2, "staleness_exponent": 1.0,
    }  # fmt: skip
    private = started(studio, "--private", "clip=0.5,noise=1.1,clients=50,budget=8,adaptive=true")["privacy"]
    assert (private["clip_norm"], private["noise_multiplier"], private["expected_clients"]) == (0.5, 1.1, 50)
    assert (private["max_epsilon"], private["adaptive"]) == (8.0, True)


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_a_file_says_it_once_and_options_go_before_it(studio: Run, tmp_path: Path, kind: str) -> None:
    text = {
        "json": '{"rounds": 9, "selection": {"strategy": "guided", "seed": 1, "fraction": 0.5}, "grace_s": 3}',
        "yaml": "rounds: 9\nselection: {strategy: guided, seed: 1, fraction: 0.5}\ngrace_s: 3\n",
    }[kind]
    (tmp_path / f"session.{kind}").write_text(text)
    start = ("session", "start", "--package", "none", "--config", str(tmp_path / f"session.{kind}"))
    row = json.loads(studio(*start, "--seed", "2", "--set", "grace_s=4", "--json"))
    assert row["rounds_wanted"] == 9
    assert row["config"]["selection"]["strategy"] == "guided" and row["config"]["selection"]["seed"] == 2
    assert row["config"]["grace_s"] == 4


def test_show_prints_what_was_asked(studio: Run) -> None:
    started(studio, "--name", "Shown", "--private", "noise=2,clients=50", "--where", "region=eu")
    text = studio("session", "show")
    for line in (
        "name +Shown",
        "selection.where +region=eu",
        "privacy.noise_multiplier +2",
        "aggregator +fedavg",
    ):
        name, value = line.split(" +")
        assert any(said.split() == [name, value] for said in text.splitlines()), (line, text)
    assert json.loads(studio("session", "show", "--json"))["config"]["privacy"]["noise_multiplier"] == 2


def test_what_cannot_be_is_refused_by_the_server_in_its_words(studio: Run) -> None:
    with pytest.raises(StudioApiError, match="fraction must be a number above 0 and at most 1, not 3"):
        started(studio, "--fraction", "3")
    with pytest.raises(StudioApiError, match="privacy has no setting called 'sigma'"):
        started(studio, "--private", "sigma=1")
    with pytest.raises(SdkError, match="no client called nobody: studio client list"):
        started(studio, "--clients", "nobody")


@pytest.mark.parametrize(
    "arguments", [("--set", "grace_s"), ("--private", "clip"), ("--async", "{"), ("--set", "=1")]
)
def test_what_is_no_pair_is_a_mistake_of_use(studio: Run, arguments: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        started(studio, *arguments)


def test_pairs_are_read_as_json_reads_values() -> None:
    assert pairs_of("--x", ' a=1, b=true,c=x=y,d={"z": null} ') == {
        "a": 1,
        "b": True,
        "c": "x=y",
        "d": {"z": None},
    }
    assert pairs_of("--x", '{"a": [1, 2]}') == {"a": [1, 2]}
    assert pairs_of("--x", "n=3", {"n": "noise"}) == {"noise": 3}
