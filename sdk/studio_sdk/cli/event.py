"""`studio event`."""

from __future__ import annotations

import time
from typing import Any

import click

from .logins import api, project_slug
from .output import json_option, print_json, project_option, shown

LOOK_EVERY_S = 1.0
FIRST = 20


@click.group()
def event() -> None:
    """Follow what happens in a project."""


@event.command()
@click.option("--level", help="Only this level: debug, info, warning or error.")
@click.option("--kind", help="Only this kind.")
@click.option("--session", help="Only this session.")
@click.option("--client", help="Only this client.")
@click.option("--follow/--no-follow", "-f", default=True, show_default=True, help="Go on until Ctrl-C.")
@project_option
@json_option
def tail(follow: bool, project: str | None, as_json: bool, **filters: str | None) -> None:
    """Show the newest events, then new ones as they come."""
    with api() as client:
        slug = project_slug(project, client)
        newest: list[dict[str, Any]] = []
        for row in client.events(slug, order="newest", limit=FIRST, **filters):
            newest.append(row)
            if len(newest) == FIRST:
                break
        last = 0
        for row in reversed(newest):
            _print(row, as_json)
            last = max(last, int(row["id"]))
        while follow:
            time.sleep(LOOK_EVERY_S)
            for row in client.events(slug, order="oldest", after=last, **filters):
                _print(row, as_json)
                last = max(last, int(row["id"]))


def _print(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(row)
    else:
        click.echo(f"{str(row.get('at'))[:19]}  {shown(row.get('level')):7}  {shown(row.get('message'))}")
