"""`studio package`."""

from __future__ import annotations

from pathlib import Path

import click

from ..project.archive import create_package
from .logins import api, project_slug
from .output import json_option, print_json, print_rows, project_option

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def package() -> None:
    """Make, upload and list compute packages."""


@package.command()
@click.option("--path", "folder", type=_FOLDER, default=".", help="The folder with the project file.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="package.tgz")
@json_option
def create(folder: Path, output: Path, as_json: bool) -> None:
    """Pack a folder. The same content always makes the same sha256."""
    made = create_package(folder, output)
    if as_json:
        print_json(
            {
                "path": str(made.path),
                "sha256": made.sha256,
                "size_bytes": made.size_bytes,
                "files": list(made.names),
            }
        )
    else:
        click.echo(f"{made.path}: {len(made.names)} files, {made.size_bytes} bytes, sha256 {made.sha256}")


@package.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="Default: the file's name.")
@click.option("--description", default="")
@project_option
@json_option
def upload(file: Path, name: str | None, description: str, project: str | None, as_json: bool) -> None:
    """Upload the package FILE."""
    with api() as client:
        row = client.upload_package(project_slug(project, client), file, name or file.stem, description)
    if as_json:
        print_json(row)
    else:
        click.echo(f"Uploaded {row['name']}: {row['id']}")


@package.command("list")
@project_option
@json_option
def list_packages(project: str | None, as_json: bool) -> None:
    """List the project's compute packages."""
    with api() as client:
        print_rows(
            client.packages(project_slug(project, client)),
            ("id", "name", "size_bytes", "sha256", "created_at"),
            as_json=as_json,
            empty="No packages yet. Make one: studio package create --path DIR",
        )
