"""What each method, command, RPC and address did in the tests, written down for the table in docs/."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# what a table row may say; of several files that saw the same thing the one that stands further right counts
STATES = ("local", "refused", "works")
REFUSAL = "not offered"


@dataclass(frozen=True, order=True)
class Outcome:
    """One thing that a published package can ask for. `part` is methods, commands, rpcs or addresses."""

    package: str
    part: str
    name: str
    state: str
    message: str = ""


@dataclass
class Outcomes:
    """What one test file saw; recorded after it was checked, never before."""

    seen: set[Outcome] = field(default_factory=set)

    def works(self, package: str, part: str, *names: str) -> None:
        """They did what they are for."""
        self.seen |= {Outcome(package, part, name, "works") for name in names}

    def refused(self, package: str, part: str, name: str, message: str) -> None:
        """It was refused with this message."""
        self.seen.add(Outcome(package, part, name, "refused", message))

    def local(self, package: str, part: str, *names: str) -> None:
        """They speak to no server of ours."""
        self.seen |= {Outcome(package, part, name, "local") for name in names}

    def answered(self, package: str, part: str, name: str, answer: Any) -> None:
        """Works; or refused, when the answer's message says that it is not offered, or the package raised."""
        said = answer if isinstance(answer, dict) else {}
        message = str(said.get("raised") or said.get("message") or "")
        if "raised" in said or REFUSAL in message:
            self.refused(package, part, name, message)
        else:
            self.works(package, part, name)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([vars(outcome) for outcome in sorted(self.seen)], indent=1))


def read(folder: Path) -> dict[tuple[str, str, str], Outcome]:
    """All outcomes of a test run, one for each (package, part, name)."""
    found: dict[tuple[str, str, str], Outcome] = {}
    for outcome in _all(sorted(folder.glob("*.json"))):
        key = (outcome.package, outcome.part, outcome.name)
        known = found.get(key)
        if known is None or STATES.index(outcome.state) > STATES.index(known.state):
            found[key] = outcome
    return found


def _all(paths: Iterable[Path]) -> Iterable[Outcome]:
    for path in paths:
        yield from (Outcome(**kept) for kept in json.loads(path.read_text()))
