"""What a client owes after rounding, on its disk: kept, replaced or dropped by what became of the update."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studio_sdk import studio_v1_pb2 as pb
from studio_sdk import tensors
from studio_sdk.client.compression import Compression
from studio_sdk.client.links import Links
from studio_sdk.client.store import KEPT_DEBTS, KEPT_UPDATES_S, Store, Update
from studio_sdk.client.tasks import HeldTask
from studio_sdk.client.transfer import Transfers

MODEL: dict[str, Any] = {"w": np.linspace(-1, 1, 300, dtype=np.float32), "n": np.array(1, np.int64)}
ACCEPTED = pb.Receipt(status=pb.Receipt.ACCEPTED)
REFUSED = pb.Receipt(status=pb.Receipt.REFUSED, reason="round 1 is closed")
REJECTED = pb.Receipt(status=pb.Receipt.REJECTED, reason="too large")


class Site:
    """A client's disk, and its trainings one after the other; no combiner is connected."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.numbers = itertools.count(1)
        self.start()

    def start(self) -> None:
        self.store = Store("c", self.folder)
        self.compression = Compression(
            self.store, Transfers(Links(), self.store, self.said.append), self.said.append
        )

    def restart(self) -> None:
        self.store.close()
        self.start()

    def train(
        self,
        seed: int = 0,
        session: str = "s",
        form: str = "int8",
        model: dict[str, Any] = MODEL,
        scale: float = 1,
    ) -> tuple[Update | None, HeldTask]:
        """An update of the model, trained and compressed."""
        task = pb.Task(
            assignment_id=f"a{next(self.numbers)}", kind="train", session_id=session, round=1,
            model_sha256=f"{len(model):064x}", compression=form,
        )  # fmt: skip
        held = HeldTask(task, None)
        tensors.write_file(self.store.model(task.model_sha256), model)
        rng = np.random.default_rng(seed)
        weights = {name: array for name, array in model.items() if array.dtype.kind == "f"}
        made = model | {
            name: (array + scale * rng.standard_normal(array.shape)).astype(array.dtype)
            for name, array in weights.items()
        }
        sha256 = tensors.write_file(self.store.update_file(task.assignment_id), made)
        plain = self.store.keep_update(task.assignment_id, sha256, {"num_examples": 1})
        return self.compression.update(held, plain), held

    def answered(self, update: Update | None, receipt: pb.Receipt) -> None:
        assert update is not None
        self.compression.settle(update, receipt)
        self.store.drop_update(update.assignment_id)

    def debts(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.store.debts.iterdir())]

    def debt_of(self, update: Update | None) -> bytes:
        assert update is not None
        return self.store.debt_file(update.debt).read_bytes()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "client")
    yield made
    made.store.close()


def test_what_is_owed_is_settled_when_the_update_is_accepted_and_goes_into_the_next(site: Site) -> None:
    first, held = site.train(1)
    assert not site.debts(), "nothing is owed for what nobody accepted"
    promised = site.store.new_debt_file(held.task.assignment_id).read_bytes()
    site.answered(first, ACCEPTED)
    assert site.debts() == [promised] and any(promised)
    second, _ = site.train(1)
    assert second is not None and first is not None
    assert second.sha256 != first.sha256, "the same training, but for what was owed"
    assert not list(site.store.updates.glob("*a1*"))


def test_an_update_that_came_too_late_leaves_what_was_owed_before(site: Site) -> None:
    first, _ = site.train(1)
    site.answered(first, ACCEPTED)
    before = site.debts()
    late, _ = site.train(2)
    site.answered(late, REFUSED)
    assert site.debts() == before


def test_a_cancelled_round_leaves_what_was_owed_before(site: Site) -> None:
    first, _ = site.train(1)
    site.answered(first, ACCEPTED)
    before = site.debts()
    _cancelled, held = site.train(2)
    site.store.drop_update(held.task.assignment_id)
    assert site.debts() == before
    assert not list(site.store.updates.iterdir()), "nothing of it stays"


def test_a_rejected_update_ends_the_debt(site: Site) -> None:
    first, _ = site.train(1)
    site.answered(first, ACCEPTED)
    wrong, _ = site.train(2)
    site.answered(wrong, REJECTED)
    assert not site.debts()
    again, _ = site.train(1)
    assert again is not None and first is not None and again.sha256 == first.sha256


def test_an_update_that_went_as_it_is_leaves_what_was_owed_before(site: Site) -> None:
    """To an older combiner: it has seen the whole change, and nothing of the debt."""
    first, _ = site.train(1)
    site.answered(first, ACCEPTED)
    before = site.debts()
    _second, held = site.train(2)
    plain = site.store.kept_update(held.task.assignment_id)
    site.answered(plain, ACCEPTED)
    assert site.debts() == before


def test_a_restarted_client_sends_the_same_bytes_and_owes_the_same(site: Site) -> None:
    first, _ = site.train(1)
    site.answered(first, ACCEPTED)
    before = site.debts()
    second, held = site.train(2)
    assert second is not None
    body = site.store.file_of(second).read_bytes()
    site.restart()
    plain = site.store.kept_update(held.task.assignment_id)
    assert plain is not None
    again = site.compression.update(held, plain)
    assert again == second, "the same upload id too, so that it goes on where it broke off"
    assert again is not None and site.store.file_of(again).read_bytes() == body
    assert site.debts() == before
    site.answered(again, ACCEPTED)
    assert site.debts() != before


def test_an_answer_that_comes_twice_settles_once(site: Site) -> None:
    update, _ = site.train(1)
    assert update is not None
    site.compression.settle(update, ACCEPTED)
    settled = site.debts()
    site.compression.settle(update, ACCEPTED)
    assert site.debts() == settled


@pytest.mark.parametrize(
    "other",
    [
        {"session": "another"},
        {"form": "float16"},
        {
            "model": {
                "w": np.linspace(-1, 1, 300, dtype=np.float32).reshape(3, 100),
                "n": np.array(1, np.int64),
            }
        },
        {"model": {"v": MODEL["w"], "n": MODEL["n"]}},
        {"model": {"w": MODEL["w"].astype(np.float64), "n": MODEL["n"]}},
    ],
    ids=["session", "form", "shape", "name", "dtype"],
)
def test_another_session_form_or_layout_owes_nothing(
    site: Site, tmp_path: Path, other: dict[str, Any]
) -> None:
    site.answered(site.train(1)[0], ACCEPTED)
    elsewhere, _ = site.train(2, **other)
    other_site = Site(tmp_path / "fresh")
    fresh, _ = other_site.train(2, **other)
    other_site.store.close()
    assert elsewhere is not None and fresh is not None
    assert elsewhere.sha256 == fresh.sha256


def test_the_disk_holds_the_debts_of_the_last_few_sessions(site: Site) -> None:
    for number in range(KEPT_DEBTS + 3):
        update, _ = site.train(1, session=str(number))
        site.answered(update, ACCEPTED)
        os.utime(site.store.debt_file(update.debt), (number + 1e9, number + 1e9))  # type: ignore[union-attr]
    assert len(site.debts()) == KEPT_DEBTS
    assert site.debt_of(update), "the newest among them"
    assert all(len(debt) == 300 * 4 for debt in site.debts())


def test_a_debt_nobody_asked_after_for_a_week_goes_at_the_next_start(site: Site) -> None:
    update, _ = site.train(1)
    site.answered(update, ACCEPTED)
    for path in site.store.debts.iterdir():
        old = path.stat().st_mtime - KEPT_UPDATES_S - 60
        os.utime(path, (old, old))
    site.restart()
    assert not site.debts()


@pytest.mark.parametrize("form", ["", "none", "int4"])
def test_a_wish_that_is_none_or_unknown_sends_the_update_as_it_is(site: Site, form: str) -> None:
    update, _ = site.train(1, form=form)
    assert update is None and not site.said


def test_what_cannot_be_compressed_goes_as_it_is_with_a_word_why(site: Site) -> None:
    update, _ = site.train(1, model={"w": np.full(300, np.nan, np.float32)})
    assert update is None
    assert "goes as it is, not as int8: a number in it is not finite" in site.said[-1]
    assert not list(site.store.updates.glob("*.compressed*")) and not site.debts()


@pytest.mark.parametrize("damage", [np.inf, -np.inf, np.nan, 3e38])
def test_a_debt_that_no_update_could_be_compressed_with_is_forgotten(site: Site, damage: float) -> None:
    """Else every update of the session would go as it is, for ever."""
    model = {"w": np.full(300, 2e38, np.float32)}
    first, _ = site.train(1, model=model)
    site.answered(first, ACCEPTED)
    (path,) = site.store.debts.iterdir()
    path.write_bytes(np.full(300, damage, "<f4").tobytes())
    second, _ = site.train(2, model=model)
    assert second is not None and not site.debts()
    assert "round 1: what earlier roundings owed is forgotten: with it, a number in it is" in site.said[-1]


def test_an_update_that_is_wrong_by_itself_does_not_end_the_debt(site: Site) -> None:
    site.answered(site.train(1)[0], ACCEPTED)
    before = site.debts()
    wrong, _ = site.train(1, scale=np.nan)
    assert wrong is None and site.debts() == before


def test_a_full_disk_sends_the_update_as_it_is(site: Site) -> None:
    site.store.new_debt_file("a1").symlink_to("/dev/full")
    update, _ = site.train(1)
    assert update is None and "No space left on device" in site.said[-1]
    assert [path.suffix for path in site.store.updates.iterdir() if "compressed" in path.name] == []
    again, _ = site.train(1)
    assert again is not None


def test_a_second_process_of_the_same_client_has_debts_of_its_own(site: Site) -> None:
    update, _ = site.train(1)
    site.answered(update, ACCEPTED)
    second = Store("c", site.folder)
    assert not list(second.debts.iterdir())
    second.close()
    assert site.debts()
