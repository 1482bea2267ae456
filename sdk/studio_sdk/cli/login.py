"""`studio login`."""

from __future__ import annotations

import os
import platform

import click

from ..api import StudioApi
from ..errors import SdkError
from .logins import Login, save_login
from .output import json_option, print_json


@click.command()
@click.argument("url")
@click.option("--user", help="User name or e-mail address.")
@click.option("--password", envvar="STUDIO_PASSWORD", help="Asked for when not given (STUDIO_PASSWORD).")
@click.option("--token", help="Use this token instead of user name and password.")
@json_option
def login(url: str, user: str | None, password: str | None, token: str | None, as_json: bool) -> None:
    """Log in to the Studio at URL and remember the token."""
    url = url.rstrip("/")
    if "://" not in url:
        url = f"https://{url}"
    ca_cert = os.environ.get("STUDIO_CA_CERT") or None
    if not token:
        user = user or click.prompt("User name or e-mail", err=True)
        password = password or click.prompt("Password", hide_input=True, err=True)
        with StudioApi(url, ca_cert=ca_cert) as anonymous:
            answer = anonymous.log_in(str(user), str(password), f"studio command on {platform.node()}"[:100])
        token = str(answer["token"])
    with StudioApi(url, token, ca_cert=ca_cert) as api:
        me = api.me()
    if me.get("client"):
        raise SdkError("That is a client's token; it is for client.yaml. Log in as a user.", 3)
    username = str((me.get("user") or {}).get("username") or "")
    path = save_login(Login(url, token, username))
    if as_json:
        print_json({"url": url, "username": username, "saved": str(path)})
    else:
        click.echo(f"Logged in to {url} as {username or 'a project token'}.")
