"""Guided selection as arithmetic: what makes one client worth more than another, and who is drawn for it."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.sessions.config import SelectionSettings
from federation.sessions.selection.guided import (
    Candidate,
    Guidance,
    Measure,
    Pacer,
    Record,
    Report,
    by_weight,
    epsilon,
    exploited,
    guide,
    percentile,
    relative_speeds,
    utilities,
)

NEVER = Candidate(None)
EXPLOIT = SelectionSettings(strategy="guided", exploration=0.0)


def tried(
    utility: float | None = 1.0, seconds: float | None = 1.0, last: int = 1, times: int = 1
) -> Candidate:
    return Candidate(Record(utility, seconds, last, times))


def chosen(
    candidates: Sequence[Candidate],
    places: int,
    settings: SelectionSettings = EXPLOIT,
    *,
    seed: int = 0,
    round_number: int = 2,
    aim_percentile: float = 30.0,
) -> Guidance:
    records = [one.record for one in candidates if one.record]
    return guide(
        candidates,
        places,
        settings,
        measure=Measure.of(records, aim_percentile),
        round_number=round_number,
        rng=random.Random(seed),
    )


def how_often(
    candidates: Sequence[Candidate], places: int, settings: SelectionSettings = EXPLOIT
) -> Counter[int]:
    """How often each is chosen in 300 draws."""
    return Counter(
        pick.index for seed in range(300) for pick in chosen(candidates, places, settings, seed=seed).picks
    )


# --- statistical utility ------------------------------------------------------------------------------------------
def test_utility_is_examples_times_the_root_of_the_mean_squared_loss() -> None:
    assert utilities([Report(10, loss=1.5, loss_squared_mean=4.0)]) == [20.0]
    assert utilities([Report(10, loss=1.5)]) == [15.0]
    assert utilities([Report(10, loss=-1.5)]) == [15.0]
    assert utilities([Report(10)]) == [None]


def test_two_ways_of_reporting_a_loss_are_not_mixed_in_one_round() -> None:
    """The mean of squares is never less than the square of the mean: who reports squares would win by that alone."""
    squares, plain_loss = Report(10, loss=1.0, loss_squared_mean=4.0), Report(10, loss=1.0)
    assert utilities([squares, plain_loss]) == [10.0, 10.0]
    assert utilities([squares, Report(10, loss_squared_mean=9.0)]) == [20.0, 30.0]


def test_an_enormous_claim_stays_a_number_in_every_sum() -> None:
    assert math.isfinite(sum(one or 0 for one in utilities([Report(1e12, loss=1e290)] * 100_000)))


@pytest.mark.parametrize(
    "report",
    [Report(1e12, loss=1e308), Report(1, loss_squared_mean=-1.0), Report(1e12, loss_squared_mean=-4)],
)
def test_a_loss_that_makes_no_number_is_no_loss(report: Report) -> None:
    assert utilities([report]) == [None]


# --- scores -------------------------------------------------------------------------------------------------------
def score(
    *records: Record, round_number: int = 1, aim_percentile: float = 100.0, penalty: float = 2.0
) -> list[float]:
    measure = Measure.of(records, aim_percentile)
    return [measure.score(one, round_number, penalty) for one in records]


def test_a_score_is_a_share_of_the_highest_utility_and_a_bonus_for_staleness() -> None:
    found = score(Record(5, 1, 4, 1), Record(10, 1, 16, 1), Record(10, 1, 16, 1), round_number=16)
    bonus = math.sqrt(0.1 * math.log(16) / 4)
    assert found == pytest.approx([0.5 + bonus, 1 + bonus / 2, 1 + bonus / 2])


def test_slower_than_the_aim_is_marked_down_by_the_penalty_and_faster_is_no_merit() -> None:
    fast, aimed, slow = (Record(1, seconds, 1, 1) for seconds in (1.0, 4.0, 8.0))
    assert score(fast, aimed, slow, aim_percentile=50) == pytest.approx([1, 1, 1 / 4])
    assert score(fast, aimed, slow, aim_percentile=50, penalty=1) == pytest.approx([1, 1, 1 / 2])
    assert score(fast, aimed, slow, aim_percentile=50, penalty=0) == pytest.approx([1, 1, 1])


def test_a_claim_far_above_all_others_is_worth_no_more_than_the_highest_of_them() -> None:
    found = score(*(Record(float(n), 1, 1, 1) for n in range(1, 11)), Record(1e300, 1, 1, 1))
    assert found[-1] == found[-2] == 1.0 and found[0] == pytest.approx(0.1)


def test_one_of_two_clients_may_be_worth_more() -> None:
    assert score(Record(1, 1, 1, 1), Record(4, 1, 1, 1)) == [0.25, 1.0]


def test_an_unknown_utility_is_the_mean_of_the_known_ones() -> None:
    assert score(Record(2, 1, 1, 1), Record(4, 1, 1, 1), Record(4, 1, 1, 1), Record(None, 1, 1, 1))[
        -1
    ] == pytest.approx((0.5 + 1 + 1) / 3)
    assert score(Record(None, 1, 1, 1), Record(None, 1, 1, 1)) == [1, 1]


def test_clients_that_are_all_without_use_score_alike() -> None:
    assert score(Record(0, 1, 1, 1), Record(0, 1, 1, 1)) == [1, 1]


# --- who is chosen ------------------------------------------------------------------------------------------------
def test_clients_whose_samples_hurt_more_are_preferred() -> None:
    often = how_often([tried(u) for u in (1, 1, 1, 1, 9, 9, 10)], 2)
    assert set(often) == {4, 5, 6}


def test_slow_clients_are_avoided() -> None:
    often = how_often([tried(10, seconds=s) for s in (50, 50, 1, 1, 1)], 2)
    assert set(often) == {2, 3, 4}


def test_those_near_the_last_place_are_drawn_in_proportion_to_their_scores() -> None:
    settings = SelectionSettings(strategy="guided", exploration=0.0, cut_off=0.1)
    often = how_often([tried(u) for u in (2, 8, 10, 10)], 1, settings)
    assert 0 < often[0] < often[1] < 300 and often[0] < 60


def test_a_client_that_was_not_seen_for_long_comes_up_again() -> None:
    """It was worth little when it was last asked; by now nobody knows."""
    settings = SelectionSettings(strategy="guided", exploration=0.0, cut_off=0.1)
    early = [tried(1, last=90), *(tried(8, last=90) for _ in range(9))]
    late = [tried(1, last=1), *(tried(8, last=99) for _ in range(9))]

    def share(candidates: list[Candidate]) -> float:
        records = [c.record for c in candidates if c.record]
        found = score(*records, round_number=100)
        return found[0] / sum(found)

    assert share(late) > 2 * share(early)
    assert (
        sum(chosen(late, 1, settings, seed=s, round_number=100).picks[0].index == 0 for s in range(300)) > 10
    )


def test_the_first_round_is_all_exploration() -> None:
    found = chosen([NEVER] * 10, 4, SelectionSettings(strategy="guided"), round_number=1)
    assert (len(found.picks), found.exploring, found.known, found.aim_s) == (4, 4, 0, None)
    assert {pick.why for pick in found.picks} == {"guided: exploring, never tried"}


def test_exploration_has_its_share_of_the_places_on_average_even_of_a_single_one() -> None:
    settings = SelectionSettings(strategy="guided", exploration=0.3, exploration_decay=1.0)
    crowd = [NEVER] * 20 + [tried()] * 20
    for places in (1, 4):
        explored = sum(chosen(crowd, places, settings, seed=s).exploring for s in range(300))
        assert explored == pytest.approx(300 * places * 0.3, rel=0.25)


def test_exploration_favours_fast_clients_and_leaves_no_one_out() -> None:
    crowd = [Candidate(None, speed) for speed in (0.1, 1, 1, 10)]
    often = how_often(crowd, 1, SelectionSettings(strategy="guided", exploration=1.0))
    assert often[3] > often[1] > often[0] > 0


def test_no_word_of_a_clients_own_makes_it_the_only_one_that_is_explored() -> None:
    often = how_often([Candidate(None, 1e9), NEVER, NEVER], 1, SelectionSettings(exploration=1.0))
    assert often[0] < 290 and often[1] and often[2]


def test_exploration_decays_to_its_floor() -> None:
    settings = SelectionSettings(exploration=0.9, exploration_decay=0.5, exploration_floor=0.2)
    assert [epsilon(settings, n) for n in (1, 2, 3, 4, 50)] == pytest.approx([0.9, 0.45, 0.225, 0.2, 0.2])
    assert epsilon(SelectionSettings(exploration=0.0), 1) == 0.0  # whoever asks for none gets none


def test_places_that_exploration_cannot_fill_go_to_known_clients_and_the_other_way_round() -> None:
    explore = SelectionSettings(strategy="guided", exploration=1.0, exploration_decay=1.0)
    assert chosen([NEVER, tried(), tried(), tried()], 3, explore).exploring == 1
    assert chosen([NEVER, NEVER, NEVER, tried()], 3).exploring == 2


def test_the_reason_says_the_score_and_how_often_it_was_tried() -> None:
    (pick,) = chosen([tried(5, times=3)], 1).picks
    assert pick.why == "guided: score 1.26, tried 3 times"
    (pick,) = chosen([tried(5, times=1)], 1).picks
    assert pick.why.endswith("tried 1 time")


def test_the_duration_aimed_at_is_a_percentile_of_those_known() -> None:
    crowd = [tried(seconds=s) for s in (10, 20, 30, 40, 50)] + [NEVER]
    assert chosen(crowd, 1, aim_percentile=0).aim_s == 10
    assert chosen(crowd, 1, aim_percentile=50).aim_s == 30
    assert chosen(crowd, 1, aim_percentile=100).aim_s == 50


candidates = st.lists(
    st.one_of(
        st.builds(Candidate, st.none(), st.floats(0, 1e6)),
        st.builds(
            Candidate,
            st.builds(
                Record,
                st.none() | st.floats(0, 1e300),
                st.none() | st.floats(0, 1e9),
                st.integers(0, 10**6),
                st.integers(1, 1000),
            ),
        ),
    ),
    max_size=30,
)
settings_of_all_kinds = st.builds(
    SelectionSettings,
    exploration=st.floats(0, 1),
    exploration_floor=st.floats(0, 1),
    cut_off=st.floats(0.01, 1),
    speed_penalty=st.floats(0, 10),
)


@given(candidates, st.integers(0, 40), settings_of_all_kinds, st.integers(1, 10**5), st.integers(0, 10**6))
def test_whatever_is_known_each_place_is_filled_once_and_the_same_way_again(
    crowd: list[Candidate], places: int, settings: SelectionSettings, round_number: int, seed: int
) -> None:
    found = chosen(crowd, places, settings, seed=seed, round_number=round_number)
    indexes = [pick.index for pick in found.picks]
    assert indexes == sorted(set(indexes)) and len(indexes) == min(places, len(crowd))
    assert found == chosen(crowd, places, settings, seed=seed, round_number=round_number)


# --- the pieces ---------------------------------------------------------------------------------------------------
def test_drawing_all_scored_clients_is_no_mistake() -> None:
    assert sorted(exploited([3.0, 1.0, 2.0], 3, 0.95, random.Random(1))) == [0, 1, 2]
    assert sorted(exploited([3.0, 1.0, 2.0], 9, 0.95, random.Random(1))) == [0, 1, 2]
    assert exploited([], 2, 0.95, random.Random(1)) == []


def test_weights_of_nothing_come_last() -> None:
    assert all(0 in by_weight([1e-9, 0, 0], 1, random.Random(seed)) for seed in range(50))
    assert len(by_weight([0, 0, 0], 2, random.Random(1))) == 2


def test_a_percentile_is_a_value_that_occurs() -> None:
    assert [percentile([4, 1, 3, 2], p) for p in (0, 50, 99, 100)] == [1, 2, 3, 4]
    assert percentile([], 50) == 0.0


def test_speeds_are_multiples_of_the_usual_one() -> None:
    assert relative_speeds([10, None, 20, 40, -1]) == [0.5, 1.0, 1.0, 2.0, 1.0]
    assert relative_speeds([None, None]) == [1.0, 1.0]


# --- the pacer ----------------------------------------------------------------------------------------------------
def paced(*utilities: float, **settings: float) -> Pacer:
    asked = SelectionSettings(**{"pacer_step": 2, "pacer_delta": 5.0, **settings})  # type: ignore[arg-type]
    pacer = Pacer(asked.duration_percentile)
    for utility in utilities:
        pacer = pacer.after(utility, asked)
    return pacer


def test_the_pacer_lets_slower_clients_in_once_utility_has_gone_flat() -> None:
    assert paced(10, 10).percentile == 30
    assert paced(10, 10, 10).percentile == 30  # half a window says nothing
    assert paced(10, 10, 10, 10).percentile == 35
    assert paced(10, 10, 10, 10, 9, 9).percentile == 40
    assert paced(10, 10, 20, 20).percentile == 30


def test_the_pacer_goes_back_when_utility_grows_many_times_but_not_below_where_it_began() -> None:
    assert paced(1, 1, 1, 1, 9, 9).percentile == 30
    assert paced(1, 1, 9, 9).percentile == 30


def test_the_pacer_stops_at_all_clients() -> None:
    assert paced(*[1.0] * 100).percentile == 100
