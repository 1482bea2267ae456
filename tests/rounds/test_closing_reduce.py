"""Closing, reduce, commit."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from clients_app.models import Client
from clients_app.presence import CombinerLease
from federation.aggregation.codecs import save_arrays
from federation.models.models import Model
from federation.sessions import assignments, committing, due, engine, reduction
from federation.sessions.models import Assignment, Round, Session
from federation.sessions.services import stop_session
from federation.sessions.sweeping import sweep
from foundation import storage
from foundation.errors import StudioError
from projects.models import Project, User
from tests.rounds.refusing import storage_refuses
from tests.rounds.rows import Rows, ago, assert_same, mean, statuses, update

pytestmark = pytest.mark.django_db


def again(session: Session) -> Session:
    engine.advance(session.pk)
    session.refresh_from_db()
    return session


def to_reduce(rows: Rows, **settings: object) -> tuple[Session, list[CombinerLease], list[Client]]:
    """A session whose round two combiners have finished: 1 with weight 1, 4 with weight 3."""
    leases = [rows.lease("c1"), rows.lease("c2")]
    clients = [rows.online(lease, name)[0] for lease, name in zip(leases, "ab", strict=True)]
    session = rows.running(min_clients=2, **settings)
    for lease, client, value, examples in zip(leases, clients, (1, 4), (1, 3), strict=True):
        rows.accept(lease, rows.task(session, client), value=value, examples=examples)
        session.refresh_from_db()
    for lease in leases:
        assert rows.finish_share(lease) == [True]
    assert rows.round(session).status == "reducing"
    return session, leases, clients


WANTED = mean([(update(1), 1), (update(4), 3)])


def files(top: str) -> set[str]:
    """Keys of everything stored below a folder."""
    root = Path(storage.artifacts().path(top))
    return {f"{top}/{path.relative_to(root)}" for path in root.rglob("*") if path.is_file()}


def test_a_round_with_one_share_adopts_the_partial_as_the_model(rows: Rows) -> None:
    """A round with one Share and plain averaging adopts the partial as the model."""
    lease = rows.lease()
    a, b = rows.online(lease, "a", "b")
    session = rows.running(min_clients=2)
    rows.accept(lease, rows.task(session, a), value=1, examples=1)
    rows.accept(lease, rows.task(session, b), value=4, examples=3)
    rows.finish_share(lease)
    share = rows.share(session, lease)
    rows.reduce(session)
    again(session)
    assert session.current_model.key == share.partial_key
    assert session.current_model.sha256 == share.partial_sha256
    with storage.local(share.partial_key) as path:
        assert storage.sha256_of(path) == share.partial_sha256
        assert path.stat().st_size == session.current_model.size_bytes
    assert_same(rows.arrays_of(session.current_model), WANTED)


def test_two_combiners_come_to_the_flat_average(rows: Rows) -> None:
    """`reduce` combines partials by weight: the result equals the flat average; partials go after commit."""
    session, leases, _ = to_reduce(rows)
    keys = [rows.share(session, lease).partial_key for lease in leases]
    rows.reduce(session)
    again(session)
    assert_same(rows.arrays_of(session.current_model), WANTED)
    assert session.status == "finished" and session.current_model.metadata == {
        "updates": 2, "num_examples": 4.0,
    }  # fmt: skip
    assert not files("partials") & set(keys)


def test_the_set_that_counts_is_what_is_accepted_once_the_share_closes(rows: Rows) -> None:
    """The set that counts is the `accepted` rows read after the Share is `closing`."""
    lease = rows.lease()
    a, b = rows.online(lease, "a", "b")
    session = rows.running(min_clients=2, min_updates=1)
    rows.accept(lease, rows.task(session, a), value=2)
    assert assignments.closing_shares(lease.combiner_id) == []
    Round.objects.update(deadline=ago(1))
    again(session)
    (verdict,) = rows.accept(lease, rows.task(session, b), value=50)
    assert not verdict.accepted and "round 1 is closed" in verdict.reason
    (work,) = assignments.closing_shares(lease.combiner_id)
    assert [u.assignment_id for u in work.accepted] == [rows.task(session, a).pk]


def test_only_one_reduces_at_a_time_and_a_claim_is_renewed_by_its_owner(rows: Rows) -> None:
    """`reduce` first claims the round (`reduce_owner`, `reduce_until`, renewed)."""
    session, _, _ = to_reduce(rows)
    round_ = rows.round(session)
    one, two = uuid.uuid4(), uuid.uuid4()
    assert committing.claim_reduction(round_.pk, one, 30)
    assert not committing.claim_reduction(round_.pk, two, 30)
    assert reduction.reduce_round(round_.pk) is None
    assert committing.claim_reduction(round_.pk, one, 30)
    Round.objects.filter(pk=round_.pk).update(reduce_until=ago(1))
    assert committing.claim_reduction(round_.pk, two, 30)
    assert not committing.claim_reduction(round_.pk, one, 30)


def reduced(rows: Rows, session: Session, owner: uuid.UUID) -> committing.ReducedModel:
    path = rows.folder / f"{owner}.safetensors"
    with storage.local(session.seed_model.key) as seed:
        path.write_bytes(seed.read_bytes())
    key = f"models/{session.project_id}/{owner}.safetensors"
    storage.put(key, path)
    return committing.ReducedModel(key, storage.sha256_of(path), path.stat().st_size, 2, 4.0)


def test_who_lost_the_claim_commits_nothing(rows: Rows) -> None:
    """commit while the Round is `reducing`; zero rows: somebody committed first."""
    session, _, _ = to_reduce(rows)
    round_ = rows.round(session)
    one, two = uuid.uuid4(), uuid.uuid4()
    committing.claim_reduction(round_.pk, one, 30)
    slow = reduced(rows, session, one)
    Round.objects.filter(pk=round_.pk).update(reduce_until=ago(1))
    committing.claim_reduction(round_.pk, two, 30)
    assert committing.commit_round(round_id=round_.pk, owner=one, reduced=slow) is None
    model = committing.commit_round(round_id=round_.pk, owner=two, reduced=reduced(rows, session, two))
    assert model is not None
    assert committing.commit_round(round_id=round_.pk, owner=two, reduced=slow) is None
    assert session.trail.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_share_that_is_in_a_model_is_not_given_up(rows: Rows) -> None:
    """A combiner that closed a share twice finds its files gone; the round has its model."""
    session, leases, _ = to_reduce(rows)
    share = rows.share(session, leases[0])
    for then in (lambda: None, lambda: reduction.reduce_round(rows.round(session).pk)):
        then()
        assignments.abandon_share(share_id=share.pk, reason="its files are gone")
        share.refresh_from_db()
        assert share.status == "finished" and statuses(session) == ["accepted", "accepted"]
        assert rows.events(session, "round.updates_lost") == []
    assert rows.round(session).status == "finished"


def test_who_lost_the_claim_fails_nothing(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, _ = to_reduce(rows)
    round_ = rows.round(session)

    def lost_and_failed(*_: object) -> None:
        Round.objects.filter(pk=round_.pk).update(reduce_until=ago(1))
        assert committing.claim_reduction(round_.pk, uuid.uuid4(), 30)
        raise StudioError("torn", "What this attempt read was gone already.")

    with monkeypatch.context() as patched:
        patched.setattr(reduction, "_reduce", lost_and_failed)
        reduction.reduce_round(round_.pk)
    assert rows.round(session).status == "reducing"
    Round.objects.filter(pk=round_.pk).update(reduce_until=ago(1))
    reduction.reduce_round(round_.pk)
    session.refresh_from_db()
    assert session.current_model is not None
    assert_same(rows.arrays_of(session.current_model), WANTED)


def test_two_reductions_at_once_make_one_model(live_rows: Rows) -> None:
    """Every key it writes contains an attempt's UUID, so a loser can only delete its own; one transaction."""
    for _ in range(3):
        session, _, _ = to_reduce(live_rows)
        round_ = live_rows.round(session)
        gate = threading.Barrier(3)

        def run(round_: Round = round_, gate: threading.Barrier = gate) -> None:
            try:
                gate.wait(10)
                reduction.reduce_round(round_.pk)
            finally:
                connection.close()

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert again(session).status == "finished"
        model = session.trail.get()
        assert_same(live_rows.arrays_of(model), WANTED)
    assert files(f"models/{live_rows.project.pk}") == set(Model.objects.values_list("key", flat=True))


def test_commit_writes_model_round_and_session_together(rows: Rows) -> None:
    """commit_round in one transaction: Model, Round finished with output and timings, Session's current model
    and number."""
    session, _, _ = to_reduce(rows, rounds=2, validate=True)
    rows.reduce(session)
    session.refresh_from_db()
    round_ = rows.round(session)
    assert round_.status == "finished" and round_.output_model == session.current_model
    assert session.rounds_done == 1 and session.current_model.parent == session.seed_model
    assert set(round_.timings) == {"training_s", "closing_s", "reducing_s", "total_s"}
    assert Assignment.objects.filter(kind="validate", model=session.current_model).count() == 2
    again(session)
    # the next training goes out with the validations, on the same model: it is downloaded once
    assert set(Assignment.objects.filter(status="assigned").values_list("kind", "model")) == {
        ("train", session.current_model_id),
        ("validate", session.current_model_id),
    }


def test_a_session_that_was_stopped_gets_no_model_any_more(rows: Rows) -> None:
    """commit only while the Session is `running` and the Round `reducing`."""
    session, _, _ = to_reduce(rows)
    round_ = rows.round(session)
    owner = uuid.uuid4()
    committing.claim_reduction(round_.pk, owner, 30)
    late = reduced(rows, session, owner)
    stop_session(actor=rows.actor, session=session)
    again(session)
    assert committing.commit_round(round_id=round_.pk, owner=owner, reduced=late) is None
    assert session.status == "stopped" and not session.trail.exists()


def test_storage_that_refuses_the_model_is_waited_for_and_the_session_says_so(rows: Rows) -> None:
    """storage refuses a write: retried with backoff, shown as the reason for waiting."""
    session, _, _ = to_reduce(rows, start_timeout_s=100)
    with storage_refuses(f"models/{rows.project.pk}"):
        round_ = rows.reduce(session)
        again(session)
        assert round_.status == "reducing" and session.status == "running"
        assert "storage" in session.waiting_for
        assert session.waiting_until is not None and session.waiting_until > timezone.now()
        assert round_.reduce_owner is None and round_.reduce_until is not None
        assert reduction.reduce_round(round_.pk) is None  # not before its time
        Round.objects.update(reduce_until=ago(0.1), reducing_at=ago(60))
        assert session.pk in due.due_sessions()
        round_ = rows.reduce(session)
        assert round_.reduce_until > timezone.now() + dt.timedelta(seconds=8)  # type: ignore[operator]
    assert len(rows.events(session, "storage.refused")) == 1
    Round.objects.update(reduce_until=ago(0.1))
    rows.reduce(session)
    again(session)
    assert session.status == "finished" and session.waiting_for == ""
    assert_same(rows.arrays_of(session.current_model), WANTED)


def test_storage_that_stays_away_ends_the_round_with_that_reason(rows: Rows) -> None:
    """Nothing waits for ever: every wait has a deadline."""
    session, _, _ = to_reduce(rows, max_failed_rounds=1)
    with storage_refuses(f"models/{rows.project.pk}"):
        rows.reduce(session)
        again(session)
        Session.objects.filter(pk=session.pk).update(waiting_until=ago(1))
        again(session)
    assert session.status == "failed" and "storage" in session.reason and session.waiting_for == ""


def test_a_sum_that_is_not_finite_fails_the_round_naming_the_clients(rows: Rows) -> None:
    """A sum that is not finite fails the Round, naming the clients."""
    leases = [rows.lease("c1"), rows.lease("c2")]
    clients = [rows.online(lease, name)[0] for lease, name in zip(leases, "ab", strict=True)]
    session = rows.running(min_clients=2, max_failed_rounds=1)
    for lease, client in zip(leases, clients, strict=True):
        rows.accept(lease, rows.task(session, client), value=1)
    for lease in leases:
        rows.finish_share(lease)
    for lease in leases:  # two partials whose mean is beyond float32
        share = rows.share(session, lease)
        path = rows.folder / "huge"
        save_arrays({k: v.astype("f8") + 1e300 for k, v in update(1).items()}, path)
        storage.put(share.partial_key, path)
    round_ = rows.reduce(session)
    assert round_.status == "failed" and "not finite" in round_.reason
    assert "a, b" in round_.reason
    assert again(session).status == "failed"


def test_the_sweeper_removes_what_no_row_names_once_it_is_older_than_a_day(rows: Rows) -> None:
    """a sweeper removes what no row names and is older than a day."""
    session, leases, _ = to_reduce(rows)
    path = rows.folder / "orphan"
    path.write_bytes(b"x")
    orphans = [f"models/{rows.project.pk}/{uuid.uuid4()}.safetensors", f"partials/{uuid.uuid4()}/x"]
    for key in orphans:
        storage.put(key, path)
    named = {rows.share(session, lease).partial_key for lease in leases} | {session.seed_model.key}
    assert sweep() == []  # they are young
    assert sweep(timezone.now() + dt.timedelta(hours=23)) == []
    removed = set(sweep(timezone.now() + dt.timedelta(hours=25)))
    assert set(orphans) <= removed and not removed & named
    assert named <= files("models") | files("partials")
    rows.reduce(session)
    assert again(session).status == "finished"


def test_two_sessions_of_two_projects_train_side_by_side(
    rows: Rows, other_project: Project, stranger: User
) -> None:
    """One tenant never sees another: a session asks its own project's clients only."""
    lease = rows.lease()
    theirs = Rows(other_project, stranger, rows.folder, rows.wait_until, paths=rows.paths)
    (mine,), (foreign,) = rows.online(lease, "a"), theirs.online(lease, "a")
    session = rows.running(min_clients=1)
    assert [t.client_id for t in Assignment.objects.all()] == [mine.pk]
    other = theirs.running(min_clients=1)
    rows.accept(lease, rows.task(session, mine), value=1)
    theirs.accept(lease, theirs.task(other, foreign), value=9)
    assert rows.finish_share(lease) == [True, True]
    for each, value in ((session, 1), (other, 9)):
        rows.reduce(each)
        again(each)
        assert_same(rows.arrays_of(each.current_model), update(value))
        assert each.current_model.project_id == each.project_id
