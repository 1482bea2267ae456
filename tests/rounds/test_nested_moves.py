"""Clients go from one combiner to another while a session runs: it died, is drained, is to stop, or has too many."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from studio_sdk import ClientConfig, FederatedClient

from clients_app import placement
from clients_app.models import Client, Combiner
from clients_app.services import pin_client, undrain_combiner
from federation.events.models import Event
from federation.sessions.models import Assignment, CombinerShare, Session
from projects.actors import OPERATOR
from tests.fedn_wire import FednWire, enrolment, registered
from tests.live_web import Web
from tests.rig import Child, Rig
from tests.rounds.here import CombinerHere
from tests.rounds.rows import assert_same, mean, update

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker_here")]
Combiners = Callable[..., CombinerHere]


@dataclass(eq=False)
class Site:
    """A client with the SDK in a thread, which finds its combiner by itself. It trains until it is told to be done,
    and answers `value` with as many examples."""

    row: Client
    value: int
    config: ClientConfig
    folder: Path
    lines: list[str] = field(default_factory=list)
    trained: int = 0
    _done: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def start(self) -> Site:
        self.client = FederatedClient(self.config, work_dir=self.folder, say=self.lines.append)
        self.client.set_train(self._train)
        self.thread = threading.Thread(target=self.client.run, daemon=True)
        self.thread.start()
        return self

    def _train(self, arrays: dict[str, Any], _settings: dict[str, Any]) -> Any:
        self.trained += 1
        while not self._done.acquire(timeout=0.1):
            if self.client.cancelled:
                break
        return update(self.value), {"num_examples": self.value}

    def be_done(self) -> None:
        self._done.release()

    def at(self) -> str:
        """The combiner that it is connected to; empty: none."""
        found = Client.objects.online().filter(pk=self.row.pk).values_list("combiner__name", flat=True)
        return found[0] if found else ""

    def end(self) -> None:
        self.client.stop()
        self.thread.join(10)


@dataclass(eq=False)
class Network:
    rig: Rig
    web: Web
    sites: list[Site] = field(default_factory=list)

    def joins(self, *values: int, at: str) -> list[Site]:
        """Clients that start now; the combiners that run leave them no choice but `at`."""
        joined = []
        for value in values:
            row, secret = self.rig.client(f"site-{value}")
            config = ClientConfig(row.name, str(row.pk), self.web.origin, secret)
            joined.append(Site(row, value, config, self.rig.folder / f"work-{row.name}").start())
            self.sites.append(joined[-1])
        self.until(lambda: all(site.at() == at for site in joined), f"{values} at {at}")
        return joined

    def until(self, there: Callable[[], object], what: str) -> None:
        try:
            self.rig.wait_until(there, timeout=60, what=what)
        except AssertionError as late:
            said = {site.row.name: (site.at(), site.lines[-4:]) for site in self.sites}
            raise AssertionError(f"{late}: {said}") from None

    def all_train(self, times: int = 1) -> None:
        self.until(lambda: all(site.trained >= times for site in self.sites), f"everybody to train {times} x")

    def flat(self) -> dict[str, Any]:
        return mean([(update(site.value), site.value) for site in self.sites])


@pytest.fixture
def network(rig: Rig) -> Iterator[Network]:
    web = Web()
    web.start()
    made = Network(rig, web)
    yield made
    for site in made.sites:
        site.end()
    web.kill()


def accepted(session: Session) -> int:
    return Assignment.objects.filter(round__session=session, status="accepted").count()


def shares(session: Session) -> dict[str, tuple[str, int]]:
    rows = CombinerShare.objects.filter(round__session=session).order_by("id").select_related("combiner")
    return {row.combiner.name: (row.status, row.updates) for row in rows}


def port_of(child: Child) -> int:
    return int(child.address.rsplit(":", 1)[1])


def test_the_clients_of_a_killed_combiner_finish_the_round_at_another(
    network: Network, combiner_here: Combiners
) -> None:
    """What one had acknowledged waits for its disk, and counts once it is back; what it had not goes elsewhere."""
    rig = network.rig
    c1 = rig.combiner("c1")
    a, b = network.joins(1, 2, at="c1")
    session = rig.session(min_clients=2, round_timeout_s=300, closing_timeout_s=120)
    network.all_train()
    a.be_done()
    network.until(lambda: accepted(session) == 1, "the first update")

    c1.kill()
    combiner_here("c2")
    network.until(lambda: a.at() == b.at() == "c2", "both at the other combiner")
    b.be_done()
    network.until(lambda: accepted(session) == 2, "the second update")
    assert b.trained == 1, "it lost its work"

    rig.combiner("c1", port=port_of(c1))
    rig.until_session(session, "finished", timeout=60)
    assert shares(session) == {"c1": ("finished", 1), "c2": ("finished", 1)}
    assert_same(rig.arrays_of(session.current_model), network.flat())
    assert a.trained == 1


def test_a_dead_combiner_is_offered_to_nobody_once_its_lease_is_out_and_its_projects_are_told(
    network: Network, combiner_here: Combiners
) -> None:
    from clients_app.presence import note_silent_combiners

    rig = network.rig
    c1 = rig.combiner("c1")
    (a,) = network.joins(1, at="c1")
    combiner_here("c2")
    rig.session(min_clients=1)
    c1.kill()
    network.until(lambda: a.at() == "c2", "the move")
    network.until(
        lambda: [row.name for row in placement.combiners_for(a.row)] == ["c2"], "the lease of c1 to run out"
    )
    note_silent_combiners()
    assert Event.objects.filter(kind="combiner.silent", project=rig.project).count() == 1
    a.be_done()


def test_a_combiner_is_drained_while_a_session_runs_and_its_share_is_kept(
    network: Network, combiner_here: Combiners
) -> None:
    rig = network.rig
    combiner_here("c1")
    a, b, c = network.joins(1, 2, 3, at="c1")
    session = rig.session(rounds=2, min_clients=3, round_timeout_s=300)
    network.all_train()
    a.be_done()
    network.until(lambda: accepted(session) == 1, "the first update")
    combiner_here("c2")

    said, ended = io.StringIO(), threading.Event()

    def drain() -> None:
        try:
            call_command("combiner", "--name", "c1", "--drain", "--wait", "90", stdout=said)
            ended.set()
        finally:
            connection.close()

    draining = threading.Thread(target=drain, daemon=True)
    draining.start()
    network.until(lambda: all(site.at() == "c2" for site in (a, b, c)), "everybody to move")
    assert not ended.is_set()  # it still has a share to finish
    b.be_done(), c.be_done()
    network.until(ended.is_set, "c1 to be drained")
    draining.join(5)
    assert "c1 is drained: it can be stopped." in said.getvalue()
    network.until(lambda: Session.objects.get(pk=session.pk).rounds_done == 1, "the first round")
    assert shares(session) == {"c1": ("finished", 1), "c2": ("finished", 2)}
    first = session.trail.order_by("round_number").first()
    assert first is not None
    assert_same(rig.arrays_of(first), network.flat())
    network.all_train(2)
    for site in (a, b, c):
        site.be_done()
    rig.until_session(session, "finished", timeout=60)
    second = CombinerShare.objects.filter(round__session=session, round__number=2)
    assert [share.combiner.name for share in second] == ["c2"]
    assert max(site.trained for site in (a, b, c)) == 2, "somebody had to train again"
    undrain_combiner("c1", actor=OPERATOR)
    assert Combiner.objects.taking().count() == 2


def test_a_combiner_asked_to_stop_with_grace_gives_its_clients_away_and_exits_well(
    network: Network, combiner_here: Combiners
) -> None:
    """SIGTERM, as Kubernetes and systemd send it."""
    rig = network.rig
    c1 = rig.combiner("c1", extra=["--grace", "60"])
    a, b = network.joins(1, 2, at="c1")
    session = rig.session(min_clients=2, round_timeout_s=300)
    network.all_train()
    a.be_done()
    network.until(lambda: accepted(session) == 1, "the first update")
    combiner_here("c2")
    c1.process.terminate()
    network.until(lambda: b.at() == "c2", "the move")
    assert c1.process.poll() is None  # its share is not finished
    b.be_done()
    rig.until_session(session, "finished", timeout=60)
    assert shares(session) == {"c1": ("finished", 1), "c2": ("finished", 1)}
    assert_same(rig.arrays_of(session.current_model), network.flat())
    assert c1.process.wait(30) == 0
    assert Event.objects.filter(combiner__name="c1", kind="combiner.draining").count() == 1
    assert not Combiner.objects.alive().filter(name="c1").exists()
    c1 = rig.combiner("c1")
    assert Combiner.objects.taking().count() == 2  # stopping ended with the process


def test_draining_tells_what_is_left_when_nobody_takes_over(
    network: Network, combiner_here: Combiners
) -> None:
    combiner_here("c1")
    (a,) = network.joins(1, at="c1")
    session = network.rig.session(min_clients=1, round_timeout_s=300)
    network.all_train()
    with pytest.raises(CommandError, match="c1 is still being drained: 1 clients to move, 0 shares"):
        call_command("combiner", "--name", "c1", "--drain", "--wait", "0", stdout=io.StringIO())
    network.until(lambda: a.at() == "", "the client to be waiting")
    call_command("combiner", "--name", "c1", "--resume", stdout=io.StringIO())
    network.until(lambda: a.at() == "c1", "the client to be back")
    a.be_done()
    network.rig.until_session(session, "finished", timeout=60)
    assert a.trained == 1


def test_a_published_client_stays_on_a_drained_combiner_and_is_served(
    rig: Rig, combiner_here: Combiners
) -> None:
    """Its protocol knows no other address: sent away it would be without one."""
    c1 = combiner_here("c1")
    combiner_here("c2")
    device = FednWire(c1.address, registered(enrolment(rig)[0], "fedn-site").pk).open()
    rig.wait_until(lambda: Client.objects.online().exists(), what="the client to be connected")
    said = io.StringIO()
    call_command("combiner", "--name", "c1", "--drain", "--wait", "0", stdout=said)
    assert (
        "c1 is drained: it can be stopped. 1 published clients stay on it until it stops." in said.getvalue()
    )
    session = rig.session(min_clients=1)
    assert device.train([update(2)["w"], update(2)["b"]], examples=1) == "accepted"
    rig.until_session(session, "finished")
    assert not device.over.is_set()
    device.close()


def test_a_client_that_is_pinned_while_connected_leaves_for_a_combiner_that_fits(
    network: Network, combiner_here: Combiners
) -> None:
    combiner_here("c1")
    (a,) = network.joins(1, at="c1")
    pin_client(actor=network.rig.actor, client=a.row, pin={"region": "eu"})
    network.until(lambda: a.at() == "", "the client to be waiting")
    why = "this client is pinned to combiners with region=eu, and none of them takes clients"
    network.until(lambda: any(why in line for line in a.lines), "the client to say why")
    network.rig.combiner("c2", extra=["--label", "region=eu"])
    network.until(lambda: a.at() == "c2", "the client at the one that fits")


def test_a_combiner_that_joins_is_given_idle_clients_a_few_at_a_time(
    rig: Rig, combiner_here: Combiners
) -> None:
    full = combiner_here("full")
    wires = [rig.connect(full, rig.client()[1]) for _ in range(placement.UNEVEN_SLACK + 4)]
    combiner_here("fresh")
    rig.wait_until(lambda: sum(wire.over.is_set() for wire in wires) >= 4, 30, "clients to be sent over")
    moved = [wire for wire in wires if wire.over.is_set()]
    assert len(moved) <= 5 and all(wire.error is None for wire in moved)
    goodbye = moved[0].said("goodbye")
    assert (goodbye.code, goodbye.retry) == ("rebalanced", True)


def test_a_busy_client_is_not_sent_away_to_even_things_out(rig: Rig, combiner_here: Combiners) -> None:
    full = combiner_here("full")
    wires = [rig.connect(full, rig.client()[1]) for _ in range(placement.UNEVEN_SLACK + 4)]
    rig.session(min_clients=len(wires), round_timeout_s=300)
    for wire in wires:
        wire.next_task()
    fresh = combiner_here("fresh")
    stands = [0]
    stand = full.core.moving.stand

    async def counted() -> None:
        await stand()
        stands[0] += 1

    full.core.moving.stand = counted  # type: ignore[method-assign]
    rig.wait_until(lambda: stands[0] >= 2, 30, "the combiner to look around twice")
    assert not any(wire.over.is_set() for wire in wires)
    assert fresh.core.hub.connections == {}
