"""Every line of the mission that this product claims is shown by a test that exists."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.mission import LINES

HERE = Path(__file__).parent


def span(letter: str, *ranges: tuple[int, int]) -> list[str]:
    return [f"{letter}{number}" for first, last in ranges for number in range(first, last + 1)]


CLAIMED = span("A", (1, 1), (9, 18), (21, 37), (39, 43), (47, 52)) + span("B", (1, 38))


def test_every_claimed_line_names_its_tests() -> None:
    assert sorted(LINES) == sorted(CLAIMED)
    assert all(LINES.values())


def test_every_named_test_exists() -> None:
    missing = []
    for line, names in LINES.items():
        for name in names:
            file, _, function = name.partition("::")
            path = HERE / file
            tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
            known = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
            if function not in known:
                missing.append(f"{line}: {name}")
    assert not missing, "\n".join(missing)
