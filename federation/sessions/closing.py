"""A round past training: its shares end, then it is reduced."""

from __future__ import annotations

import datetime as dt

from federation.sessions import rounds, turns
from federation.sessions.choices import ShareStatus
from federation.sessions.config import SessionConfig
from federation.sessions.lost import lose_share, silent_shares
from federation.sessions.models import Round, Session
from federation.sessions.training import who_was_missing

LOOK_S = 2.0  # the net behind the hints of combiners and workers


def close(session: Session, round_: Round, config: SessionConfig, now: dt.datetime) -> dt.datetime | None:
    """Every share ended: reduce, or fail. A share whose combiner is silent too long is abandoned. Answers when to
    look again; None: a step was taken."""
    patience = (round_.closing_at or now) + dt.timedelta(seconds=config.closing_timeout_s)
    for share in silent_shares(round_, ShareStatus.CLOSING, now, config.closing_timeout_s):
        if now >= patience:
            lose_share(share, round_, f"combiner {share.combiner.name} did not finish its share")
    if not rounds.shares_done(round_):
        return max(patience, now + dt.timedelta(seconds=LOOK_S))
    accepted = rounds.tally(round_).accepted
    if accepted >= round_.min_updates:
        rounds.start_reducing(round_, now)
    else:
        rounds.fail(
            session,
            round_,
            f"{accepted} of {round_.min_updates} needed updates were left. {who_was_missing(round_)}",
            config,
        )
    return None


def reduce(round_: Round, now: dt.datetime) -> dt.datetime:
    """Workers are asked when it is the round's turn, and again when a claim ran out. Answers when to look again."""
    return turns.see_to(round_, now)
