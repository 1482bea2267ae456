"""Guided selection after Oort (Lai et al., OSDI 2021, arXiv 2010.06081, sections 4.2 and 4.3, algorithm 1), re-made
from the paper. Pure: what is known of the clients goes in, who is asked and why comes out.

A client's worth is how much its samples still hurt, discounted by how slow it is:

    (min(U, cap) / cap + sqrt(0.1 ln R / L)) * (T / t) ** alpha      the last factor only where t > T

U is its statistical utility, cap a high percentile of all of them, R this round, L the last round it took part in, t
its duration and T the duration that is aimed at: a percentile of those known, which the pacer moves. Unlike in the
paper's public code, U is divided by the cap and not stretched from the least to the most: clients that are about
equally useful stay about equal.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from federation.sessions.config import SelectionSettings

CLIP_PERCENTILE = 95.0  # of utilities: one client's claim does not outweigh everybody
STALENESS = 0.1
FLAT = 1.1  # utility that has grown by less than this has gone flat
STEEP = 5.0  # and with this the fast clients have much to give again
MOST_UTILITY = 1e100  # whatever is claimed: sums of utilities stay numbers
SPEEDS = (0.1, 10.0)  # how far what is said of a never-tried client's speed counts for or against it


@dataclass(frozen=True)
class Report:
    """What one training said of a client: see `utilities`. Empty losses: it reported none."""

    num_examples: float
    loss: float | None = None
    loss_squared_mean: float | None = None


@dataclass(frozen=True)
class Record:
    """What is known of a client that was tried. `utility` None: no loss was ever reported around it."""

    utility: float | None
    duration_s: float | None
    last_round: int
    times: int


@dataclass(frozen=True)
class Candidate:
    """`record` None: never tried; then `speed` (higher is faster, 1 is usual) is all that is known."""

    record: Record | None
    speed: float = 1.0


@dataclass(frozen=True)
class Pick:
    """A candidate by its place in the sequence, and why."""

    index: int
    why: str


@dataclass(frozen=True)
class Guidance:
    """The picks of a round, in the candidates' order, and what they went by."""

    picks: tuple[Pick, ...]
    epsilon: float
    exploring: int
    known: int
    aim_s: float | None


def utilities(reports: Sequence[Report]) -> list[float | None]:
    """Statistical utility of each training of one round: num_examples * sqrt(mean of squared losses per sample).

    The mean of squares is never less than the square of the mean, so the two are not mixed: where not all that report a
    loss report `loss_squared_mean`, `loss` squared stands for it wherever there is one. None: no loss, or no number.
    """
    squares = all(one.loss_squared_mean is not None for one in reports if one.loss is not None)
    return [_utility(one, squares) for one in reports]


def _utility(one: Report, squares: bool) -> float | None:
    if one.loss_squared_mean is not None and (squares or one.loss is None):
        hurt = math.sqrt(one.loss_squared_mean) if one.loss_squared_mean >= 0 else math.nan
    elif one.loss is not None:
        hurt = abs(one.loss)
    else:
        return None
    found = one.num_examples * hurt
    return min(found, MOST_UTILITY) if math.isfinite(found) else None


@dataclass(frozen=True)
class Measure:
    """What clients are measured by: taken from all that were tried, free or not."""

    cap: float  # of utilities
    usual: float  # share of the cap, where a utility is not known
    aim_s: float | None

    @classmethod
    def of(cls, records: Sequence[Record], aim_percentile: float) -> Measure:
        known = sorted(one.utility for one in records if one.utility is not None)
        durations = [one.duration_s for one in records if one.duration_s is not None]
        # rounded down, an outlier among few sets nothing; of two, though, nobody can say which is one
        cap = max(percentile(known, CLIP_PERCENTILE), known[len(known) // 2]) if known else 0.0
        shares = [min(value, cap) / cap if cap else 1.0 for value in known]
        usual = sum(shares) / len(shares) if shares else 1.0
        return cls(cap, usual, percentile(durations, aim_percentile) if durations else None)

    def score(self, one: Record, round_number: int, speed_penalty: float) -> float:
        """Its worth in round `round_number`, at least 0."""
        share = self.usual
        if one.utility is not None and self.cap:
            share = min(one.utility, self.cap) / self.cap
        stale = math.sqrt(STALENESS * math.log(max(round_number, 1)) / max(one.last_round, 1))
        slow = 1.0
        if self.aim_s is not None and one.duration_s is not None and one.duration_s > self.aim_s:
            slow = (self.aim_s / one.duration_s) ** speed_penalty
        return (share + stale) * slow


def percentile(values: Sequence[float], percent: float) -> float:
    """The value at that place, rounded down to one that occurs: with few values an outlier sets nothing. 0.0: none."""
    ordered = sorted(values)
    return ordered[int((len(ordered) - 1) * percent / 100)] if ordered else 0.0


def epsilon(settings: SelectionSettings, round_number: int) -> float:
    """Share of the places for clients never tried: decays with every round down to its floor."""
    decayed = settings.exploration * settings.exploration_decay ** max(0, round_number - 1)
    return max(decayed, min(settings.exploration_floor, settings.exploration))


def guide(
    candidates: Sequence[Candidate],
    places: int,
    settings: SelectionSettings,
    *,
    measure: Measure,
    round_number: int,
    rng: random.Random,
) -> Guidance:
    """Choose `places` of the candidates (all, when there are no more). The same `rng` gives the same choice."""
    tried = [(i, one.record) for i, one in enumerate(candidates) if one.record is not None]
    fresh = [i for i, one in enumerate(candidates) if one.record is None]
    share = epsilon(settings, round_number)
    places = min(places, len(candidates))
    exploit = min(places - min(_rounded(share * places, rng), len(fresh)), len(tried))
    picks = []
    worth = [measure.score(record, round_number, settings.speed_penalty) for _, record in tried]
    for i in exploited(worth, exploit, settings.cut_off, rng):
        index, record = tried[i]
        times = f"{record.times} time{'s' * (record.times != 1)}"
        picks.append(Pick(index, f"guided: score {worth[i]:.2f}, tried {times}"))
    hopes = [min(max(candidates[i].speed, SPEEDS[0]), SPEEDS[1]) for i in fresh]
    for i in by_weight(hopes, places - exploit, rng):
        picks.append(Pick(fresh[i], "guided: exploring, never tried"))
    picks.sort(key=lambda pick: pick.index)
    return Guidance(tuple(picks), share, places - exploit, len(tried), measure.aim_s)


def exploited(worth: Sequence[float], count: int, cut_off: float, rng: random.Random) -> list[int]:
    """`count` places in `worth`: drawn in proportion to it from those above `cut_off` times the count-th best."""
    if count < 1 or not worth:
        return []
    best = sorted(range(len(worth)), key=lambda i: (-worth[i], i))
    bar = cut_off * worth[best[min(count, len(best)) - 1]]
    above = [i for i in best if worth[i] >= bar]
    return [above[i] for i in by_weight([worth[i] for i in above], count, rng)]


def by_weight(weights: Sequence[float], count: int, rng: random.Random) -> list[int]:
    """`count` places without putting back, in proportion to the weights (Efraimidis and Spirakis, 2006). A weight of 0
    comes last, by lot."""
    marks = []
    for i, weight in enumerate(weights):
        luck = math.log(1.0 - rng.random())  # of (0, 1]: never log(0)
        marks.append((weight <= 0, -luck / weight if weight > 0 else -luck, i))
    return [i for _, _, i in sorted(marks)[: max(count, 0)]]


def _rounded(number: float, rng: random.Random) -> int:
    """Up or down by lot, so that on average it is `number`: a single place explores now and then, too."""
    whole = int(number)
    return whole + (rng.random() < number - whole)


def relative_speeds(values: Sequence[float | None]) -> list[float]:
    """Speeds of whatever unit, as multiples of the usual one; unknown ones are usual."""
    known = [value for value in values if value is not None and value > 0]
    usual = percentile(known, 50)
    return [value / usual if usual and value is not None and value > 0 else 1.0 for value in values]


@dataclass(frozen=True)
class Pacer:
    """Moves the duration that is aimed at: when a window of rounds has brought hardly more utility than the one before,
    slower clients are let in; when it brought many times more, they are not needed."""

    percentile: float
    earlier: float | None = None  # utility of the last whole window
    current: float = 0.0
    rounds: int = 0

    def after(self, utility: float, settings: SelectionSettings) -> Pacer:
        """The pacer once another round has brought so much utility."""
        now = replace(self, current=self.current + utility, rounds=self.rounds + 1)
        if now.rounds < settings.pacer_step:
            return now
        aim = self.percentile
        if self.earlier is not None and now.current <= FLAT * self.earlier:
            aim = min(100.0, aim + settings.pacer_delta)
        elif self.earlier is not None and now.current >= STEEP * self.earlier:
            aim = max(settings.duration_percentile, aim - settings.pacer_delta)
        return Pacer(aim, earlier=now.current)
