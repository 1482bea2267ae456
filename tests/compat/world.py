"""A project on a running Studio as the published packages see it."""

from __future__ import annotations

import json
import secrets
import shutil
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from studio_sdk import StudioApi
from studio_sdk.project.archive import create_package

from tests.compat.packages.model import build
from tests.compat.runners import Device, Devices, run_in
from tests.services.stack import Stack, wait_for

PACKAGES = Path(__file__).parent / "packages"
ENDED = ("finished", "failed", "stopped")

_API_CLIENT = """
import json, sys
from fedn import APIClient
given = json.loads(sys.argv[1])
client = APIClient(host=given["host"], token=given["token"], secure=given["secure"], verify=True)
result = None
{body}
print(json.dumps(result, default=str))
"""


_SCALEOUT_API = """
import json, sys
from scaleoututil.api.client import Scaleout
given = json.loads(sys.argv[1])
client = Scaleout(host=given["url"], token=given["token"])
result = None
{body}
print(json.dumps(result, default=str))
"""


def package_folder(form: str, target: Path) -> Path:
    """A copy of the package of that form (`command` or `importer`), complete with the model both share."""
    folder = target / f"{form}-{secrets.token_hex(3)}"
    shutil.copytree(PACKAGES / form, folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACKAGES / "model.py", folder)
    return folder


def share(step: float, examples: int) -> dict[str, str]:
    """The environment of a client that adds `step` in each round and says it has so many examples."""
    return {"COMPAT_STEP": str(step), "COMPAT_EXAMPLES": str(examples)}


def expected(rounds: int, *shares: tuple[float, int]) -> list[np.ndarray]:
    """The layers after so many rounds with clients of these (step, examples), each taking part in all of them."""
    mean = sum(step * examples for step, examples in shares) / sum(examples for _, examples in shares)
    seed = [layer.astype(np.float64) for layer in build().values()]
    return [layer + rounds * mean * (i + 1) for i, layer in enumerate(seed)]


def layers_in(file: Path) -> list[np.ndarray]:
    """The layers of an npz with keys `0` to `n-1`."""
    with np.load(file, allow_pickle=False) as archive:
        assert sorted(archive.files, key=int) == [str(i) for i in range(len(archive.files))]
        return [archive[str(i)] for i in range(len(archive.files))]


def assert_equal_layers(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    """The same shapes and numbers, to what float32 can hold."""
    assert [layer.shape for layer in found] == [layer.shape for layer in wanted]
    for mine, theirs in zip(found, wanted):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


@dataclass
class World:
    """A Studio, a person on it, and the devices of the test."""

    stack: Stack
    api: StudioApi
    devices: Devices
    folder: Path

    def site(self, name: str = "Compat") -> Site:
        """A new project of that person."""
        slug = str(self.api.create_project(f"{name} {secrets.token_hex(3)}")["slug"])
        folder = self.folder / slug
        folder.mkdir()
        return Site(self, slug, folder)


@dataclass
class Site:
    """One project, and what tests do in it. `url` has no slash at the end."""

    world: World
    slug: str
    folder: Path

    @property
    def api(self) -> StudioApi:
        return self.world.api

    @property
    def url(self) -> str:
        return self.world.stack.web

    @property
    def host(self) -> str:
        """`host:port` of the pages."""
        return self.url.partition("://")[2]

    @property
    def reducer(self) -> str:
        """The path under which FEDn finds this project's controller on that host."""
        return f"{self.slug}-fedn-reducer"

    @cached_property
    def admin_token(self) -> str:
        """What FEDn calls an admin token."""
        made = self.api.create_token(
            "compat", kind="project", project=self.slug, scopes=["read", "write", "admin"]
        )
        return str(made["token"])

    @cached_property
    def enrolment_token(self) -> str:
        """What FEDn calls a client token: good for any number of new devices."""
        return str(self.api.create_token("devices", kind="enrolment", project=self.slug)["token"])

    @cached_property
    def user_token(self) -> str:
        """The person's own."""
        made = self.api.create_token("laptop", kind="user", scopes=["read", "write", "admin"])
        return str(made["token"])

    @cached_property
    def scaleout_ticket(self) -> str:
        """What `scaleout client create-enrollment-token` prints: good for any number of new devices."""
        made = self.post("auth/enrollment-tokens", self.admin_token, name="devices", expires_in_hours=1)
        return str(made["token"])

    def post(self, path: str, token: str, **body: Any) -> dict[str, Any]:
        """POST JSON below /api/v1/ as the published packages do."""
        sent = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/v1/{path}", json.dumps(body).encode(), sent)
        with urllib.request.urlopen(request, timeout=20) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    # --- content ----------------------------------------------------------------------------------------------
    def archive(self, form: str = "command") -> Path:
        """The compute package of that form as a .tgz; the importer form is packed as Scaleout's own command does."""
        folder = package_folder(form, self.folder)
        target = self.folder / f"{folder.name}.tgz"
        if form == "command":
            return create_package(folder, target).path
        shutil.make_archive(str(target.with_suffix("")), "gztar", folder)
        return Path(f"{target.with_suffix('')}.tar.gz")

    def upload_package(self, form: str = "command") -> str:
        """Through our own API; returns its id."""
        return str(self.api.upload_package(self.slug, self.archive(form), f"compat {form}")["id"])

    def seed_file(self) -> Path:
        """The seed model as FEDn's helper writes it."""
        path = self.folder / "seed.npz"
        np.savez_compressed(path, **build())
        return path

    def upload_seed(self) -> str:
        """Through our own API; returns its id."""
        return str(self.api.upload_model(self.slug, self.seed_file(), "seed")["id"])

    def layers_of(self, model_id: str) -> list[np.ndarray]:
        """A model's layers, downloaded through our own API."""
        from studio_sdk import load_parameters

        path = self.folder / f"{model_id}.safetensors"
        self.api.download_model(self.slug, model_id, path)
        return [np.array(layer) for layer in load_parameters(path).values()]

    # --- devices ----------------------------------------------------------------------------------------------
    def fedn_client(self, name: str, step: float = 1, examples: int = 1, **env: str) -> Device:
        """A FEDn client with this project's client token, started; `env` adds to its environment."""
        return self.world.devices.start_fedn_client(
            name, url=self.url, token=self.enrolment_token, env={**share(step, examples), **env}
        )

    def scaleout_client(self, name: str, step: float = 1, examples: int = 1, **env: str) -> Device:
        """A Scaleout client that enrols itself, started."""
        return self.world.devices.start_scaleout_client(
            name, url=self.url, token=self.scaleout_ticket, env={**share(step, examples), **env}
        )

    def native_client(self, name: str, step: float = 1, examples: int = 1, **env: str) -> Device:
        """Our own client, started."""
        config = self.folder / f"{name}.yaml"
        config.write_text(self.api.create_client(self.slug, name)["config_yaml"])
        return self.world.devices.start_native_client(name, config, env={**share(step, examples), **env})

    def until_online(self, *names: str, timeout: float = 40.0) -> None:
        """Wait for these clients on the Clients page."""

        def online() -> bool:
            found = {row["name"] for row in self.api.clients(self.slug) if row["online"]}
            return set(names) <= found

        try:
            wait_for(online, timeout, f"{', '.join(names)} to be online")
        except AssertionError as late:
            logs = "\n".join(
                f"--- {d.name}\n{d.log[-3000:]}" for d in self.world.devices.started if d.name in names
            )
            raise AssertionError(f"{late}\n{logs}\n{self.world.stack.log('combiner-1')[-3000:]}") from None

    # --- sessions ---------------------------------------------------------------------------------------------
    def session(self, **settings: Any) -> str:
        """A session through our own API, started; returns its id. `seed_model` and `package` as ids."""
        defaults = {"rounds": 1, "validate": False, "round_timeout_s": 60, "max_failed_rounds": 1}
        seed = settings.pop("seed_model", None) or self.upload_seed()
        return str(self.api.create_session(self.slug, seed, **{**defaults, **settings})["id"])

    def until_session(self, session_id: str, timeout: float = 60.0) -> dict[str, Any]:
        """The session once it has ended."""

        def ended() -> dict[str, Any]:
            row = self.api.session(self.slug, session_id)
            return row if row["status"] in ENDED else {}

        try:
            return wait_for(ended, timeout, "the session to end")
        except AssertionError as late:
            logs = "\n".join(f"--- {d.name}\n{d.log[-3000:]}" for d in self.world.devices.started)
            row = json.dumps(self.api.session(self.slug, session_id), default=str)
            raise AssertionError(
                f"{late}\n{row}\n{logs}\n{self.world.stack.log('combiner-1')[-3000:]}"
            ) from None

    # --- the published Python API -----------------------------------------------------------------------------
    def api_client(self, body: str, *, timeout: float = 60.0, **given: Any) -> Any:
        """Run Python in FEDn's environment with `client`, an APIClient of this project, and `given`, a dict.

        Returns:
            What the body left in `result`, as JSON.
        """
        home = self.folder / "api-client"
        secure = self.url.startswith("https:")
        sent = {"host": f"{self.host}/{self.reducer}", "token": self.admin_token, "secure": secure, **given}
        return run_in("fedn", _API_CLIENT.format(body=body), json.dumps(sent), home=home, timeout=timeout)

    def scaleout_api(self, body: str, *, timeout: float = 60.0, **given: Any) -> Any:
        """The same with Scaleout's Python API: `client` is a `Scaleout` of this project."""
        home = self.folder / "scaleout-api"
        sent = {"url": self.url, "token": self.admin_token, **given}
        return run_in(
            "scaleout", _SCALEOUT_API.format(body=body), json.dumps(sent), home=home, timeout=timeout
        )
