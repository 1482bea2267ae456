"""`studio session`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..api import StudioApi
from ..errors import SdkError
from .logins import api, project_slug
from .output import json_option, print_json, print_rows, project_option, shown
from .session_settings import settings_of, settings_options

ABOUT = (
    "id", "name", "status", "reason", "waiting_for", "rounds_done", "rounds_wanted", "package", "seed_model",
    "current_model",
)  # fmt: skip
GROUPS = ("aggregator_kwargs", "selection", "asynchronous", "privacy")
ENDED = {"finished", "failed", "stopped"}
LOOK_EVERY_S = 1.0


@click.group()
def session() -> None:
    """Start, watch and stop training sessions."""


@session.command()
@click.option("--name", default="", help="Default: the server names it.")
@click.option("--seed-model", help="Model id; default: the project's newest model.")
@click.option(
    "--package", "package_id", help="Package id; default: the newest one. `none`: clients bring their own."
)
@click.option("--rounds", type=click.IntRange(1), help="Default: 5.")
@click.option("--round-timeout", "round_timeout_s", type=float, help="Seconds per round.")
@click.option("--min-clients", type=click.IntRange(1))
@click.option("--requested-clients", type=click.IntRange(1), help="Default: all that are online.")
@click.option("--min-updates", type=click.IntRange(1), help="A round counts with so many.")
@click.option(
    "--validate/--no-validate", default=None, help="Whether clients measure each model (default: yes)."
)
@click.option("--settings", help="Client settings (hyper-parameters) as a JSON object.")
@settings_options
@click.option("--target", help="Stop early, for example accuracy>=0.95 or loss<=0.1.")
@click.option("--watch", is_flag=True, help="Then show its rounds until it ends.")
@project_option
@json_option
def start(
    name: str, seed_model: str | None, package_id: str | None, settings: str | None, target: str | None,
    clients: str | None, watch: bool, project: str | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Create a session and start it.

    What is not said has the server's default. Each setting is explained in docs/sessions.md.

    \b
    studio session start --rounds 20 --fraction 0.2 --watch
    studio session start --aggregator fedadam --aggregator-args learning_rate=0.01
    studio session start --select guided --fraction 0.2 --over-commit 1.3 --where 'region=eu and gpu>=1'
    studio session start --async buffer=10,concurrency=40
    studio session start --private clip=1,noise=1.1,clients=100,budget=8
    """
    wanted = settings_of(options)
    wanted |= {key: value for key, value in options.items() if value is not None}
    if name:
        wanted["name"] = name
    if settings is not None:
        wanted["client_settings"] = _json_object("--settings", settings, '{"lr": 0.1}')
    if target is not None:
        wanted["target"] = _target(target)
    with api() as client:
        slug = project_slug(project, client)
        if clients is not None:
            wanted["client_ids"] = _client_ids(client, slug, clients)
        seed = seed_model or wanted.pop("seed_model", None)
        wanted.pop("seed_model", None)
        seed = seed or _newest(client.models(slug), "model", "studio model upload FILE")
        if package_id == "none":
            wanted["package"] = None
        elif package_id or "package" not in wanted:
            hint = "studio package upload FILE"
            wanted["package"] = package_id or _newest(client.packages(slug), "package", hint)
        row = client.create_session(slug, str(seed), **wanted)
        if as_json and not watch:
            print_json(row)
        elif not as_json:
            click.echo(f"Started {row['name']}: {row['id']}")
        if watch:
            _watch(client, slug, str(row["id"]), as_json)


@session.command()
@click.argument("session_id", required=False)
@project_option
@json_option
def watch(session_id: str | None, project: str | None, as_json: bool) -> None:
    """Show a session's rounds until it ends (default: the newest session). Exit code 0 only when it finished."""
    with api() as client:
        slug = project_slug(project, client)
        wanted = session_id or _newest(client.sessions(slug), "session", "studio session start")
        _watch(client, slug, wanted, as_json)


@session.command()
@click.argument("session_id")
@project_option
@json_option
def stop(session_id: str, project: str | None, as_json: bool) -> None:
    """Stop a session; its clients are told to stop working."""
    with api() as client:
        row = client.stop_session(project_slug(project, client), session_id)
    if as_json:
        print_json(row)
    else:
        click.echo(f"{row['name']}: {row['status']}")


@session.command()
@click.argument("session_id", required=False)
@project_option
@json_option
def show(session_id: str | None, project: str | None, as_json: bool) -> None:
    """Show a session and what it was asked to do (default: the newest session)."""
    with api() as client:
        slug = project_slug(project, client)
        row = client.session(
            slug, session_id or _newest(client.sessions(slug), "session", "studio session start")
        )
    if as_json:
        print_json(row)
        return
    lines = [(name, row.get(name)) for name in ABOUT] + list(_flat(row.get("config") or {}))
    lines = [(name, value) for name, value in lines if value not in (None, "", [], {})]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        click.echo(f"{name.ljust(width)}  {shown(value)}")


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings by their names for `--set`."""
    for name, value in config.items():
        if name in GROUPS and isinstance(value, dict):
            yield from ((f"{name}.{inner}", each) for inner, each in value.items())
        else:
            yield name, value


@session.command("list")
@project_option
@json_option
def list_sessions(project: str | None, as_json: bool) -> None:
    """List the project's sessions."""
    with api() as client:
        print_rows(
            client.sessions(project_slug(project, client)),
            ("id", "name", "status", "rounds_done", "rounds_wanted", "reason"),
            as_json=as_json,
            empty="No sessions yet. Start one: studio session start",
        )


def _newest(rows: Any, what: str, hint: str) -> str:
    newest = max(rows, key=lambda row: str(row.get("created_at") or ""), default=None)
    if newest is None:
        raise SdkError(f"The project has no {what} yet: {hint}", 4)
    return str(newest["id"])


def _client_ids(client: StudioApi, slug: str, text: str) -> list[str]:
    ids: dict[str, str] = {}
    for row in client.clients(slug):
        ids |= {str(row["id"]): str(row["id"]), str(row["name"]): str(row["id"])}
    found = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        if word not in ids:
            raise SdkError(f"The project has no client called {word}: studio client list", 4)
        found.append(ids[word])
    return found


def _json_object(option: str, text: str, example: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise click.UsageError(f"{option} must be a JSON object such as {example}.")
    return content


def _target(text: str) -> dict[str, Any]:
    for sign, direction in ((">=", "max"), ("<=", "min")):
        metric, found, value = text.partition(sign)
        if found:
            try:
                return {"metric": metric.strip(), "value": float(value), "direction": direction}
            except ValueError:
                break
    raise click.UsageError("--target must be METRIC>=VALUE or METRIC<=VALUE.")


def _watch(client: StudioApi, slug: str, session_id: str, as_json: bool) -> None:
    """Print each round when it ends, and what is being waited for; raise SdkError unless the session finished."""
    seen: set[str] = set()
    measured: set[str] = set()
    waiting = ""
    while True:
        row = client.session(slug, session_id)
        rounds = sorted(
            client.rounds(slug, session_id), key=lambda entry: (entry["number"], entry["attempt"])
        )
        for entry in rounds:
            key = str(entry["id"])
            lost = entry["status"] in ("failed", "stopped")
            if key not in seen and (lost or row["status"] in ENDED or key in measured):
                seen.add(key)
                _print_round(entry, as_json)
            elif key not in measured and _is_measured(client, slug, entry):
                measured.add(key)  # this reading of its metrics may be older: shown with the next one
        if row.get("waiting_for") and row["waiting_for"] != waiting and not as_json:
            click.echo(f"waiting for {row['waiting_for']}", err=True)
        waiting = row.get("waiting_for") or ""
        if row["status"] in ENDED:
            break
        time.sleep(LOOK_EVERY_S)
    if as_json:
        print_json(row)
    else:
        click.echo(f"{row['name']}: {row['status']}" + (f" ({row['reason']})" if row.get("reason") else ""))
    if row["status"] != "finished":
        sys.exit(1)


def _is_measured(client: StudioApi, slug: str, entry: dict[str, Any]) -> bool:
    """Whether every client whose update counted has validated the round's model."""
    if entry["status"] != "finished" or not entry.get("output_model"):
        return False
    wanted = (entry.get("assignments") or {}).get("accepted", 0)
    return sum(1 for _ in client.model_validations(slug, str(entry["output_model"]))) >= wanted


def _print_round(entry: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(entry)
        return
    accepted = (entry.get("assignments") or {}).get("accepted", 0)
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted((entry.get("metrics") or {}).items()))
    if entry.get("epsilon") is not None:
        metrics = ", ".join(filter(None, (metrics, f"epsilon {entry['epsilon']:.4g}")))
    reason = "" if entry["status"] == "finished" else f" ({entry['status']}: {entry.get('reason')})"
    click.echo(f"round {entry['number']}: {accepted} updates  {metrics}{reason}")
