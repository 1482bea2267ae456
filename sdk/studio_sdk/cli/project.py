"""`studio project`."""

from __future__ import annotations

import click

from .logins import api
from .output import json_option, print_json, print_rows


@click.group()
def project() -> None:
    """Create and list projects."""


@project.command()
@click.argument("name")
@click.option("--description", default="", help="What it is for.")
@json_option
def create(name: str, description: str, as_json: bool) -> None:
    """Create the project NAME."""
    with api() as client:
        row = client.create_project(name, description)
    if as_json:
        print_json(row)
    else:
        click.echo(f"Created {row['name']}; its slug is {row['slug']}.")


@project.command("list")
@json_option
def list_projects(as_json: bool) -> None:
    """List my projects and those shared with me."""
    with api() as client:
        print_rows(
            client.projects(),
            ("slug", "name", "role", "description"),
            as_json=as_json,
            empty="No projects yet. Create one: studio project create NAME",
        )
