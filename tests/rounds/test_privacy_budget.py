"""What a session has spent: epsilon of each round, kept with its model, and the end when the budget would be passed."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from dp_accounting.pld import pld_privacy_accountant

from federation.models.models import Model
from federation.sessions import engine, reduction
from federation.sessions.accounting import Release, epsilon, epsilon_of_one, gaussian_epsilon
from federation.sessions.config import parse_spec
from federation.sessions.models import Round, Session
from federation.sessions.services import continue_session, stop_session
from foundation.errors import StudioError
from tests.rounds.rows import Rows, again, ago, past_deadline, update
from tests.rounds.test_deaths_worker import killed_at_statement

pytestmark = pytest.mark.django_db
# imported before the clock of a lease runs: it takes seconds
assert pld_privacy_accountant
DELTA = 1e-5


def begin(rows: Rows, rounds: int = 1, /, **privacy: Any) -> tuple[Session, list[Any]]:
    lease = rows.lease()
    clients = rows.online(lease, "a", "b")
    session = rows.running(min_clients=2, requested_clients=2, rounds=rounds, privacy=privacy)
    return session, [(lease, client) for client in clients]


def train(rows: Rows, session: Session, sites: list[Any]) -> None:
    for lease, client in sites:
        assert rows.accept(lease, rows.task(session, client), delta_norm=math.sqrt(15))[0].accepted
    assert rows.finish_share(sites[0][0]) == [True]


def play(rows: Rows, session: Session, sites: list[Any]) -> Session:
    train(rows, session, sites)
    rows.reduce(session)
    return again(session)


def spent(session: Session) -> list[float]:
    """Epsilon of each round that was committed; infinite where there is no bound."""
    rows = session.rounds.filter(status="finished").order_by("number")
    return [math.inf if one is None else one for one in rows.values_list("epsilon", flat=True)]


def composed(rounds: int, noise: float = 1.0) -> float:
    return gaussian_epsilon(noise / math.sqrt(rounds), DELTA)


def test_every_round_keeps_what_the_session_has_spent_up_to_it(rows: Rows) -> None:
    session, sites = begin(rows, 4, noise_multiplier=2.0)
    for number in range(1, 5):
        session = play(rows, session, sites)
        assert spent(session)[-1] == pytest.approx(composed(number, 2.0), rel=1e-3)
    assert all(before < after for before, after in pairwise(spent(session)))
    assert session.status == "finished" and session.reason == "All 4 rounds are done."
    assert session.current_model.metadata["epsilon"] == spent(session)[-1]


def test_the_session_ends_before_the_round_that_would_pass_the_budget(rows: Rows) -> None:
    """target met, privacy budget spent: Session finished with the reason."""
    budget = (composed(3) + composed(4)) / 2
    session, sites = begin(rows, 10, max_epsilon=budget)
    for _ in range(3):
        assert session.status == "running"
        session = play(rows, session, sites)
    assert session.status == "finished" and session.rounds.count() == 3
    assert session.reason.startswith("Privacy budget spent: with another round epsilon would come to ")
    assert "come to 9.99" in session.reason and composed(4) == pytest.approx(9.997, abs=0.001)
    assert f"max_epsilon {budget:g}" in session.reason
    assert spent(session)[-1] == pytest.approx(composed(3), rel=1e-3) and spent(session)[-1] <= budget
    assert rows.events(session, "session.finished") == [f"{session.name} finished: {session.reason}"]


def test_the_last_validations_are_waited_for_when_the_budget_is_spent(rows: Rows) -> None:
    lease = rows.lease()
    clients = rows.online(lease, "a", "b")
    session = rows.running(
        min_clients=2,
        requested_clients=2,
        rounds=5,
        validate=True,
        privacy={"max_epsilon": composed(1) * 1.01},
    )
    session = play(rows, session, [(lease, client) for client in clients])
    assert session.status == "running" and session.waiting_for == "the last validations"
    assert session.rounds.count() == 1


def test_a_continued_session_goes_on_with_what_it_has_spent(rows: Rows) -> None:
    session, sites = begin(rows, 2, max_epsilon=(composed(3) + composed(4)) / 2)
    for _ in range(2):
        session = play(rows, session, sites)
    assert session.status == "finished" and session.reason == "All 2 rounds are done."
    continue_session(actor=rows.actor, session=session, rounds=5)
    session = play(rows, again(session), sites)
    assert spent(session) == pytest.approx([composed(n) for n in (1, 2, 3)], rel=1e-3)
    assert session.status == "finished" and "Privacy budget spent" in session.reason
    continue_session(actor=rows.actor, session=session, rounds=1)
    session = again(session)
    assert session.status == "finished" and session.rounds.count() == 3


def test_rounds_that_fail_or_are_stopped_publish_nothing_and_spend_nothing(rows: Rows) -> None:
    session, sites = begin(rows, 2)
    past_deadline(rows, session)
    again(session)
    assert session.rounds.filter(status="failed").count() == 1
    session = play(rows, session, sites)
    assert spent(session) == pytest.approx([composed(1)], rel=1e-3)
    stop_session(actor=rows.actor, session=session)
    assert again(session).status == "stopped"
    assert spent(session) == pytest.approx([composed(1)], rel=1e-3)
    assert set(session.rounds.exclude(status="finished").values_list("epsilon", flat=True)) == {None}


def test_without_noise_there_is_no_bound_and_none_is_shown(rows: Rows) -> None:
    session, sites = begin(rows, 2, noise_multiplier=0)
    for _ in range(2):
        session = play(rows, session, sites)
    assert session.status == "finished" and spent(session) == [math.inf, math.inf]
    assert session.current_model.metadata["epsilon"] is None


def test_an_adaptive_clip_spends_what_its_noise_multiplier_says(rows: Rows) -> None:
    """The count's noise is paid for by more noise on the sum."""
    session, sites = begin(rows, 2, adaptive=True)
    for _ in range(2):
        session = play(rows, session, sites)
    assert spent(session) == pytest.approx([composed(1), composed(2)], rel=1e-3)


def test_poisson_sampling_amplifies_and_no_other_selection_does(rows: Rows) -> None:
    lease = rows.lease()
    sites = [(lease, client) for client in rows.online(lease, "a", "b", "c", "d")]
    found = {}
    for strategy in ("poisson", "random"):
        session = rows.running(
            rounds=3,
            max_failed_rounds=1000,
            selection={"strategy": strategy, "fraction": 0.5},
            privacy={},
        )
        while session.status == "running":
            tasks = list(rows.round(session).assignments.filter(kind="train"))
            for task in tasks:
                rows.accept(lease, task, delta_norm=1.0)
            again(session)
            rows.finish_share(sites[0][0])
            again(session)
            rows.reduce(session)
            again(session)
        assert session.status == "finished", session.reason
        plan = session.rounds.get(number=3).plan["privacy"]
        assert plan["divisor"] == 2.0
        assert plan["sampling_rate"] == (0.5 if strategy == "poisson" else 1.0)
        found[strategy] = spent(session)
    for number in (1, 2, 3):
        assert found["poisson"][number - 1] == epsilon([Release(1.0, 0.5, number)], DELTA)
        assert found["poisson"][number - 1] < found["random"][number - 1]


def test_a_poisson_draw_of_nobody_is_a_round_of_noise(rows: Rows) -> None:
    """Drawing again until somebody comes up would make taking part likelier than the accounting says."""
    lease = rows.lease()
    rows.online(lease, "a")
    session = rows.running(
        selection={"strategy": "poisson", "fraction": 1e-9}, privacy={"expected_clients": 1}
    )
    assert not rows.round(session).assignments.exists()
    again(session)
    rows.reduce(session)
    session = again(session)
    assert session.status == "finished" and session.reason == "The round is done."
    noise = rows.arrays_of(session.current_model)["w"]
    assert (noise != 0).all() and spent(session) == [epsilon_of_one(1.0, 1e-9, DELTA)]


@pytest.mark.django_db(transaction=True)
def test_a_worker_killed_anywhere_in_reduce_leaves_one_model_and_one_epsilon(live_rows: Rows) -> None:
    """Noise that was not committed is never seen, and is not counted."""
    number, died = 0, True
    while died:
        number += 1
        session, sites = begin(live_rows, 2, adaptive=True)
        session = play(live_rows, session, sites)
        train(live_rows, session, sites)
        round_ = live_rows.round(session)
        died = killed_at_statement(number, lambda: reduction.reduce_round(round_.pk))  # noqa: B023
        Round.objects.filter(pk=round_.pk).update(reduce_until=ago(1), reducing_at=ago(3))
        reduction.reduce_round(round_.pk)
        engine.advance(session.pk)
        session.refresh_from_db()
        assert session.status == "finished" and session.trail.count() == 2
        assert spent(session) == pytest.approx([composed(1), composed(2)], rel=1e-3)
        last = session.rounds.get(number=2)
        assert last.plan["privacy"]["released"] == [[1.0, 1.0, 2]]
        assert last.output_model == session.current_model
        assert Model.objects.filter(session=session).count() == 2
    assert number > 12


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("no number", {"privacy": {}}, "privacy.expected_clients", "by a fixed number"),
    (
        "a collecting aggregator",
        {"aggregator": "fedmedian"},
        "privacy",
        "fedavg, fedprox",
    ),
    ("weights that clients set", {"aggregator": "fednova"}, "privacy", "computed from one clipped"),
    ("weights by loss", {"aggregator": "qfedavg"}, "privacy", "computed from one clipped"),
    ("a clip of its own", {"aggregator": "normclip"}, "privacy", "computed from one clipped"),
    ("a buffer", {"requested_clients": None, "asynchronous": True}, "privacy", "several updates to one round"),
    (
        "guided",
        {"selection": {"strategy": "guided"}},
        "privacy",
        "no noise protects",
    ),
    ("deterministic", {"deterministic": True}, "privacy", "exclude each other"),
    (
        "a draw whose probability moves",
        {"selection": {"strategy": "poisson"}},
        "selection.fraction",
        "needs a fraction",
    ),
    (
        "a secret draw with a seed",
        {"requested_clients": None, "selection": {"strategy": "poisson", "fraction": 0.1, "seed": 1}},
        "selection.seed",
        "must be secret",
    ),
    ("no noise to keep to it", {"privacy": {"noise_multiplier": 0, "max_epsilon": 3}}, "privacy.max_epsilon", "noise"),
    ("too small a budget", {"privacy": {"max_epsilon": 4.3}}, "privacy.max_epsilon", "first round alone .* 4.38"),
    ("hardly any noise", {"privacy": {"noise_multiplier": 1e-5}}, "privacy.noise_multiplier", "at least 0.001"),
    ("no clip", {"privacy": {"clip_norm": 1e-12}}, "privacy.clip_norm", "at least 1e-09"),
    ("no chance", {"privacy": {"delta": 1e-15}}, "privacy.delta", "at least 1e-12"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "field", "sentence"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_would_void_the_promise_is_refused_when_a_session_is_made(
    rows: Rows, settings: dict[str, Any], field: str, sentence: str
) -> None:
    asked = {"seed_model": str(rows.model().pk), "requested_clients": 5, "privacy": {}} | settings
    if sentence == "by a fixed number":
        del asked["requested_clients"]
    with pytest.raises(StudioError, match=sentence) as refusal:
        parse_spec({key: value for key, value in asked.items() if value is not None})
    assert refusal.value.data["field"] == field


def test_a_budget_that_sampling_makes_enough_is_taken(rows: Rows) -> None:
    """Without amplification the first round would spend 4.38."""
    asked = {
        "seed_model": str(rows.model().pk),
        "selection": {"strategy": "poisson", "fraction": 0.01},
        "privacy": {"max_epsilon": 1.0},
    }
    assert parse_spec(asked).config.privacy is not None


@pytest.mark.parametrize(
    "named",
    [
        {"requested_clients": 5},
        {"selection": {"fraction": 0.5}},
        {"privacy": {"expected_clients": 5}},
        {"client_ids": ["01890000-0000-7000-8000-000000000001"]},
    ],
)
def test_any_fixed_number_will_do(rows: Rows, named: dict[str, Any]) -> None:
    asked = {"seed_model": str(rows.model().pk), "privacy": {}} | named
    assert parse_spec(asked).config.privacy is not None


def test_an_update_is_never_sent_back_as_it_came(rows: Rows) -> None:
    """The only client's model would be the round's: with privacy no partial is adopted."""
    lease = rows.lease()
    (client,) = rows.online(lease, "a")
    session = rows.running(requested_clients=1, privacy={})
    rows.accept(lease, rows.task(session, client), arrays=update(0.1), delta_norm=0.3873)
    rows.finish_share(lease)
    assert not rows.share(session, lease).is_model
    rows.reduce(session)
    session = again(session)
    assert (abs(rows.arrays_of(session.current_model)["w"] - 0.1) > 1e-6).all()
