"""What commands print, and the options they share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
project_option = click.option(
    "--project", envvar="STUDIO_PROJECT", help="The project's slug (STUDIO_PROJECT)."
)


def print_json(value: Any) -> None:
    """One JSON value on one line."""
    click.echo(json.dumps(value))


def print_rows(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, empty: str
) -> None:
    """A table, or a JSON list."""
    found = list(rows)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo(empty)
        return
    table = [list(columns), *([shown(row.get(column)) for column in columns] for row in found)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


def shown(value: Any) -> str:
    """A cell's text; control characters of other people's names do not reach the terminal."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict | list):
        value = json.dumps(value)
    return "".join(char if char.isprintable() else " " for char in str(value))
