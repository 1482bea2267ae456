"""The model trail over REST: upload, download in both formats, lineage, validations and metrics."""

from __future__ import annotations

import hashlib
import io
import uuid
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from clients_app.models import Client
from federation.models import services
from federation.models.models import Metric, Model
from projects.models import Project, User
from tests.archives import content_of
from tests.cast import ApiFor, ClientToken
from tests.test_seed_models import ARRAYS, make_session, npz_bytes

pytestmark = pytest.mark.django_db
BASE = "/api/v1/projects/digits-1"
MODELS = f"{BASE}/models/"


def post(http: APIClient, body: bytes, file_name: str = "seed.npz", name: str = "seed") -> Any:
    fields = {"name": name, "file": SimpleUploadedFile(file_name, body)}
    return http.post(MODELS, fields, format="multipart")


def measure(model: Model, session_id: uuid.UUID | None, client: Client, weight: float, **data: float) -> None:
    services.record_validation(
        project_id=model.project_id,
        session_id=session_id,
        round_number=model.round_number,
        model_id=model.pk,
        client_id=client.pk,
        client_name=client.name,
        assignment_id=uuid.uuid4(),
        data=data,
        weight=weight,
    )


def test_a_seed_comes_back_in_either_format(
    api: ApiFor, member: User, viewer: User, project: Project
) -> None:
    made = post(api(member), npz_bytes(ARRAYS))
    assert made.status_code == 201
    told = made.json()
    assert (told["kind"], told["round"], told["tensors"]) == ("seed", None, 2)
    assert told["layout"][0] == {"name": "0", "dtype": "F32", "shape": [2, 3]}
    address = f"{MODELS}{told['id']}/download/"
    plain = api(viewer).get(address)
    body = content_of(plain)
    assert hashlib.sha256(body).hexdigest() == told["sha256"]
    assert plain["ETag"] == f'"{told["sha256"]}"'
    assert plain["Content-Disposition"] == 'attachment; filename="seed.safetensors"'
    np.testing.assert_array_equal(load_safetensors(body)["0"], ARRAYS["0"])
    npz = api(viewer).get(address, {"format": "npz"})
    assert npz["Content-Disposition"] == 'attachment; filename="seed.npz"'
    raw = content_of(npz)
    assert npz["Content-Length"] == str(len(raw))
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        assert list(arrays) == ["0", "1"]
        np.testing.assert_array_equal(arrays["0"], ARRAYS["0"])
    assert content_of(api(viewer).get(address, {"format": "npz"}, HTTP_RANGE="bytes=5-9")) == raw[5:10]
    same = api(viewer).get(address, {"format": "npz"}, HTTP_IF_NONE_MATCH=npz["ETag"])
    assert same.status_code == 304
    assert api(viewer).get(address, {"format": "pickle"}).status_code == 400


def test_a_bfloat16_model_downloads_as_npz_of_float32(api: ApiFor, member: User, project: Project) -> None:
    weights = {"w": np.array([1.5, -2.0], dtype=ml_dtypes.bfloat16)}
    told = post(api(member), save_safetensors(weights), "seed.safetensors").json()
    raw = content_of(api(member).get(f"{MODELS}{told['id']}/download/", {"format": "npz"}))
    with np.load(io.BytesIO(raw)) as arrays:
        assert arrays["w"].dtype == np.float32
        np.testing.assert_array_equal(arrays["w"], [1.5, -2.0])


def test_refusals_are_sentences(api: ApiFor, member: User, project: Project) -> None:
    refused = post(api(member), b"\x80\x04K\x01.")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_model")
    assert "pickle" in refused.json()["detail"]
    assert not Model.objects.exists()


def test_the_trail_lists_means_with_the_same_queries_for_few_and_for_many(
    api: ApiFor, member: User, viewer: User, project: Project
) -> None:
    post(api(member), npz_bytes(ARRAYS))
    seed = Model.objects.get()
    client = Client.objects.create(project=project, name="site-a")
    http = api(viewer)

    def cost(rounds: int) -> int:
        session, models = make_session(project, seed, rounds)
        for model in models:
            measure(model, session.pk, client, 1, acc=0.5)
        with CaptureQueriesContext(connection) as queries:
            rows = http.get(MODELS).json()["results"]
        assert rows[0]["metrics"] == {"acc": 0.5}
        assert (rows[0]["round"], rows[0]["session_name"]) == (rounds, "S")
        return len(queries)

    assert cost(2) == cost(20)


def test_lineage_validations_and_metrics_of_a_round(
    api: ApiFor, member: User, viewer: User, project: Project
) -> None:
    post(api(member), npz_bytes(ARRAYS))
    session, models = make_session(project, Model.objects.get(), 2)
    a, b = (Client.objects.create(project=project, name=name) for name in ("a", "b"))
    measure(models[1], session.pk, a, 30, acc=0.5, loss=1.0)
    measure(models[1], session.pk, b, 10, acc=0.9, loss=2.0)
    http = api(viewer)
    line = http.get(f"{MODELS}{models[1].pk}/lineage/").json()
    assert [(row["kind"], row["round"]) for row in line["results"]] == [
        ("round", 2),
        ("round", 1),
        ("seed", None),
    ]
    assert (line["next"], line["previous"]) == (None, None)
    told = http.get(f"{MODELS}{models[1].pk}/validations/").json()["results"]
    assert [(row["client_name"], row["data"]) for row in told] == [
        ("b", {"acc": 0.9, "loss": 2.0}),
        ("a", {"acc": 0.5, "loss": 1.0}),
    ]
    assert http.get(f"{MODELS}{models[0].pk}/validations/").json()["results"] == []
    assert len(http.get(f"{BASE}/validations/", {"client": str(a.pk)}).json()["results"]) == 1
    assert len(http.get(f"{BASE}/validations/", {"session": str(session.pk)}).json()["results"]) == 2
    means = http.get(
        f"{BASE}/metrics/", {"source": "validation_mean", "name": "acc", "session": str(session.pk)}
    ).json()["results"]
    assert [(row["value"], row["weight"], row["client"], row["round"]) for row in means] == [
        (pytest.approx(0.6), 40.0, None, 2)
    ]
    assert len(http.get(f"{BASE}/metrics/", {"client": str(b.pk)}).json()["results"]) == 2
    assert http.get(f"{BASE}/metrics/", {"source": "nonsense"}).status_code == 400
    assert http.get(f"{BASE}/metrics/", {"session": "nonsense"}).status_code == 400
    assert Metric.objects.count() == 6


def test_strangers_and_clients_see_no_model(
    api: ApiFor, member: User, stranger: User, project: Project, client_token: ClientToken
) -> None:
    told = post(api(member), npz_bytes(ARRAYS)).json()
    _client, token = client_token(project)
    one = f"{MODELS}{told['id']}/"
    for address in (
        MODELS,
        one,
        f"{one}download/",
        f"{one}lineage/",
        f"{one}validations/",
        f"{BASE}/validations/",
        f"{BASE}/metrics/",
    ):
        assert api(stranger).get(address).status_code == 404, address
        assert api(token).get(address).status_code == 403, address
        assert api().get(address).status_code == 401, address
        seen = api(member).get(address)
        assert seen.status_code == 200, address
        assert content_of(seen) if seen.streaming else seen.content


def test_a_model_of_one_project_is_not_reached_through_another(
    api: ApiFor, member: User, stranger: User, project: Project, other_project: Project
) -> None:
    told = post(api(member), npz_bytes(ARRAYS)).json()
    assert api(stranger).get(f"/api/v1/projects/elsewhere-1/models/{told['id']}/").status_code == 404
    assert api(stranger).get(f"/api/v1/projects/elsewhere-1/models/{told['id']}/download/").status_code == 404


def test_a_seed_is_deleted_until_a_session_began_with_it(
    api: ApiFor, member: User, viewer: User, project: Project
) -> None:
    first = post(api(member), npz_bytes(ARRAYS)).json()
    assert api(viewer).delete(f"{MODELS}{first['id']}/").status_code == 403
    assert api(member).delete(f"{MODELS}{first['id']}/").status_code == 204
    post(api(member), npz_bytes(ARRAYS))
    _session, models = make_session(project, Model.objects.get(), 1)
    used = api(member).delete(f"{MODELS}{models[0].parent_id}/")
    assert (used.status_code, used.json()["code"]) == (409, "model_in_use")
    assert api(member).delete(f"{MODELS}{models[0].pk}/").status_code == 404
