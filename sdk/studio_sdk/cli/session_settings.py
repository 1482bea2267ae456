"""What `studio session start` says of a session, as the settings that the REST API takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

Command = TypeVar("Command", bound=Callable[..., Any])
NAME_AND_VALUE = "NAME=VALUE,…"

# short names that may stand before a "=" in a group
SHORT = {
    "asynchronous": {"buffer": "buffer_size", "staleness": "max_staleness", "exponent": "staleness_exponent"},
    "privacy": {
        "clip": "clip_norm", "noise": "noise_multiplier", "clients": "expected_clients", "budget": "max_epsilon",
        "quantile": "target_quantile",
    },
}  # fmt: skip

_OPTIONS = (
    click.option("--aggregator", help="How updates become a model: fedavg (default), fedprox, fedmedian, …"),
    click.option(
        "--aggregator-args", metavar=NAME_AND_VALUE, help="Its arguments, such as learning_rate=0.1; or a JSON object."
    ),
    click.option(
        "--select",
        metavar="STRATEGY[,NAME=VALUE…]",
        help="How clients are chosen: random (default), poisson or guided; guided,exploration=0.5 sets its numbers.",
    ),
    click.option("--where", help="Only clients whose attributes say so: 'region=eu and gpu>=1'."),
    click.option("--clients", help="Only these clients: names or ids, with commas."),
    click.option("--fraction", type=float, help="Share of the clients that a round asks, such as 0.1."),
    click.option(
        "--over-commit", "over_commitment", type=float, help="1.3 asks 30 % more than needed; the first ones count."
    ),
    click.option("--seed", type=int, help="The same clients are drawn again when the session is repeated."),
    click.option("--grace", "grace_s", type=float, help="Seconds the others are waited for once enough have answered."),
    click.option(
        "--async",
        "asynchronous",
        is_flag=False,
        flag_value="",
        metavar=f"[{NAME_AND_VALUE}]",
        help="Buffered asynchronous rounds (FedBuff): buffer=10, concurrency=20, staleness=5, exponent=0.5.",
    ),
    click.option(
        "--private",
        "privacy",
        is_flag=False,
        flag_value="",
        metavar=f"[{NAME_AND_VALUE}]",
        help="Differential privacy: clip=1, noise=1, clients=100, adaptive=true, delta=1e-5, budget=8.",
    ),
    click.option("--deterministic", is_flag=True, help="The same bytes every time, in whatever order updates arrive."),
    click.option("--compression", help="How updates travel: none (default), float16, bfloat16 or int8."),
    click.option(
        "--set",
        "pairs",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any other setting of the REST API, such as selection.max_times=3. Can be repeated.",
    ),
    click.option(
        "--config",
        "config_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Settings from a JSON or YAML file, named as in the REST API; options go before it.",
    ),
)  # fmt: skip


def settings_options(command: Command) -> Command:
    """The options of a session's settings beyond its rounds and clients."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def settings_of(given: dict[str, Any]) -> dict[str, Any]:
    """Takes the values of `settings_options` out of `given` and answers them as the REST API names them, nested; a
    file's settings first, options over them, `--set` over all. Raises click.UsageError."""
    wanted: dict[str, Any] = {}
    if path := given.pop("config_file", None):
        wanted = _from_file(path)
    arguments = given.pop("aggregator_args", None)
    if arguments is not None:
        wanted["aggregator_kwargs"] = pairs_of("--aggregator-args", arguments)
    _select(wanted, given)
    for name, option in (("asynchronous", "--async"), ("privacy", "--private")):
        text = given.pop(name, None)
        if text is not None:
            wanted[name] = _group(wanted, name) | pairs_of(option, text, SHORT[name])
    if given.pop("deterministic", False):
        wanted["deterministic"] = True
    for pair in given.pop("pairs", ()):
        place, found, text = pair.partition("=")
        if not found or not place.strip():
            raise click.UsageError(f"--set must be NAME=VALUE, not {pair!r}.")
        _put(wanted, place.strip(), _value(text))
    return wanted


def _select(wanted: dict[str, Any], given: dict[str, Any]) -> None:
    selection = _group(wanted, "selection")
    if text := given.pop("select", None):
        strategy, _, rest = text.partition(",")
        selection["strategy"] = strategy.strip()
        selection |= pairs_of("--select", rest)
    for name in ("where", "fraction", "over_commitment", "seed"):
        if (value := given.pop(name, None)) is not None:
            selection[name] = value
    if selection:
        wanted["selection"] = selection


def _group(wanted: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = wanted.get(name)
    return dict(found) if isinstance(found, Mapping) else {}


def _put(wanted: dict[str, Any], place: str, value: Any) -> None:
    *groups, name = place.split(".")
    for group in groups:
        inner = wanted.get(group)
        wanted[group] = wanted = dict(inner) if isinstance(inner, Mapping) else {}
    wanted[name] = value


def pairs_of(option: str, text: str, short: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`a=1,b=x` as {"a": 1, "b": "x"}, or a JSON object as it is. Raises click.UsageError."""
    text = text.strip()
    if text.startswith(("{", "[")):
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise click.UsageError(f'{option} must be name=value,… or a JSON object such as {{"name": 1}}.')
        return content
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise click.UsageError(f"{option} must be name=value with commas between, not {part!r}.")
        name = name.strip()
        found[(short or {}).get(name, name)] = _value(value)
    return found


def _value(text: str) -> Any:
    """A number, true, false, null, a list or an object as JSON writes them; else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def _from_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())  # JSON is YAML too
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path.name} is neither JSON nor YAML: {str(error)[:200]}") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise click.UsageError(f"{path.name} must hold settings by name, such as rounds: 5.")
    return content
