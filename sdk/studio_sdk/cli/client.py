"""`studio client`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import click

from .logins import api, project_slug
from .output import json_option, print_json, print_rows, project_option


@click.group()
def client() -> None:
    """Register clients and run them beside their data."""


@client.command()
@click.argument("name")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="client.yaml")
@project_option
@json_option
def create(name: str, output: Path, project: str | None, as_json: bool) -> None:
    """Register the client NAME and write its client.yaml, token included."""
    if output.exists():
        raise click.UsageError(
            f"{output} exists; a client's config is shown only once. Choose another --output."
        )
    with api() as server:
        row = server.create_client(project_slug(project, server), name)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(str(row["config_yaml"]))
    if as_json:
        print_json({"id": row["id"], "name": row["name"], "config": str(output)})
    else:
        click.echo(f"Registered {row['name']}. Connect it with: studio client start -in {output}")


@client.command("list")
@project_option
@json_option
def list_clients(project: str | None, as_json: bool) -> None:
    """List the project's clients: who is online, doing what."""
    with api() as server:
        print_rows(
            server.clients(project_slug(project, server)),
            ("id", "name", "online", "doing", "combiner", "since"),
            as_json=as_json,
            empty="No clients yet. Register one: studio client create NAME",
        )


@client.command()
@click.option(
    "-in", "--in", "config_file", required=True, type=click.Path(path_type=Path), help="The client.yaml."
)
@click.option(
    "--path", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Use this local package instead of the session's.",
)  # fmt: skip
@click.option("--name", help="Shown in this client's own lines; the server knows it by its config.")
@click.option("--data-path", type=click.Path(path_type=Path), help="Passed on as STUDIO_DATA_PATH.")
@click.option("--work-dir", type=click.Path(path_type=Path), help="Where models and unsent updates are kept.")
@click.option(
    "--attribute", "attributes", multiple=True, metavar="NAME=VALUE",
    help="What sessions may choose this client by: region=eu, gpu=1, tags=mobile,lab. Again for each.",
)  # fmt: skip
def start(
    config_file: Path,
    folder: Path | None,
    name: str | None,
    data_path: Path | None,
    work_dir: Path | None,
    attributes: tuple[str, ...],
) -> None:
    """Run a client until it is stopped.

    Exit codes: 0 stopped, 2 usage, 3 refused, 4 package, 5 environment, 6 protocol, 7 TLS.
    """
    # gRPC is loaded only by the command that needs it
    from ..client.attributes import from_text
    from ..client.config import ClientConfig
    from ..client.federated import FederatedClient
    from ..project import process_group

    config = ClientConfig.read(config_file)
    environ = {"STUDIO_DATA_PATH": str(data_path.absolute())} if data_path else {}
    runtime = FederatedClient(config, name=name, work_dir=work_dir, attributes=from_text(attributes))
    runtime.use_package(folder.absolute() if folder else None, environ)

    def end() -> None:
        runtime.stop()
        process_group.end_all()

    def on_signal(_number: int, _frame: object) -> None:
        threading.Thread(target=end, daemon=True).start()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    sys.exit(runtime.run())
