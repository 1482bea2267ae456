"""What was measured on a model: validations, their means, and what clients log while they train."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from federation.events.services import publish
from federation.models.models import Metric, Model, Validation
from foundation.errors import StudioError
from foundation.plain_json import plain, scalars

MAX_REPORT_BYTES = 1 << 20
MAX_METRICS = 200
MAX_NAME_CHARS = 120


@dataclass(frozen=True)
class Measured:
    """Where a number comes from: the client, and the round of the session whose model it was measured on."""

    project_id: uuid.UUID
    session_id: uuid.UUID | None
    round_number: int | None
    model_id: uuid.UUID
    client_id: uuid.UUID


def record_validation(
    *,
    project_id: uuid.UUID,
    session_id: uuid.UUID | None,
    round_number: int | None,
    model_id: uuid.UUID,
    client_id: uuid.UUID,
    client_name: str,
    assignment_id: uuid.UUID,
    data: dict[str, Any],
    weight: float,
) -> bool:
    """Keep what a client says of a model: the whole JSON, every scalar in it as a metric, and the model's
    means.

    `weight` is the number of examples behind the report; 0 (not told) counts as 1. False when this assignment
    has already reported: then nothing changes. Raises StudioError `report_too_large` beyond 1 MiB of JSON,
    404 when the model is gone.
    """
    kept = plain(data)
    if len(json.dumps(kept)) > MAX_REPORT_BYTES:
        raise StudioError(
            "report_too_large", f"A validation report may hold at most {MAX_REPORT_BYTES} bytes of JSON.", 413
        )
    source = Measured(project_id, session_id, round_number, model_id, client_id)
    weight = _weight(weight)
    with transaction.atomic():
        # Reports for one model queue here, so that each mean is computed from the one before it. The weaker
        # lock lets rows that merely point at the model be written meanwhile.
        model = (
            Model.objects.select_for_update(no_key=True).filter(pk=model_id, project_id=project_id).first()
        )
        if model is None:
            raise StudioError("not_found", "The model that was validated is no longer there.", 404)
        if Validation.objects.filter(assignment_id=assignment_id).exists():
            return False
        Validation.objects.create(
            project_id=project_id,
            model_id=model_id,
            client_id=client_id,
            client_name=client_name[:120],
            session_id=session_id,
            round_number=round_number,
            assignment_id=assignment_id,
            data=kept,
        )
        values, left_out = _metrics_in(data)
        _refresh_means(source, values, weight)
        _insert(source, Metric.Source.VALIDATION, values.items(), weight)
        if left_out:
            publish(
                project_id=project_id,
                kind="validation.trimmed",
                level="warning",
                message=f"{client_name} reported {left_out} scalars more than the {MAX_METRICS} that are kept "
                "as metrics, or with names too long; the whole report is stored.",
                session_id=session_id,
                round_number=round_number,
                client_id=client_id,
                model=model_id,
            )
    return True


def _refresh_means(source: Measured, values: Mapping[str, float], weight: float) -> None:
    """Fold one client's values into the model's means. A client's newer report takes the place of its older
    one."""
    earlier = {
        name: (value, share)
        for name, value, share in Metric.objects.filter(
            model_id=source.model_id,
            client_id=source.client_id,
            source=Metric.Source.VALIDATION,
            name__in=values,
        )
        .order_by("id")
        .values_list("name", "value", "weight")
    }
    means = {
        row.name: row
        for row in Metric.objects.filter(
            model_id=source.model_id, source=Metric.Source.VALIDATION_MEAN, name__in=values
        )
    }
    fresh = []
    for name, value in values.items():
        row = means.get(name)
        if row is None:
            fresh.append(_row(source, Metric.Source.VALIDATION_MEAN, name, value, weight, client_id=None))
            continue
        old_value, old_weight = earlier.get(name, (0.0, 0.0))
        total = row.weight - old_weight + weight
        # terms are scaled first: a sum of large finite values must not overflow
        row.value = math.fsum(
            (row.value * (row.weight / total), -old_value * (old_weight / total), value * (weight / total))
        )
        row.weight = total
    Metric.objects.bulk_create(fresh)
    Metric.objects.bulk_update(means.values(), ["value", "weight"])


@dataclass(frozen=True)
class LoggedMetric:
    """One number that training logged; `step` is the client's own counter."""

    name: str
    value: float
    step: int | None = None


def record_logged_metrics(
    *,
    project_id: uuid.UUID,
    session_id: uuid.UUID | None,
    round_number: int | None,
    model_id: uuid.UUID,
    client_id: uuid.UUID,
    values: Sequence[LoggedMetric],
) -> int:
    """Keep what a client logs while it trains; answers how many. What is not finite is left out."""
    source = Measured(project_id, session_id, round_number, model_id, client_id)
    rows = [
        _row(source, Metric.Source.LOGGED, each.name, each.value, 1.0, step=each.step)
        for each in values[: MAX_METRICS * 10]
        if 0 < len(each.name) <= MAX_NAME_CHARS and math.isfinite(each.value)
    ]
    Metric.objects.bulk_create(rows, batch_size=1000)
    return len(rows)


@dataclass(frozen=True)
class TrainingReport(Measured):
    """What a client said of its training with an update; `weight`: the examples behind it."""

    metadata: Mapping[str, Any]
    weight: float


def record_training_metadata(reports: Iterable[TrainingReport]) -> int:
    """Keep the scalars of accepted updates' metadata as training metrics, in one insert; answers how many. The
    metadata itself stays on the assignment. Runs in the transaction that accepts, so it happens once."""
    rows = [
        _row(report, Metric.Source.TRAINING, name, value, _weight(report.weight))
        for report in reports
        for name, value in _metrics_in(report.metadata)[0].items()
    ]
    return len(Metric.objects.bulk_create(rows))


def _metrics_in(data: Any) -> tuple[dict[str, float], int]:
    """The scalars that become metrics, and how many more there were."""
    found = dict(scalars(data))
    kept = {name: value for name, value in found.items() if 0 < len(name) <= MAX_NAME_CHARS}
    first = dict(list(kept.items())[:MAX_METRICS])
    return first, len(found) - len(first)


def _weight(weight: float) -> float:
    return float(weight) if math.isfinite(weight) and weight > 0 else 1.0


def _insert(source: Measured, kind: str, values: Iterable[tuple[str, float]], weight: float) -> int:
    return len(
        Metric.objects.bulk_create([_row(source, kind, name, value, weight) for name, value in values])
    )


def _row(
    source: Measured,
    kind: str,
    name: str,
    value: float,
    weight: float,
    *,
    step: int | None = None,
    **instead: Any,
) -> Metric:
    fields: dict[str, Any] = {
        "project_id": source.project_id,
        "session_id": source.session_id,
        "round_number": source.round_number,
        "model_id": source.model_id,
        "client_id": source.client_id,
        **instead,
    }
    return Metric(source=kind, name=name, value=value, weight=weight, step=step, **fields)
