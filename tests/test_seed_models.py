"""Seed models: what is accepted, how it is kept, and what leads from a model back to its seed."""

from __future__ import annotations

import io
import pickle
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test.utils import CaptureQueriesContext
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from clients_app.models import Client
from federation.models import selectors, services
from federation.models.models import Model
from federation.sessions.models import Session
from foundation import storage
from foundation.errors import StudioError
from projects.models import Project, User
from tests.cast import actor

pytestmark = pytest.mark.django_db

ARRAYS: dict[str, Any] = {"0": np.arange(6, dtype=np.float32).reshape(2, 3), "1": np.array(3, dtype=np.int64)}


def npz_bytes(arrays: dict[str, Any], **how: bool) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays, **how)
    return out.getvalue()


def add(user: User, project: Project, body: bytes, name: str = "seed", file_name: str = "seed.npz") -> Model:
    return services.create_seed_model(
        actor=actor(user), project=project, name=name, upload=SimpleUploadedFile(file_name, body)
    )


@pytest.mark.parametrize("body", [npz_bytes(ARRAYS), save_safetensors(ARRAYS)], ids=["npz", "safetensors"])
def test_a_seed_is_kept_as_canonical_safetensors_with_its_layout(
    body: bytes, member: User, project: Project
) -> None:
    row = add(member, project, body)
    assert row.layout == [
        {"name": "0", "dtype": "F32", "shape": [2, 3]},
        {"name": "1", "dtype": "I64", "shape": []},
    ]
    with storage.local(row.key) as path:
        kept = load_safetensors(path.read_bytes())
        assert storage.sha256_of(path) == row.sha256
        assert path.stat().st_size == row.size_bytes
    np.testing.assert_array_equal(kept["0"], ARRAYS["0"])
    np.testing.assert_array_equal(kept["1"], ARRAYS["1"])


def test_the_same_weights_in_either_format_have_one_checksum(member: User, project: Project) -> None:
    first = add(member, project, npz_bytes(ARRAYS))
    second = add(member, project, save_safetensors(ARRAYS))
    assert first.sha256 == second.sha256


def refusal(user: User, project: Project, body: bytes) -> StudioError:
    with pytest.raises(StudioError) as refused:
        add(user, project, body)
    assert not Model.objects.exists()
    return refused.value


def test_a_pickle_is_refused_and_never_opened(member: User, project: Project, tmp_path: Path) -> None:
    witness = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(witness), "w"))

    assert "pickle" in refusal(member, project, pickle.dumps(Trap())).message
    objects = npz_bytes({"0": np.array([Trap()], dtype=object)})
    assert refusal(member, project, objects).code == "invalid_model"
    assert not witness.exists()


def test_text_and_cut_files_are_refused(member: User, project: Project) -> None:
    assert "no format known" in refusal(member, project, b"hello, model").message
    assert refusal(member, project, npz_bytes(ARRAYS)[:-30]).code == "invalid_model"


def test_weights_that_are_not_finite_are_refused(member: User, project: Project) -> None:
    assert refusal(member, project, npz_bytes({"0": np.array([1.0, np.nan])})).code == "not_finite"


def test_a_header_that_claims_more_than_allowed_is_refused(
    member: User, project: Project, settings: object
) -> None:
    settings.MAX_MODEL_BYTES = 100_000  # type: ignore[attr-defined]
    out = io.BytesIO()
    np.savez_compressed(out, w=np.zeros(1_000_000))
    assert len(out.getvalue()) < 100_000
    assert "allowed" in refusal(member, project, out.getvalue()).message


def test_a_file_over_the_limit_is_refused_before_it_is_read(
    member: User, project: Project, settings: object
) -> None:
    settings.MAX_MODEL_BYTES = 10  # type: ignore[attr-defined]
    assert refusal(member, project, b"x" * 11).status == 413


def test_a_viewer_may_not_upload_and_a_stranger_sees_no_project(
    viewer: User, stranger: User, project: Project
) -> None:
    assert refusal(viewer, project, npz_bytes(ARRAYS)).status == 403
    assert refusal(stranger, project, npz_bytes(ARRAYS)).status == 404


def make_session(project: Project, seed: Model, rounds: int) -> tuple[Session, list[Model]]:
    session = Session.objects.create(
        project=project, name="S", config={}, seed_model=seed, current_model=seed, rounds_wanted=rounds
    )
    models, parent = [], seed
    for number in range(1, rounds + 1):
        parent = services.add_round_model(
            session_id=session.pk,
            project_id=project.pk,
            parent=parent,
            round_number=number,
            name=f"round {number}",
            key=f"k{number}",
            sha256="0" * 64,
            size_bytes=1,
            layout=[],
            metadata={},
        )
        models.append(parent)
    return session, models


def test_lineage_leads_back_to_the_seed_over_sessions_in_few_queries(member: User, project: Project) -> None:
    seed = add(member, project, npz_bytes(ARRAYS))
    _, first = make_session(project, seed, 30)
    _, second = make_session(project, first[-1], 30)
    with CaptureQueriesContext(connection) as queries:
        line = selectors.lineage(Model.objects.get(pk=second[-1].pk))
        assert [row.round_number for row in line] == [*range(30, 0, -1), *range(30, 0, -1), None]
        assert line[-1] == seed
        assert {row.session.name for row in line if row.session} == {"S"}
    assert len(queries) <= 5


def test_curves_hold_the_mean_of_each_round_and_how_many_clients_measured_it(
    member: User, project: Project
) -> None:

    seed = add(member, project, npz_bytes(ARRAYS))
    session, models = make_session(project, seed, 3)
    clients = [Client.objects.create(project=project, name=f"site-{n}") for n in range(2)]
    for model in models:
        for index, client in enumerate(clients[: 1 if model is models[-1] else 2]):
            services.record_validation(
                project_id=project.pk,
                session_id=session.pk,
                round_number=model.round_number,
                model_id=model.pk,
                client_id=client.pk,
                client_name=client.name,
                assignment_id=uuid.uuid4(),
                data={"acc": (model.round_number or 0) + index},
                weight=1 + 2 * index,
            )
    with CaptureQueriesContext(connection) as queries:
        found = selectors.curves(session_id=session.pk)
    assert len(queries) == 2
    points: list[Any] = [(p.round, p.value, p.clients) for p in found["acc"]]
    assert points == [
        (1, pytest.approx(1.75), 2),
        (2, pytest.approx(2.75), 2),
        (3, pytest.approx(3.0), 1),
    ]
    assert selectors.project_curves(project_id=project.pk) == {session.pk: found}
    assert selectors.means_of([models[0].pk]) == {models[0].pk: {"acc": pytest.approx(1.75)}}
