"""What clients report about a model: kept whole, as metrics, and as the model's weighted means."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest
from django.db import connection

from clients_app.models import Client
from federation.events.models import Event
from federation.models import services
from federation.models.models import Metric, Model, Validation
from foundation.errors import StudioError
from projects.models import Project

pytestmark = pytest.mark.django_db


def make_world(clients: int = 2) -> tuple[Model, list[Client]]:
    project = Project.objects.create(slug=f"p-{uuid.uuid4().hex[:8]}", name="North")
    model = Model.objects.create(
        project=project, kind="seed", name="seed", key="k", sha256="0" * 64, size_bytes=1, layout=[]
    )
    rows = [Client(project=project, name=f"site-{n}") for n in range(clients)]
    return model, Client.objects.bulk_create(rows)


@pytest.fixture
def model() -> Model:
    return make_world()[0]


@pytest.fixture
def clients(model: Model) -> list[Client]:
    return list(model.project.clients.order_by("id"))


def report(
    model: Model,
    client: Client,
    data: dict[str, object],
    *,
    weight: float = 1.0,
    work: uuid.UUID | None = None,
) -> bool:
    return services.record_validation(
        project_id=model.project_id,
        session_id=None,
        round_number=1,
        model_id=model.pk,
        client_id=client.pk,
        client_name=client.name,
        assignment_id=work or uuid.uuid4(),
        data=data,
        weight=weight,
    )


def mean_of(model: Model, name: str) -> tuple[Any, float]:
    row = Metric.objects.get(model=model, name=name, source="validation_mean")
    return row.value, row.weight


def test_the_whole_report_is_kept_and_every_scalar_is_a_metric(model: Model, clients: list[Client]) -> None:
    data = {"loss": 0.5, "acc": {"top1": 1, "top5": 2.0}, "ok": True, "note": "fine", "curve": [1, 2]}
    assert report(model, clients[0], data, weight=10)
    assert Validation.objects.get().data == data
    kept = Metric.objects.filter(source="validation").order_by("name").values_list("name", "value", "weight")
    assert list(kept) == [("acc.top1", 1.0, 10.0), ("acc.top5", 2.0, 10.0), ("loss", 0.5, 10.0)]


def test_a_models_mean_is_weighted_by_examples_across_clients(model: Model, clients: list[Client]) -> None:
    report(model, clients[0], {"loss": 1.0, "only_a": 7.0}, weight=30)
    report(model, clients[1], {"loss": 3.0}, weight=10)
    assert mean_of(model, "loss") == (pytest.approx(1.5), 40.0)
    assert mean_of(model, "only_a") == (7.0, 30.0)


def test_a_second_copy_of_a_report_changes_nothing(model: Model, clients: list[Client]) -> None:
    work = uuid.uuid4()
    assert report(model, clients[0], {"loss": 1.0}, work=work)
    assert not report(model, clients[0], {"loss": 9.0}, work=work)
    assert mean_of(model, "loss") == (1.0, 1.0)
    assert Validation.objects.count() == 1


def test_a_clients_newer_report_takes_the_place_of_its_older_one(model: Model, clients: list[Client]) -> None:
    report(model, clients[0], {"loss": 1.0}, weight=10)
    report(model, clients[1], {"loss": 2.0}, weight=10)
    report(model, clients[0], {"loss": 4.0}, weight=30)
    assert mean_of(model, "loss") == (pytest.approx((4.0 * 30 + 2.0 * 10) / 40), 40.0)


def test_numbers_that_are_not_finite_are_no_metrics_but_stay_in_the_report(
    model: Model, clients: list[Client]
) -> None:
    report(model, clients[0], {"loss": float("nan"), "best": float("-inf"), "huge": 10**400, "nul": "a\x00b"})
    assert not Metric.objects.exists()
    assert Validation.objects.get().data == {"loss": "NaN", "best": "-Infinity", "huge": 10**400, "nul": "ab"}


def test_a_report_without_a_number_of_examples_counts_as_one(model: Model, clients: list[Client]) -> None:
    report(model, clients[0], {"loss": 1.0}, weight=0.0)
    report(model, clients[1], {"loss": 3.0}, weight=float("inf"))
    assert mean_of(model, "loss") == (pytest.approx(2.0), 2.0)


def test_means_of_huge_values_do_not_overflow(model: Model, clients: list[Client]) -> None:
    report(model, clients[0], {"loss": 1e308}, weight=1e12)
    report(model, clients[1], {"loss": 1e308}, weight=1e12)
    assert mean_of(model, "loss")[0] == pytest.approx(1e308)


def test_more_scalars_than_are_kept_are_told_in_an_event(model: Model, clients: list[Client]) -> None:
    report(model, clients[0], {f"m{n}": n for n in range(250)})
    assert Metric.objects.filter(source="validation").count() == 200
    assert len(Validation.objects.get().data) == 250
    event = Event.objects.get()
    assert (event.kind, event.level) == ("validation.trimmed", "warning")
    assert "50 scalars" in event.message


def test_a_report_beyond_a_mebibyte_is_refused_and_leaves_nothing(
    model: Model, clients: list[Client]
) -> None:
    with pytest.raises(StudioError) as refused:
        report(model, clients[0], {"text": "x" * (1 << 20)})
    assert refused.value.status == 413
    assert not Validation.objects.exists()


def test_a_model_of_another_project_cannot_be_reported_on(model: Model, clients: list[Client]) -> None:
    other, _ = make_world()
    with pytest.raises(StudioError) as refused:
        services.record_validation(
            project_id=model.project_id,
            session_id=None,
            round_number=1,
            model_id=other.pk,
            client_id=clients[0].pk,
            client_name="site-0",
            assignment_id=uuid.uuid4(),
            data={"loss": 1.0},
            weight=1,
        )
    assert refused.value.status == 404


def test_training_metadata_and_logged_metrics_are_kept_by_source(model: Model, clients: list[Client]) -> None:
    about: dict[str, Any] = {
        "project_id": model.project_id,
        "session_id": None,
        "round_number": 2,
        "model_id": model.pk,
        "client_id": clients[0].pk,
    }
    said = {"num_examples": 12, "lr": 0.1, "opt": {"name": "sgd", "beta": 0.9}}
    assert (
        services.record_training_metadata([services.TrainingReport(**about, metadata=said, weight=12)]) == 3
    )
    points = [services.LoggedMetric("loss", 0.3, 5), services.LoggedMetric("loss", float("nan"), 6)]
    assert services.record_logged_metrics(**about, values=points) == 1
    rows = Metric.objects.order_by("source", "name").values_list("source", "name", "value", "step")
    assert list(rows) == [
        ("logged", "loss", 0.3, 5),
        ("training", "lr", 0.1, None),
        ("training", "num_examples", 12.0, None),
        ("training", "opt.beta", 0.9, None),
    ]


@pytest.mark.django_db(transaction=True)
def test_reports_that_arrive_at_once_all_count_in_the_mean() -> None:
    model, clients = make_world(8)
    start = threading.Barrier(len(clients))
    failures: list[BaseException] = []

    def send(index: int) -> None:
        start.wait()
        try:
            report(model, clients[index], {"loss": float(index)}, weight=index + 1)
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=send, args=(n,)) for n in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    want = sum(n * (n + 1) for n in range(8)) / sum(n + 1 for n in range(8))
    assert mean_of(model, "loss") == (pytest.approx(want), 36.0)
    assert Validation.objects.count() == 8
