"""Reduce: the partials of a round, or its updates themselves, become its model.

Every key written contains this attempt's UUID, so a loser can only delete its own.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import structlog
from django.db import OperationalError, close_old_connections, transaction

from federation.aggregation.accumulate import WeightedSum, fold_in_order
from federation.aggregation.aggregators import Reduction
from federation.aggregation.aggregators.collecting import Collecting
from federation.sessions import committing, counting, parts, privacy, rounds
from federation.sessions.choices import RoundStatus
from federation.sessions.config import SessionConfig
from federation.sessions.inputs import Inputs
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
    if not committing.claim_reduction(round_id, owner, CLAIM_S):
        return None
    round_ = Round.objects.select_related("input_model", "session").get(pk=round_id)
    try:
        with _renewed(round_id, owner), contextlib.ExitStack() as opened:
            inputs = Inputs(round_, opened)
            reduced = replace(_reduce(inputs, owner), spent=privacy.account(round_, inputs.config))
            left_over = {share.partial_key for share in inputs.shares} | {round_.session.aggregator_state}
    except parts.Superseded:
        return None
    except StudioError as error:
        _fail(round_, owner, f"{error.message} {rounds.client_names(round_)}")
        return round_.session_id
    except Exception:  # each backend of storage raises its own; all mean: not now
        log.exception("reduce.put_off", round=str(round_id))
        _put_off(round_, owner)
        return round_.session_id
    model = committing.commit_round(round_id=round_id, owner=owner, reduced=reduced)
    if model is None:  # what lost is only this attempt's own: an adopted partial belongs to its share
        for key in {reduced.key, reduced.state_key} - left_over - {""}:
            _delete(key)
        return round_.session_id
    for key in left_over - {reduced.key, ""}:
        _delete(key)
    log.info("round.committed", session=str(round_.session_id), round=round_.number, model=str(model.pk))
    return round_.session_id


def _reduce(inputs: Inputs, owner: uuid.UUID) -> committing.ReducedModel:
    round_, config, aggregator = inputs.round, inputs.config, inputs.aggregator
    updates, examples = inputs.counted()
    if not updates and config.privacy is None:
        raise StudioError("nothing_to_reduce", "No combiner finished a share of this round.")
    if (only := _adopted(inputs)) is not None:
        return committing.ReducedModel(
            only.partial_key, only.partial_sha256, round_.input_model.size_bytes, updates, examples
        )
    key = f"models/{round_.project_id}/{owner}.safetensors"
    state_key = f"states/{round_.project_id}/{owner}.safetensors"
    with tempfile.TemporaryDirectory(prefix="studio-reduce-") as name:
        folder = Path(name)
        out, out_state = folder / "model.safetensors", folder / "state.safetensors"
        if isinstance(aggregator, Collecting) and parts.is_large(inputs):
            sha256 = parts.Attempt(inputs, aggregator, owner, owner, folder).reduce(out)
        else:
            files = Reduction(
                layout=inputs.layout,
                model=inputs.model,
                model_id=str(round_.input_model_id),
                state=inputs.state(),
                updates=inputs.facts,
                bases=inputs.bases(),
                collected=inputs.collected() if aggregator.collects else (),
                partials=() if aggregator.collects else _partials(inputs, folder),
                out=out,
                out_state=out_state,
                privacy=privacy.of_round(round_, config),
                staleness_exponent=config.asynchronous.staleness_exponent if config.asynchronous else None,
            )
            sha256 = aggregator.reduce(files, config.aggregator_kwargs)
        size = out.stat().st_size
        storage.put(key, out)
        if out_state.exists():
            storage.put(state_key, out_state)
        else:
            state_key = ""
    return committing.ReducedModel(key, sha256, size, updates, examples, state_key)


def _adopted(inputs: Inputs) -> CombinerShare | None:
    """The share whose partial is the round's model as it is."""
    shares = inputs.shares
    if (
        len(shares) == 1
        and shares[0].is_model
        and shares[0].partial_key
        and counting.adopts_partial(inputs.config)
    ):
        return shares[0]
    return None


def _partials(inputs: Inputs, folder: Path) -> list[tuple[Path, float]]:
    """What the combiners folded; of a deterministic session, the fold in the order of its clients, made here."""
    if not counting.collects(inputs.config):
        return inputs.partials()
    weights = [facts.weight for facts in inputs.facts]
    if not any(weights):
        return []
    partial = folder / "partial.safetensors"
    if storage.is_local():
        fold_in_order(inputs.collected(), weights, inputs.layout, partial)
    else:  # one after the other: the updates are never all on this disk
        total = WeightedSum(inputs.layout)
        for row, weight in zip(inputs.rows, weights, strict=True):
            if weight:
                with storage.local(row.update_key) as path:
                    total.fold(path, weight)
        total.write_mean(partial, partial=True)
    return [(partial, math.fsum(weights))]


def delete_collected(round_id: uuid.UUID) -> None:
    """The updates of a committed round, which nothing needs any more. A bucket takes its time to forget thousands: the
    next round should be open by then."""
    if not Round.objects.filter(pk=round_id, status=RoundStatus.FINISHED, shares__collected=True).exists():
        return
    try:
        storage.delete_under(f"updates/{round_id}")
    except Exception as error:  # the sweeper finds them later
        log.warning("reduce.left_behind", key=f"updates/{round_id}", error=str(error)[:200])


def _delete(key: str) -> None:
    try:
        storage.delete(key)
    except Exception as error:  # the sweeper finds it later
        log.warning("reduce.left_behind", key=key, error=str(error)[:200])


def _put_off(round_: Round, owner: uuid.UUID) -> None:
    """Tried again after as long as it was tried so far, ten seconds at most; the session says what it waits for."""
    elapsed = (db_now() - round_.reducing_at).total_seconds() if round_.reducing_at else 0.0
    committing.put_off_reduction(round_.pk, owner, min(max(elapsed, 0.5), LONGEST_WAIT_S))
    rounds.wait_for_storage(
        round_.pk, "storage to give the partials and take the model (it refused; nothing is lost)"
    )


def _fail(round_: Round, owner: uuid.UUID, reason: str) -> None:
    """Only by whoever holds the claim: what came over another may have spared the next."""
    with transaction.atomic():
        session = lock_session(round_.session_id)
        locked = Round.objects.select_for_update(of=("self",), no_key=True).get(pk=round_.pk)
        mine = locked.status == RoundStatus.REDUCING and locked.reduce_owner == owner
        if session is not None and mine:
            rounds.fail(session, locked, reason, SessionConfig.from_json(session.config))


@contextlib.contextmanager
def _renewed(round_id: uuid.UUID, owner: uuid.UUID) -> Iterator[None]:
    """Keep the claim while a long reduction runs."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(CLAIM_S / 3):
            try:
                committing.claim_reduction(round_id, owner, CLAIM_S)
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
