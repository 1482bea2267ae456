"""docs/published-clients.md: what the published packages can ask of Studio, and what comes of it, as the tests saw it.

    python -m tests.compat.table FOLDER [--check]

FOLDER is where a whole run of tests/compat wrote its outcomes. What the wheels offer is read from them again: a
method, command or RPC without an outcome ends this with a complaint, as does, under --check, a page that says
something else than was seen.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.compat.addresses import addresses
from tests.compat.environments import PUBLISHED, Unavailable
from tests.compat.outcomes import Outcome, read
from tests.compat.wheels import enumerated

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "published-clients.md"
Seen = dict[tuple[str, str, str], Outcome]

HEAD = """# What published clients can ask, and what comes of it

Written by `python -m tests.compat.table` from what the compat tests saw; `make test` fails when it is stale. The lists
are read from the published wheels and from our own addresses, so nothing is left out. How to move a project over:
[Move from FEDn or Scaleout Edge](move-from-fedn-or-scaleout.md).
"""
PARTS = {
    "methods": ("Python API", "method", "Each was called against a project in which clients had trained."),
    "commands": (
        "command line",
        "command",
        "“local”: it speaks to no server, or starts one of the vendor's own.",
    ),
    "rpcs": ("gRPC", "RPC", "Each was called on a running combiner."),
}
WORDS = {"works": "works", "local": "local"}


def wanted(home: Path) -> list[tuple[str, str, str]]:
    """Every row there must be."""
    rows = []
    for package in PUBLISHED:
        wheel = enumerated(package, home / package)
        rows += [(package, part, name) for part in PARTS for name in wheel[part]]
    return rows + [(address.dialect, "addresses", address.name) for address in addresses()]


def page(rows: list[tuple[str, str, str]], seen: Seen) -> str:
    """The whole page."""
    text = [HEAD]
    for name, package in PUBLISHED.items():
        for part, (title, column, note) in PARTS.items():
            found = [row for row in rows if row[:2] == (name, part)]
            text += [f"## {' with '.join(package.requirements).replace('==', ' ')}: {title}\n", f"{note}\n"]
            text += _table(column, found, seen)
    text += [
        "## HTTP addresses\n",
        "Below `/api/v1/` the project is the token's; FEDn's command line has the same addresses below "
        "`/<slug>-fedn-reducer/`. Each was asked once, with nothing in it, and answered in JSON.\n",
        *_table("address", [row for row in rows if row[1] == "addresses"], seen),
    ]
    return "\n".join(text).rstrip() + "\n"


def _table(column: str, rows: list[tuple[str, str, str]], seen: Seen) -> list[str]:
    lines = [f"| {column} | |", "|---|---|"]
    for row in rows:
        outcome = seen[row]
        said = WORDS.get(outcome.state) or f"refused: {outcome.message}"
        lines.append(f"| `{row[2]}` | {said} |".replace("__init__", "(constructor)"))
    return [*lines, ""]


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="only say whether the page is what was seen")
    options = parser.parse_args()
    import django

    django.setup()
    try:
        with tempfile.TemporaryDirectory(prefix="studio-table-") as home:
            rows = wanted(Path(home))
    except Unavailable as reason:
        # the suite has said so already, and under CI=true has failed
        print(reason, file=sys.stderr)
        return 0 if options.check else 1
    seen = read(options.folder)
    if missing := [" ".join(row) for row in rows if row not in seen]:
        print(f"no test says what became of these {len(missing)}:", *missing, sep="\n  ", file=sys.stderr)
        return 1
    made = page(rows, seen)
    if not options.check:
        PAGE.write_text(made)
    elif not PAGE.exists() or PAGE.read_text() != made:
        print(f"{PAGE.name} is stale: run `python -m tests.compat.table {options.folder}`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
