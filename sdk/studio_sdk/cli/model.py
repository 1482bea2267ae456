"""`studio model`."""

from __future__ import annotations

from pathlib import Path

import click

from .logins import api, project_slug
from .output import json_option, print_json, print_rows, project_option


@click.group()
def model() -> None:
    """List, download and upload models."""


@model.command("list")
@click.option("--session", help="Only models of this session.")
@project_option
@json_option
def list_models(session: str | None, project: str | None, as_json: bool) -> None:
    """List the model trail."""
    with api() as client:
        print_rows(
            client.models(project_slug(project, client), session=session),
            ("id", "name", "parent", "session", "round", "size_bytes", "created_at"),
            as_json=as_json,
            empty="No models yet. Upload a seed model: studio model upload FILE",
        )


@model.command()
@click.argument("model_id")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: MODEL_ID.safetensors."
)
@click.option(
    "--format", "file_format", type=click.Choice(["safetensors", "npz"]),
    help="Default: by the name of --output, else safetensors.",
)  # fmt: skip
@project_option
@json_option
def download(
    model_id: str, output: Path | None, file_format: str | None, project: str | None, as_json: bool
) -> None:
    """Download a model; a safetensors file is checked against the model's sha256."""
    if file_format is None:
        file_format = "npz" if output and output.suffix == ".npz" else "safetensors"
    target = output or Path(f"{model_id}.{file_format}")
    with api() as client:
        sha256 = client.download_model(
            project_slug(project, client), model_id, target, file_format=file_format
        )
    if as_json:
        print_json({"path": str(target), "sha256": sha256})
    else:
        click.echo(f"{target}: sha256 {sha256}")


@model.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="Default: the file's name.")
@project_option
@json_option
def upload(file: Path, name: str | None, project: str | None, as_json: bool) -> None:
    """Upload FILE (.npz or .safetensors) as a seed model."""
    with api() as client:
        row = client.upload_model(project_slug(project, client), file, name or file.stem)
    if as_json:
        print_json(row)
    else:
        click.echo(f"Uploaded {row['name']}: {row['id']}")
