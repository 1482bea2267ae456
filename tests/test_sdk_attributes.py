"""A client says what it is, and sessions choose it by that."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from studio_sdk import FederatedClient
from studio_sdk.client.attributes import from_mapping, from_text
from studio_sdk.client.config import ClientConfig
from studio_sdk.errors import Exit, SdkError

from tests.sdk_site import Running, Site, add_one, new_person, until
from tests.services.stack import Stack

pytestmark = pytest.mark.once

CONFIG = {"api_url": "http://127.0.0.1:1", "token": "t"}


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("region=eu", "eu"),
        ("region = eu north ", "eu north"),
        ("gpu=2", 2),
        ("memory_gb=15.5", 15.5),
        ("charging=true", True),
        ("charging=false", False),
        ("version=1.10.2", "1.10.2"),
        ('version="1.10"', "1.10"),
        ('note="a, b"', "a, b"),
        ("tags=mobile,lab", ["mobile", "lab"]),
        ("tags=mobile,", ["mobile"]),
        ("sizes=1,2", [1, 2]),
        ("query=a=b", "a=b"),
        ("huge=1e999", "1e999"),
        ("nothing=nan", "nan"),
        ("empty=", ""),
    ],
)
def test_what_is_typed_becomes_text_number_truth_or_list(typed: str, value: Any) -> None:
    ((name, read),) = from_text([typed]).items()
    assert name == typed.split("=")[0].strip()
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize("typed", ["region", "=eu", " = eu", ""])
def test_what_is_no_pair_is_refused(typed: str) -> None:
    with pytest.raises(SdkError, match="NAME=VALUE") as refused:
        from_text([typed])
    assert refused.value.exit_code == Exit.USAGE


def test_a_config_may_hold_attributes(tmp_path: Path) -> None:
    path = tmp_path / "client.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "attributes": {"region": "eu", "tags": ["a", 1], "gpu": 1.5}}))
    assert ClientConfig.read(path).attributes == {"region": "eu", "tags": ["a", 1], "gpu": 1.5}
    assert ClientConfig.of(CONFIG).attributes == from_mapping(None) == {}


@pytest.mark.parametrize(
    "wrong", ["eu", ["eu"], {"a": {"b": 1}}, {"a": None}, {"a": [[1]]}, {"a": float("nan")}]
)
def test_attributes_of_another_shape_are_refused(wrong: Any) -> None:
    with pytest.raises(SdkError, match=r"attribute") as refused:
        ClientConfig.of({**CONFIG, "attributes": wrong})
    assert refused.value.exit_code == Exit.USAGE


@pytest.mark.parametrize("wrong", [dt.date(2026, 1, 1), float("nan"), None, {"a": 1}, {1}])
def test_attributes_given_in_python_are_refused_at_once_and_not_when_it_connects(
    tmp_path: Path, wrong: Any
) -> None:
    with pytest.raises(SdkError, match="The attribute since must be a text, a number") as refused:
        FederatedClient(ClientConfig.of(CONFIG), work_dir=tmp_path, attributes={"since": wrong})
    assert refused.value.exit_code == Exit.USAGE


def test_numbers_of_numpy_are_attributes_too(site: Site) -> None:
    lines: list[str] = []
    config, _path = site.config()
    said = {"gpu": np.int64(2), "memory": np.float32(1.5), "sizes": np.array([1, 2]), "tags": ("a", "b")}
    client = FederatedClient(config, work_dir=site.folder / "work", say=lines.append, attributes=said)
    running = Running(client.set_train(add_one), lines).start()
    site.exits.callback(running.end)
    seed = site.seed()
    session = site.session(seed, selection={"where": "gpu=2 and memory=1.5 and sizes=2 and tag:b"})
    until(lambda: site.ended(session), what="the session to end")
    assert site.api.session(site.slug, session)["status"] == "finished"


@pytest.fixture
def site(live_stack: Stack, tmp_path: Path) -> Iterator[Site]:
    with Site.open(new_person(live_stack.web), tmp_path) as opened:
        yield opened


def test_a_session_trains_on_the_clients_that_say_what_it_asks_for(site: Site) -> None:
    """Typed at start, over what the config says; the other client is online and left alone."""
    package, _folder = site.package()
    _config, path = site.config("chosen", attributes={"region": "us", "gpu": 2})
    site.process(path, "--attribute", "region=eu", "--attribute", "tags=lab")
    _config, other = site.config("other", attributes={"region": "us", "gpu": 2})
    site.process(other)
    until(lambda: site.online(2), 30)
    session = site.session(
        site.seed(), package=package, selection={"where": "region=eu and gpu>=2 and tag:lab"}
    )
    assert until(lambda: site.ended(session), 60)["status"] == "finished"
    (row,) = [one for one in site.api.assignments(site.slug, session) if one["kind"] == "train"]
    assert row["client_name"] == "chosen"


def test_a_mistyped_attribute_ends_the_command_with_a_sentence(site: Site) -> None:
    _config, path = site.config()
    child, log = site.process(path, "--attribute", "region")
    assert child.wait(20) == Exit.USAGE
    assert "NAME=VALUE" in log.read_text()
