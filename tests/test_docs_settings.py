"""docs/sessions.md and docs/aggregators.md say what the code does: their tables are made of it, their example runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from federation.aggregation.aggregators import AGGREGATORS, Aggregator, Choice
from federation.sessions.config.words import Setting, settings
from projects.models import Project, User
from tests.rounds.rows import Rows, assert_same, update

DOCS = Path(__file__).resolve().parent.parent / "docs"


def setting_row(one: Setting) -> str:
    default = "none" if one.default is None else str(one.default)
    if isinstance(one.default, float):
        default = f"{one.default:g}"
    if isinstance(one.default, bool):
        default = str(one.default).lower()
    return f"| `{one.place}` | {default or 'empty'} | {one.hint} |"


def aggregator_row(one: Aggregator) -> str:
    arguments = "; ".join(
        f"`{argument.name}` {argument.default if isinstance(argument, Choice) else f'{argument.default:g}'}"
        for argument in one.arguments
    )
    sends = f"`{one.clients_send}`" if one.clients_send else "–"
    private = "yes" if one.private else "no"
    return f"| `{one.name}` | {one.hint} | {sends} | {arguments or '–'} | {private} | {one.paper} |"


def rows_of(page: str) -> set[str]:
    """The rows of tables whose first cell is a name."""
    return {line for line in (DOCS / page).read_text().splitlines() if line.startswith("| `")}


def test_every_setting_is_in_the_docs_as_it_is() -> None:
    assert rows_of("sessions.md") == {setting_row(one) for one in settings().values()}


def test_every_aggregator_is_in_the_docs_as_it_is() -> None:
    assert rows_of("aggregators.md") == {aggregator_row(one) for one in AGGREGATORS.values()}


def test_the_docs_list_each_aggregator_under_its_family() -> None:
    parts = re.split(r"^## ", (DOCS / "aggregators.md").read_text(), flags=re.MULTILINE)
    under = {"Averaging": "averaging", "Server optimisers": "server optimiser", "Robust": "robust"}
    for part in parts:
        family = under.get(part.partition("\n")[0])
        for name in re.findall(r"^\| `(\w+)`", part, flags=re.MULTILINE):
            assert AGGREGATORS[name].family == family, name


@pytest.fixture
def rows(db: None, project: Project, owner: User, tmp_path: Path, wait_until: Any) -> Rows:
    return Rows(project, owner, tmp_path, wait_until)


def test_the_aggregator_of_the_docs_is_registered_and_trains(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (DOCS / "aggregators.md").read_text()
    source = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class " in block)
    assert len(source.splitlines()) <= 30, "the docs promise a small file"
    made: dict[str, Any] = {"__name__": "federation.aggregation.aggregators.cautious"}
    exec(source, made)
    monkeypatch.setitem(AGGREGATORS, "cautious", made["Cautious"]())
    lease = rows.lease("c1")
    clients = [rows.online(lease, name)[0] for name in "ab"]
    session = rows.running(min_clients=2, aggregator="cautious", aggregator_kwargs={"share": 0.25})
    for value, client in zip((4.0, 8.0), clients, strict=True):
        rows.accept(lease, rows.task(session, client), value=value, examples=1)
    assert rows.finish_share(lease) == [True]
    rows.reduce(session)
    session.refresh_from_db()
    assert_same(rows.arrays_of(session.current_model), update(0.25 * 6.0))
