"""Sessions played on rows: combiners and clients are the services that they would call, time is what the rows say."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from django.utils import timezone

from clients_app import presence
from clients_app.models import Client, Combiner
from clients_app.presence import CombinerLease
from federation.aggregation.accumulate import WeightedSum
from federation.aggregation.codecs import save_arrays
from federation.aggregation.layout import Layout
from federation.events.models import Event
from federation.sessions import assignments, engine, reduction
from federation.sessions.assignments import ShareWork, SpooledUpdate, Verdict
from federation.sessions.choices import AssignmentStatus
from federation.sessions.models import Assignment, CombinerShare, Round, Session
from foundation import storage
from tests.rig import Rig

Arrays = Mapping[str, Any]


def ago(seconds: float) -> dt.datetime:
    return timezone.now() - dt.timedelta(seconds=seconds)


def mean(updates: Sequence[tuple[Arrays, float]]) -> dict[str, Any]:
    """The weighted average of what was sent, in float64: what every round must come to."""
    total = sum(weight for _, weight in updates)
    return {
        name: sum(np.asarray(arrays[name], np.float64) * weight for arrays, weight in updates) / total
        for name in updates[0][0]
    }


def assert_same(found: Arrays, wanted: Arrays, rtol: float = 1e-6) -> None:
    assert set(found) == set(wanted)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=rtol, err_msg=name)


def update(value: float) -> dict[str, Any]:
    """An update for the seed that `Rig.model` makes: every number is `value`."""
    return {"w": np.full((4, 3), value, np.float32), "b": np.full(3, value, np.float32)}


@dataclass(eq=False)
class Rows(Rig):
    """A rig without processes."""

    paths: dict[str, Path] = field(default_factory=dict)

    # --- who is there -----------------------------------------------------------------------------------------
    def lease(self, name: str = "c1", spool_id: str = "disk") -> CombinerLease:
        return presence.start_combiner(
            name=name, spool_id=f"{spool_id}-{name}", address="", tls_address="", labels={}, version="1"
        )

    def lease_out(self, lease: CombinerLease, seconds: float = 1.0) -> None:
        Combiner.objects.filter(pk=lease.combiner_id).update(lease_until=ago(seconds))

    def online(self, lease: CombinerLease, *names: str, connection_id: str = "") -> list[Client]:
        """Clients of these names, connected to that combiner."""
        found = []
        for name in names:
            row = Client.objects.filter(project=self.project, name=name).first() or Client.objects.create(
                project=self.project, name=name
            )
            assert self.connect_row(row, lease, connection_id or str(uuid.uuid4()))
            found.append(row)
        return found

    def connect_row(self, client: Client, lease: CombinerLease, connection_id: str) -> bool:
        return presence.connected(
            client_id=client.pk,
            combiner_id=lease.combiner_id,
            epoch=lease.epoch,
            connection_id=connection_id,
            dialect="native",
            version="1",
        )

    def offline(self, *clients: Client) -> None:
        Client.objects.filter(pk__in=[c.pk for c in clients]).update(connection_id="")

    # --- what they do -----------------------------------------------------------------------------------------
    def running(self, **settings: Any) -> Session:
        """A started session that was looked at once."""
        session = self.session(**settings)
        engine.advance(session.pk)
        session.refresh_from_db()
        return session

    def round(self, session: Session) -> Round:
        """The newest round."""
        return Round.objects.filter(session=session).order_by("-id")[0]

    def task(self, session: Session, client: Client, kind: str = "train") -> Assignment:
        return Assignment.objects.filter(round__session=session, client=client, kind=kind).order_by("-id")[0]

    def spooled(
        self,
        *tasks: Assignment,
        value: float = 1.0,
        examples: float = 1.0,
        arrays: Arrays | None = None,
        delta_norm: float | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> list[SpooledUpdate]:
        """Updates as they are on the combiner's disk."""
        updates = []
        for task in tasks:
            name = uuid.uuid4().hex
            self.paths[name] = self.folder / f"{name}.update"
            save_arrays(dict(arrays or update(value)), self.paths[name])
            updates.append(
                SpooledUpdate(
                    task.pk,
                    task.client_id,
                    task.round_id,
                    name,
                    "0" * 64,
                    100,
                    examples,
                    1.0,
                    metadata or {"loss": value},
                    delta_norm,
                )
            )
        return updates

    def accept(
        self,
        lease: CombinerLease,
        *tasks: Assignment,
        value: float = 1.0,
        examples: float = 1.0,
        arrays: Arrays | None = None,
        delta_norm: float | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> list[Verdict]:
        """The combiner has these updates on its disk, and asks."""
        updates = self.spooled(
            *tasks, value=value, examples=examples, arrays=arrays, delta_norm=delta_norm, metadata=metadata
        )
        verdicts = assignments.accept_updates(
            combiner_id=lease.combiner_id, epoch=lease.epoch, updates=updates
        )
        return [verdicts[task.pk] for task in tasks]

    def finish_share(self, lease: CombinerLease) -> list[bool]:
        """The combiner folds what counts, or collects it, stores its partials and says so."""
        return [
            self._collect(lease, work) if work.collects else self._fold(lease, work)
            for work in assignments.closing_shares(lease.combiner_id)
        ]

    def _fold(self, lease: CombinerLease, work: ShareWork) -> bool:
        total, key, sha256 = WeightedSum(Layout.from_json(work.layout)), "", ""
        for one in work.accepted:
            if one.weight:
                total.fold(self.paths[one.spool_name], one.weight)
        if total.count:
            draft = self.folder / f"{uuid.uuid4()}.partial"
            sha256 = total.write_mean(draft, partial=not work.is_model)
            top = f"models/{work.project_id}" if work.is_model else f"partials/{work.round_id}"
            key = f"{top}/{uuid.uuid4()}.safetensors"
            storage.put(key, draft)
        return self._finished(
            lease, work, total.weight, partial_key=key, partial_sha256=sha256, is_model=work.is_model
        )

    def _collect(self, lease: CombinerLease, work: ShareWork) -> bool:
        keys = {}
        for one in work.accepted:
            keys[one.assignment_id] = f"updates/{work.round_id}/{uuid.uuid4()}.safetensors"
            storage.put(keys[one.assignment_id], self.paths[one.spool_name])
        assignments.note_collected(combiner_id=lease.combiner_id, epoch=lease.epoch, keys=keys)
        return self._finished(lease, work, sum(one.weight for one in work.accepted), collected=True)

    def _finished(self, lease: CombinerLease, work: ShareWork, weight: float, **partial: Any) -> bool:
        return assignments.finish_share(
            share_id=work.share_id,
            round_id=work.round_id,
            session_id=work.session_id,
            combiner_id=lease.combiner_id,
            epoch=lease.epoch,
            weight=weight,
            updates=len(work.accepted),
            **partial,
        )

    def reduce(self, session: Session) -> Round:
        round_ = self.round(session)
        reduction.reduce_round(round_.pk)
        round_.refresh_from_db()
        return round_

    def share(self, session: Session, lease: CombinerLease) -> CombinerShare:
        return CombinerShare.objects.filter(round__session=session, combiner_id=lease.combiner_id).order_by(
            "-id"
        )[0]

    def events(self, session: Session, kind: str) -> list[str]:
        rows = Event.objects.filter(session=session, kind=kind).order_by("id")
        return list(rows.values_list("message", flat=True))


def give_up(rows: Rows, session: Session, client: Client, reason: str = "no data") -> None:
    task = rows.task(session, client)
    assignments.end_with_reason(
        client_id=client.pk, assignment_id=task.pk, status=AssignmentStatus.FAILED, reason=reason
    )


def statuses(session: Session, kind: str = "train") -> list[str]:
    rows = Assignment.objects.filter(round__session=session, kind=kind).order_by("id")
    return list(rows.values_list("status", flat=True))


def again(session: Session) -> Session:
    engine.advance(session.pk)
    session.refresh_from_db()
    return session


def past_deadline(rows: Rows, session: Session) -> None:
    Round.objects.filter(pk=rows.round(session).pk).update(deadline=ago(1))
