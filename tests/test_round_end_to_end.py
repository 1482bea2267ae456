"""A round with nothing going wrong, through every process."""

from __future__ import annotations

import numpy as np
import pytest

from tests.rig import Rig
from tests.wire_client import ACCEPTED

pytestmark = pytest.mark.django_db(transaction=True)


def test_three_rounds_of_two_clients_end_in_the_weighted_mean(rig: Rig) -> None:
    combiner, _worker, _beat = rig.combiner(), rig.worker(), rig.beat()
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in ("a", "b")]
    session = rig.session(rounds=3, min_clients=2, validate=True)

    for number in (1, 2, 3):
        for wire, step, examples in zip(wires, (1.0, 4.0), (10, 30), strict=True):
            task = wire.next_task()
            assert task.round == number
            arrays = {k: np.asarray(v) + np.float32(step) for k, v in wire.arrays(task).items()}
            assert wire.upload(task, arrays, num_examples=examples).status == ACCEPTED
        for wire in wires:
            wire.validate(wire.next_task("validate"), accuracy=0.5 + number / 10)

    rig.until_session(session, "finished")
    assert session.rounds_done == 3
    final = rig.arrays_of(session.current_model)
    # (10 * 1 + 30 * 4) / 40 = 3.25 a round
    np.testing.assert_allclose(final["w"], np.full((4, 3), 9.75, np.float32), rtol=1e-6)
    trail = list(session.trail.order_by("round_number"))
    assert [m.round_number for m in trail] == [1, 2, 3]
    assert [m.parent_id for m in trail] == [session.seed_model_id, trail[0].pk, trail[1].pk]
    means = session.metrics.filter(source="validation_mean", name="accuracy").order_by("round_number")
    assert [round(m.value, 6) for m in means] == [0.6, 0.7, 0.8]
