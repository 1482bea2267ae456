"""The operator looks at every row type, quickly, and no secret shows."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.contrib import admin
from django.db import models
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from clients_app.models import Client as Device
from clients_app.models import Combiner, Registration
from federation.models.models import ComputePackage, Metric, Model, ProjectDefaults
from federation.sessions.models import (
    Assignment,
    CombinerShare,
    Command,
    Order,
    Round,
    SelectionScore,
    Session,
)
from foundation.models import IdempotentAnswer
from projects.models import AuditEvent, Invitation, Membership, Project, User
from projects.tokens.models import Token

OURS = [
    model
    for app in apps.get_app_configs()
    if Path(app.path).is_relative_to(settings.BASE_DIR) and ".venv" not in app.path
    for model in app.get_models()
]
ROWS = 1000
SECRET = "c0ffee" * 10
NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def world(project: Project, owner: User) -> dict[str, Any]:
    """One of each, that the thousand rows belong to."""
    combiner = Combiner.objects.create(name="combiner-one")
    device = Device.objects.create(project=project, name="site-one", combiner=combiner)
    seed = Model.objects.create(
        project=project, kind="seed", name="seed-one", key="k", sha256="0" * 64, size_bytes=1, layout=[]
    )
    session = Session.objects.create(
        project=project, name="session-one", config={}, seed_model=seed, current_model=seed, rounds_wanted=1
    )
    open_round = Round.objects.create(
        project=project, session=session, number=1, goal=1, min_updates=1, input_model=seed, deadline=NOW
    )
    share = CombinerShare.objects.create(project=project, round=open_round, combiner=combiner)
    package = ComputePackage.objects.create(
        project=project, name="package-one", file_name="p.tgz", key="k", sha256="0" * 64, size_bytes=1
    )
    token = Token.objects.create(kind="project", name="token-one", project=project, key_id="k", pepper=1)
    command = Command.objects.create(project=project, kind="custom", name="ping", deadline=NOW)
    return {
        "package": package, "token": token, "command": command,
        "project": project, "user": owner, "combiner": combiner, "client": device, "model": seed, "seed_model": seed,
        "current_model": seed, "input_model": seed, "session": session, "round": open_round, "share": share,
        "invited_by": owner, "created_by": owner, "parent": seed, "output_model": seed,
    }  # fmt: skip


# what the general rule below cannot guess: a unique pair, a check constraint
SPECIAL: dict[type[models.Model], Callable[[int], dict[str, Any]]] = {
    User: lambda n: {"password": f"{SECRET}{n:04}"},
    Membership: lambda n: {
        "user": User.objects.create(username=f"m{n}", email=f"m{n}@x.org"),
        "role": "viewer",
    },
    Token: lambda n: {"kind": "project", "user": None, "client": None, "digest": f"{SECRET}{n:04}"},
    Round: lambda n: {"number": n + 2, "status": "finished"},
    CombinerShare: lambda n: {"status": "abandoned"},
    Assignment: lambda n: {"status": "accepted", "kind": "train"},
    SelectionScore: lambda n: {"client": Device.objects.create(project=Project.objects.get(), name=f"s{n}")},
    Metric: lambda n: {"source": "logged"},
    Registration: lambda n: {"client": Device.objects.create(project=Project.objects.get(), name=f"r{n}")},
    Order: lambda n: {"client": Device.objects.create(project=Project.objects.get(), name=f"o{n}")},
    ProjectDefaults: lambda n: {"project": Project.objects.create(name=f"p{n}", slug=f"p{n}")},
    Invitation: lambda n: {"digest": f"{SECRET}{n:04}"},
    IdempotentAnswer: lambda n: {"key": f"{SECRET}{n}", "body": {"sealed": SECRET}, "body_sha256": SECRET},
}


def fill(model: type[models.Model], world: dict[str, Any]) -> None:
    """A thousand rows with every relation set, so that a query per row would show."""

    def value(field: Any, n: int) -> Any:
        if isinstance(field, models.ForeignKey):
            return world[field.name]
        if isinstance(field, models.JSONField):
            return {"n": n}
        if isinstance(field, models.UUIDField):
            return uuid.uuid4()
        if isinstance(field, models.DateTimeField):
            return timezone.now()
        if isinstance(field, models.BooleanField):
            return False
        if isinstance(field, models.FloatField | models.IntegerField):
            return n
        if isinstance(field, models.EmailField):
            return f"{model.__name__}{n}@example.org"
        return field.choices[0][0] if field.choices else f"{model.__name__}-{n}"[: field.max_length]

    rows = []
    for n in range(ROWS):
        given = SPECIAL.get(model, lambda n: {})(n)
        fields = {
            field.name: value(field, n)
            for field in model._meta.concrete_fields
            if field.name not in given and not isinstance(field, models.AutoField)
        }
        rows.append(model(**fields, **given))
    model._default_manager.bulk_create(rows, ignore_conflicts=False)


def page(operator: User) -> Client:
    http = Client()
    http.force_login(operator)
    return http


def changelist(model: type[models.Model]) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


def test_every_row_type_of_ours_is_registered_with_columns_and_a_search() -> None:
    for model in OURS:
        assert model in admin.site._registry, model
        shown = admin.site._registry[model]
        assert len(shown.list_display) > 2 and shown.search_fields, model


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_a_thousand_rows_open_in_at_most_fifteen_queries_and_show_no_secret(
    model: type[models.Model],
    world: dict[str, Any],
    operator: User,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    fill(model, world)
    http = page(operator)
    with django_assert_max_num_queries(15):
        answer = http.get(changelist(model))
    assert answer.status_code == 200
    assert str(model._meta.verbose_name_plural).lower() in answer.content.decode().lower()
    row = model._default_manager.order_by("-pk").first()
    assert row is not None
    with django_assert_max_num_queries(40):
        detail = http.get(
            reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[row.pk])
        )
    searched = http.get(changelist(model), {"q": "one"})
    assert (detail.status_code, searched.status_code) == (200, 200)
    for html in (answer.content.decode(), detail.content.decode()):
        assert SECRET not in html


@pytest.mark.parametrize(
    "model",
    [model for model in OURS if model is not User],
    ids=lambda model: model.__name__,
)
def test_what_services_write_is_not_edited_by_hand(
    model: type[models.Model], operator: User, rf: Any
) -> None:
    request = rf.get("/")
    request.user = operator
    shown = admin.site._registry[model]
    assert shown.has_view_permission(request)
    assert not shown.has_add_permission(request)
    assert not shown.has_change_permission(request)
    assert not shown.has_delete_permission(request)


def test_the_operator_revokes_tokens_from_the_list(
    operator: User, project: Project, client_token: Any
) -> None:
    client_token(project)
    token = Token.objects.get()
    answer = page(operator).post(
        changelist(Token), {"action": "revoke", "_selected_action": [str(token.pk)]}, follow=True
    )
    assert "1 revoked" in answer.content.decode()
    token.refresh_from_db()
    assert token.revoked_at is not None
    assert AuditEvent.objects.get(verb="token.revoke").actor == f"user:{operator.pk}"


def test_a_user_is_made_and_closed_by_the_operator_and_never_deleted(operator: User, viewer: User) -> None:
    http = page(operator)
    http.post(
        "/admin/projects/user/add/",
        {"username": "nora", "email": "nora@example.org", "usable_password": "true",
         "password1": "a-long-phrase-42", "password2": "a-long-phrase-42"},
    )  # fmt: skip
    assert User.objects.get(username="nora").check_password("a-long-phrase-42")
    assert http.post(f"/admin/projects/user/{viewer.pk}/delete/", {"post": "yes"}).status_code == 403
    assert User.objects.filter(pk=viewer.pk).exists()


def test_who_is_no_staff_sees_nothing_of_it(owner: User) -> None:
    answer = page(owner).get(changelist(Project))
    assert answer.status_code in (302, 403)
    assert b"Digits" not in answer.content
