"""A combiner's lease and epoch, and who is online where."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from clients_app import presence
from clients_app.models import Client, Combiner
from clients_app.presence import CombinerLease
from federation.events.models import Event
from projects.models import Project

pytestmark = pytest.mark.django_db


@pytest.fixture
def project(db: None) -> Project:
    return Project.objects.create(slug="north", name="North")


@pytest.fixture
def client_row(project: Project) -> Client:
    return Client.objects.create(project=project, name="site-a")


def start(name: str = "combiner-1", spool_id: str = "disk-1") -> CombinerLease:
    return presence.start_combiner(
        name=name, spool_id=spool_id, address="127.0.0.1:9000", tls_address="", labels={}, version="1"
    )


def connect(client: Client, lease: CombinerLease, connection_id: str = "c1") -> bool:
    return presence.connected(
        client_id=client.pk,
        combiner_id=lease.combiner_id,
        epoch=lease.epoch,
        connection_id=connection_id,
        dialect="native",
        version="1",
        attributes=None,
    )


def disconnect(client: Client, lease: CombinerLease, connection_id: str = "c1") -> bool:
    return presence.disconnected(
        client_id=client.pk, combiner_id=lease.combiner_id, epoch=lease.epoch, connection_id=connection_id
    )


def let_lease_run_out(lease: CombinerLease) -> None:
    Combiner.objects.filter(pk=lease.combiner_id).update(lease_until=Now() - dt.timedelta(seconds=1))


def is_online(client: Client) -> bool:
    return Client.objects.online().filter(pk=client.pk).exists()


def test_the_epoch_rises_each_time_a_combiner_starts() -> None:
    assert [start().epoch, start().epoch, start("other").epoch] == [1, 2, 1]


def test_a_started_combiner_is_alive_until_its_lease_runs_out() -> None:
    lease = start()
    assert Combiner.objects.alive().get().pk == lease.combiner_id
    let_lease_run_out(lease)
    assert not Combiner.objects.alive().exists()


def test_a_renewal_prolongs_the_lease_and_keeps_the_load() -> None:
    lease = start()
    let_lease_run_out(lease)
    assert presence.renew_lease(combiner_id=lease.combiner_id, epoch=lease.epoch, load={"clients": 3})
    assert Combiner.objects.alive().get().load == {"clients": 3}


def test_a_renewal_fails_once_a_newer_combiner_runs_under_the_name() -> None:
    old = start()
    new = start()
    assert not presence.renew_lease(combiner_id=old.combiner_id, epoch=old.epoch, load={})
    assert presence.renew_lease(combiner_id=new.combiner_id, epoch=new.epoch, load={})


def test_a_renewal_is_one_statement() -> None:
    lease = start()
    with CaptureQueriesContext(
        connection,
    ) as queries:
        presence.renew_lease(combiner_id=lease.combiner_id, epoch=lease.epoch, load={})
    assert len(queries) == 1


def test_a_combiner_that_returns_with_another_disk_says_so() -> None:
    assert not start(spool_id="disk-1").lost_spool
    assert not start(spool_id="disk-1").lost_spool
    assert start(spool_id="disk-2").lost_spool
    assert not start(spool_id="disk-2").lost_spool


def test_a_combiner_that_stops_takes_its_clients_offline(client_row: Client) -> None:
    lease = start()
    connect(client_row, lease)
    assert is_online(client_row)
    assert presence.end_lease(combiner_id=lease.combiner_id, epoch=lease.epoch)
    assert not is_online(client_row)


def test_an_old_combiner_cannot_end_the_lease_of_the_new_one() -> None:
    old = start()
    start()
    assert not presence.end_lease(combiner_id=old.combiner_id, epoch=old.epoch)
    assert Combiner.objects.alive().exists()


def test_a_client_is_online_while_connected_and_offline_after(client_row: Client) -> None:
    lease = start()
    assert not is_online(client_row)
    assert connect(client_row, lease)
    assert is_online(client_row)
    assert disconnect(client_row, lease)
    assert not is_online(client_row)


def test_a_client_is_offline_when_its_combiner_fell_silent(client_row: Client) -> None:
    lease = start()
    connect(client_row, lease)
    let_lease_run_out(lease)
    assert not is_online(client_row)


def test_a_client_of_a_combiner_that_restarted_is_offline_until_it_comes_back(client_row: Client) -> None:
    connect(client_row, start())
    again = start()
    assert not is_online(client_row)
    assert connect(client_row, again, "c2")
    assert is_online(client_row)


def test_an_old_combiners_late_word_never_hides_a_client_that_came_back_elsewhere(client_row: Client) -> None:
    first, second = start("one"), start("two")
    connect(client_row, first, "c1")
    connect(client_row, second, "c2")
    assert not disconnect(client_row, first, "c1")
    assert is_online(client_row)
    assert Client.objects.get().combiner_id == second.combiner_id


def test_the_end_of_an_earlier_stream_on_the_same_combiner_changes_nothing(client_row: Client) -> None:
    lease = start()
    connect(client_row, lease, "c1")
    connect(client_row, lease, "c2")
    assert not disconnect(client_row, lease, "c1")
    assert is_online(client_row)


def test_a_combiner_that_was_replaced_cannot_connect_clients(client_row: Client) -> None:
    old = start()
    start()
    assert not connect(client_row, old)
    assert not is_online(client_row)
    assert not Event.objects.exists()


def test_a_client_that_is_gone_cannot_connect(client_row: Client) -> None:
    lease = start()
    gone = Client(pk=uuid.uuid4(), name="gone")
    assert not connect(gone, lease)
    assert not Event.objects.exists()


def test_connecting_and_leaving_are_in_the_event_log(client_row: Client) -> None:
    lease = start()
    connect(client_row, lease)
    disconnect(client_row, lease)
    told = Event.objects.order_by("id").values_list("kind", "client", "combiner", "message")
    assert list(told) == [
        ("client.connected", client_row.pk, lease.combiner_id, "site-a connected to combiner-1."),
        ("client.disconnected", client_row.pk, lease.combiner_id, "site-a disconnected from combiner-1."),
    ]


def test_attributes_are_kept_when_a_reconnect_names_none(client_row: Client) -> None:
    lease = start()
    presence.set_attributes(client_id=client_row.pk, attributes={"region": "eu", "gpus": float("nan")})
    connect(client_row, lease)
    assert Client.objects.get().attributes == {"region": "eu", "gpus": "NaN"}


@pytest.mark.django_db(transaction=True)
def test_two_combiners_that_start_at_once_under_one_name_get_two_epochs() -> None:
    gate = threading.Barrier(4)

    def begin(_: int) -> int:
        gate.wait()
        try:
            return start().epoch
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(begin, range(4))) == [1, 2, 3, 4]
