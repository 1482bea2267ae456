"""Models, packages and helpers that published clients bring and take."""

from __future__ import annotations

import datetime as dt
import io
from typing import Any

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils import timezone

from clients_app.models import Client, Combiner
from federation.models.models import ComputePackage, Model, ProjectDefaults
from federation.sessions.models import Order
from projects.models import AuditEvent, User
from studio.body_limit import limit_of
from tests.archives import content_of, tar_bytes, upload
from tests.controller_cast import AsPerson, Controller
from tests.pages_world import World

ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32), np.float64(4)]
COMMAND = {"fedn.yaml": b"entry_points:\n  train: {command: python train.py}\n", "train.py": b"pass\n"}


def npz(arrays: Any = None) -> SimpleUploadedFile:
    """As FEDn's numpyhelper writes it."""
    out = io.BytesIO()
    np.savez_compressed(
        out, **{str(i): array for i, array in enumerate(ARRAYS if arrays is None else arrays)}
    )
    return SimpleUploadedFile("seed.npz", out.getvalue())


def taken(controller: Controller, model_id: object) -> bytes:
    answer = controller("GET", f"models/{model_id}/download")
    assert answer.status_code == 200
    return content_of(answer)


def test_a_seed_comes_back_as_the_npz_that_it_was(furnished: World, controller: Controller) -> None:
    answer = controller("POST", "models/", {"file": npz(), "helper": "numpyhelper"})
    assert answer.json() == {"success": True, "message": "Model added successfully"}
    newest = controller.get("models", x_limit=1, x_sort_key="committed_at", x_sort_order="desc")["result"][0]
    assert (newest["name"], newest["parent_model"]) == ("seed", None)
    with np.load(io.BytesIO(taken(controller, newest["model_id"])), allow_pickle=False) as found:
        assert sorted(found.files) == ["0", "1", "2"]
        for i, array in enumerate(ARRAYS):
            np.testing.assert_array_equal(found[str(i)], array)


def test_a_model_whose_tensors_have_names_comes_by_place_as_the_helper_reads_it(
    furnished: World, controller: Controller
) -> None:
    assert [spec["name"] for spec in furnished.seed.layout] == ["w"]
    with np.load(io.BytesIO(taken(controller, furnished.seed.pk)), allow_pickle=False) as found:
        assert found.files == ["0"]


@pytest.mark.parametrize(("helper", "dtype"), [("binaryhelper", np.float64), ("androidhelper", np.float32)])
def test_bare_numbers_come_back_as_bare_numbers(
    furnished: World, controller: Controller, helper: str, dtype: Any
) -> None:
    body = np.arange(5, dtype=dtype).tobytes()
    assert controller("PUT", "helpers/active", {"helper": helper}).status_code == 200
    assert (
        controller(
            "POST", "models/", {"file": SimpleUploadedFile("seed.bin", body), "helper": helper}
        ).status_code
        == 200
    )
    assert taken(controller, Model.objects.latest("created_at").pk) == body


@pytest.mark.parametrize("body", [b"", b"not a model", b"PK\x03\x04" + b"\x00" * 40, b"\x93NUMPY"])
def test_a_file_that_is_no_model_is_refused_and_not_kept(
    furnished: World, controller: Controller, body: bytes
) -> None:
    before = Model.objects.count()
    answer = controller(
        "POST", "models/", {"file": SimpleUploadedFile("seed.npz", body), "helper": "numpyhelper"}
    )
    assert answer.status_code == 400
    assert answer.json()["message"]
    assert Model.objects.count() == before


def test_a_request_without_a_file_says_so(furnished: World, controller: Controller) -> None:
    for path in ("models/", "packages/"):
        answer = controller("POST", path, {"helper": "numpyhelper", "name": "x"})
        assert (answer.status_code, "file" in answer.json()["message"]) == (400, True)


def test_a_helper_is_set_before_any_package_exists(project: Any, controller: Controller) -> None:
    ComputePackage.objects.filter(project=project).update(helper="")
    none = controller("GET", "helpers/active")
    assert none.status_code == 400, "which makes the clients take numpyhelper"
    said = controller("PUT", "helpers/active", {"helper": "binaryhelper"})
    assert (said.status_code, said.json()) == (200, {"message": "Active helper set"})
    assert controller("GET", "helpers/active").content == b'"binaryhelper"'
    for wrong in ("", "torchhelper", 5, None):
        answer = controller("PUT", "helpers/active", {"helper": wrong})
        assert (answer.status_code, "numpyhelper" in answer.json()["message"]) == (400, True)


def test_an_uploaded_package_is_the_active_one_and_brings_its_helper(
    furnished: World, controller: Controller
) -> None:
    sent = {"file": upload(tar_bytes(COMMAND)), "helper": "numpyhelper", "name": "mine", "description": "why"}
    assert controller("POST", "packages/", sent).json() == {"message": "Package uploaded"}
    active = controller.get("packages/active")
    assert (active["name"], active["description"], active["helper"], active["active"]) == (
        "mine",
        "why",
        "numpyhelper",
        True,
    )
    assert [row["name"] for row in controller.get("packages/")["result"] if row["active"]] == ["mine"]
    assert ProjectDefaults.objects.get().package_id is not None
    assert AuditEvent.objects.filter(verb="package.set_active").count() == 1


def test_an_earlier_package_is_made_active_again(furnished: World, controller: Controller) -> None:
    sent = {"file": upload(tar_bytes(COMMAND)), "helper": "numpyhelper", "name": "mine"}
    controller("POST", "packages/", sent)
    answer = controller("PUT", "packages/active", {"package_id": str(furnished.package.pk)})
    assert answer.json() == {"message": "Active package set"}
    assert controller.get("packages/active")["package_id"] == str(furnished.package.pk)
    assert controller("PUT", "packages/active", {}).status_code == 400


@pytest.mark.parametrize("body", [b"", b"no archive", tar_bytes({"readme": b"no project file"})])
def test_an_archive_that_is_no_package_is_refused_and_not_kept(
    furnished: World, controller: Controller, body: bytes
) -> None:
    answer = controller("POST", "packages/", {"file": upload(body), "helper": "numpyhelper", "name": "bad"})
    assert answer.status_code == 400
    assert not ComputePackage.objects.filter(name="bad").exists()
    assert not ProjectDefaults.objects.exists()


def test_a_viewer_uploads_nothing(furnished: World, as_person: AsPerson, viewer: User) -> None:
    mine = as_person(viewer)
    sent = {"file": upload(tar_bytes(COMMAND)), "helper": "numpyhelper", "name": "mine"}
    assert mine("POST", "packages/", sent).status_code == 403
    assert mine("POST", "models/", {"file": npz(), "helper": "numpyhelper"}).status_code == 403
    assert mine("PUT", "helpers/active", {"helper": "binaryhelper"}).status_code == 403
    assert mine("PUT", "packages/active", {"package_id": str(furnished.package.pk)}).status_code == 403
    assert not ProjectDefaults.objects.exists()


def test_uploads_have_room_and_nothing_else_has(settings: Any) -> None:
    for prefix in ("", "/digits-fedn-reducer", "/digits-fedn-reducer/"):
        assert limit_of(f"{prefix}/api/v1/models/") > settings.MAX_MODEL_BYTES
        assert limit_of(f"{prefix}/api/v1/packages") > settings.MAX_PACKAGE_BYTES
        for small in ("sessions/", "models/x", "packages/active", "clients/add"):
            assert limit_of(f"{prefix}/api/v1/{small}") < 10 * 2**20


@pytest.mark.parametrize(("asked", "orders"), [("true", 1), ("false", 0), ("", 0)])
def test_clients_start_again_with_a_new_package_when_that_is_asked(
    furnished: World, controller: Controller, asked: str, orders: int
) -> None:
    later = timezone.now() + dt.timedelta(hours=1)
    combiner = Combiner.objects.create(name="edge", epoch=1, lease_until=later)
    Client.objects.create(
        project=furnished.project, name="edge", dialect="scaleout", connection_id="c", connection_epoch=1,
        combiner=combiner,
    )  # fmt: skip
    body = {"file": upload(tar_bytes(COMMAND)), "name": "again", "restart_clients": asked}
    assert controller("POST", "packages/", body).status_code == 200
    assert Order.objects.filter(command__kind="restart", client__name="edge").count() == orders
