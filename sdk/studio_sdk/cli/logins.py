"""Where `studio login` leaves address and token, and how every command finds them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from ..api import StudioApi
from ..errors import SdkError

LOGIN_NEEDED = 3


@dataclass(frozen=True)
class Login:
    """A server and a token for it."""

    url: str
    token: str
    username: str = ""


def config_dir() -> Path:
    """`STUDIO_CONFIG_DIR`, else ~/.config/studio."""
    named = os.environ.get("STUDIO_CONFIG_DIR")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "studio"


def save_login(login: Login) -> Path:
    """Write the login, readable by its owner only."""
    folder = config_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = folder / "login.json"
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(login), file)
    part.replace(target)
    return target


def load_login() -> Login:
    """STUDIO_URL and STUDIO_TOKEN when set, else what `studio login` saved. Raises SdkError without either."""
    saved = Login("", "")
    path = config_dir() / "login.json"
    if path.is_file():
        try:
            saved = Login(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise SdkError(f"{path} cannot be read; run `studio login` again.", LOGIN_NEEDED) from None
    url = os.environ.get("STUDIO_URL") or saved.url
    # a saved token is for the server it came from, and goes to no other
    token = os.environ.get("STUDIO_TOKEN") or (
        saved.token if url.rstrip("/") == saved.url.rstrip("/") else ""
    )
    if not url or not token:
        raise SdkError(
            "Not logged in: run `studio login URL`, or set STUDIO_URL and STUDIO_TOKEN.", LOGIN_NEEDED
        )
    return Login(url, token, saved.username)


def api() -> StudioApi:
    """The API client of the current login."""
    login = load_login()
    return StudioApi(login.url, login.token, ca_cert=os.environ.get("STUDIO_CA_CERT") or None)


def project_slug(given: str | None, client: StudioApi) -> str:
    """The project named by `--project` or STUDIO_PROJECT (the option's environment variable), else my only one."""
    if given:
        return given
    slugs = [str(row["slug"]) for row in client.projects()]
    if len(slugs) == 1:
        return slugs[0]
    if not slugs:
        raise SdkError("There is no project yet: run `studio project create NAME`.", 4)
    raise click.UsageError(f"Which project? Give --project or set STUDIO_PROJECT: {', '.join(slugs[:20])}")
