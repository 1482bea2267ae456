"""`studio run`: an entry point on this machine, before any server is involved."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..errors import SdkError
from ..project import process_group
from ..project.entry_point import Listeners, run_entry_point
from ..project.environment import environment_for, read_spec
from ..project.project_file import ENTRY_POINTS, find_project_file, read_project_file


@click.command()
@click.argument("entry_point", type=click.Choice(ENTRY_POINTS))
@click.option("--path", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@click.option("--input", "given", type=click.Path(path_type=Path), help="The model to train or validate.")
@click.option("--output", "made", type=click.Path(path_type=Path), help="Where the result goes.")
@click.option("--data-path", type=click.Path(path_type=Path), help="Passed on as STUDIO_DATA_PATH.")
@click.option("--settings", help="Client settings as JSON, as a session would send them.")
def run(
    entry_point: str,
    folder: Path,
    given: Path | None,
    made: Path | None,
    data_path: Path | None,
    settings: str | None,
) -> None:
    """Run build, startup, train or validate of the project in --path."""
    arguments: list[str] = []
    if entry_point in ("train", "validate"):
        if given is None or made is None:
            raise click.UsageError(f"{entry_point} needs --input and --output.")
        if not given.is_file():
            raise SdkError(f"There is no model {given}.", 4)
        # commands run in the project's folder
        arguments = [str(given.absolute()), str(made.absolute())]
        if settings is not None:
            _write_settings(settings, given)
    project = read_project_file(find_project_file(folder.absolute()))
    environment = (
        environment_for(read_spec(project.python_env), lambda line: click.echo(line, err=True))
        if project.python_env
        else None
    )
    extra = {"STUDIO_DATA_PATH": str(data_path.absolute())} if data_path else {}
    try:
        ended = run_entry_point(
            project, entry_point, arguments, environment=environment, extra_env=extra,
            listeners=Listeners(line=click.echo),
        )  # fmt: skip
    finally:
        process_group.end_all()
    if ended.exit_code:
        raise SdkError(f"{entry_point} ended with exit code {ended.exit_code}.", 1)


def _write_settings(text: str, given: Path) -> None:
    try:
        content = json.loads(text)
    except ValueError:
        raise click.UsageError("--settings must be a JSON object.") from None
    if not isinstance(content, dict):
        raise click.UsageError("--settings must be a JSON object.")
    Path(f"{given.absolute()}-metadata").write_text(json.dumps(content), encoding="utf-8")
