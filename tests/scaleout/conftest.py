"""Scaleout clients that a test plays by hand, against a combiner in a thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from projects.tokens.models import Token
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.scaleout_wire import Make, ScaleoutWire, enrolled, enrolment


@pytest.fixture
def fleet(rig: Rig) -> Token:
    return enrolment(rig)


@pytest.fixture
def device(combiner: CombinerHere, fleet: Token) -> Iterator[Make]:
    made: list[ScaleoutWire] = []

    def make(name: str = "site", *, address: str = "") -> ScaleoutWire:
        client, tickets = enrolled(fleet, name)
        made.append(ScaleoutWire(address or combiner.address, client.pk, tickets.access))
        return made[-1]

    yield make
    for wire_client in made:
        wire_client.close()
