"""Reduce: the partials of a round become its model.

Every key written contains this attempt's UUID, so a loser can only delete its own.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import structlog
from django.db import OperationalError, close_old_connections, transaction

from federation.aggregation.aggregators import Reduction, aggregator_named
from federation.aggregation.layout import Layout
from federation.sessions import rounds
from federation.sessions.choices import RoundStatus, ShareStatus
from federation.sessions.config import SessionConfig
from federation.sessions.locks import lock_session
from federation.sessions.models import CombinerShare, Round
from foundation import storage
from foundation.clock import db_now
from foundation.errors import StudioError

log = structlog.get_logger(__name__)
CLAIM_S = 15.0
LONGEST_WAIT_S = 10.0


def reduce_round(round_id: uuid.UUID) -> uuid.UUID | None:
    """Claim, combine, commit. Answers the session to advance, or None when there was nothing to do."""
    owner = uuid.uuid4()
    if not rounds.claim_reduction(round_id, owner, CLAIM_S):
        return None
    round_ = Round.objects.select_related("input_model", "session").get(pk=round_id)
    shares = list(
        CombinerShare.objects.filter(round=round_, status=ShareStatus.FINISHED, weight__gt=0).order_by("id")
    )
    try:
        with _renewed(round_id, owner):
            reduced = _reduce(round_, shares, owner)
    except StudioError as error:
        _fail(round_, f"{error.message} {rounds.client_names(round_)}")
        return round_.session_id
    except Exception:  # each backend of storage raises its own; all mean: not now
        log.exception("reduce.put_off", round=str(round_id))
        _put_off(round_, owner)
        return round_.session_id
    model = rounds.commit_round(round_id=round_id, owner=owner, reduced=reduced)
    partials = {share.partial_key for share in shares}
    # What lost is only this attempt's own: an adopted partial belongs to its share.
    ours = {reduced.key, reduced.state_key} - partials
    over = ours if model is None else (partials | {round_.session.aggregator_state}) - {reduced.key}
    for key in over - {""}:
        _delete(key)
    if model is None:
        return round_.session_id
    log.info("round.committed", session=str(round_.session_id), round=round_.number, model=str(model.pk))
    return round_.session_id


def _reduce(round_: Round, shares: list[CombinerShare], owner: uuid.UUID) -> rounds.ReducedModel:
    weight = sum(share.weight for share in shares)
    updates = sum(share.updates for share in shares)
    if not shares or weight <= 0:
        raise StudioError("nothing_to_reduce", "No combiner finished a share of this round.")
    config = SessionConfig.from_json(round_.session.config)
    aggregator = aggregator_named(config.aggregator)
    if aggregator.plain_mean and len(shares) == 1 and shares[0].is_model:
        only = shares[0]
        return rounds.ReducedModel(
            only.partial_key, only.partial_sha256, round_.input_model.size_bytes, updates, weight
        )
    key = f"models/{round_.project_id}/{owner}.safetensors"
    state_key = f"states/{round_.project_id}/{owner}.safetensors"
    with contextlib.ExitStack() as opened, tempfile.TemporaryDirectory(prefix="studio-reduce-") as folder:

        def fetched(stored: str) -> Path:
            return opened.enter_context(storage.local(stored))

        before = round_.session.aggregator_state
        files = Reduction(
            partials=[(fetched(share.partial_key), share.weight) for share in shares],
            layout=Layout.from_json(round_.input_model.layout),
            model=lambda: fetched(round_.input_model.key),
            state=fetched(before) if before else None,
            out=Path(folder) / "model.safetensors",
            out_state=Path(folder) / "state.safetensors",
        )
        sha256 = aggregator.reduce(files, config.aggregator_kwargs)
        size = files.out.stat().st_size
        storage.put(key, files.out)
        if files.out_state.exists():
            storage.put(state_key, files.out_state)
        else:
            state_key = ""
    return rounds.ReducedModel(key, sha256, size, updates, weight, state_key)


def _delete(key: str) -> None:
    try:
        storage.delete(key)
    except Exception as error:  # the sweeper finds it later
        log.warning("reduce.left_behind", key=key, error=str(error)[:200])


def _put_off(round_: Round, owner: uuid.UUID) -> None:
    """Tried again after as long as it was tried so far, ten seconds at most; the session says what it waits for."""
    elapsed = (db_now() - round_.reducing_at).total_seconds() if round_.reducing_at else 0.0
    rounds.put_off_reduction(round_.pk, owner, min(max(elapsed, 0.5), LONGEST_WAIT_S))
    rounds.wait_for_storage(
        round_.pk, "storage to give the partials and take the model (it refused; nothing is lost)"
    )


def _fail(round_: Round, reason: str) -> None:
    with transaction.atomic():
        session = lock_session(round_.session_id)
        locked = Round.objects.select_for_update(of=("self",), no_key=True).get(pk=round_.pk)
        if session is not None and locked.status == RoundStatus.REDUCING:
            rounds.fail(session, locked, reason, SessionConfig.from_json(session.config))


@contextlib.contextmanager
def _renewed(round_id: uuid.UUID, owner: uuid.UUID) -> Iterator[None]:
    """Keep the claim while a long reduction runs."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(CLAIM_S / 3):
            try:
                rounds.claim_reduction(round_id, owner, CLAIM_S)
            except OperationalError:
                log.warning("reduce.renewal_failed", round=str(round_id))
            finally:
                close_old_connections()

    keeper = threading.Thread(target=renew, name="reduce-claim", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
