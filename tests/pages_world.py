"""A project with a row of everything, for the tests of pages; and the addresses of all its pages."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from django.urls import reverse
from django.utils import timezone

from clients_app.models import Client, Combiner
from federation.aggregation.codecs import save_arrays
from federation.events.models import Event, Telemetry
from federation.models.models import ComputePackage, Metric, Model, Validation
from federation.sessions.config import SessionConfig
from federation.sessions.models import Assignment, Round, Session
from foundation import storage
from foundation.ids import uuid7
from projects.models import Project, User
from projects.tokens.models import Token


@dataclass
class World:
    project: Project
    client: Client
    package: ComputePackage
    seed: Model
    session: Session
    round: Round
    model: Model
    validation: Validation


def furnish(project: Project, owner: User, folder: Path) -> World:
    """One running session in its second round, with clients, models, measurements and events."""
    now = timezone.now()
    combiner = Combiner.objects.create(
        name="c1",
        epoch=1,
        address="127.0.0.1:9000",
        version="0.1.0",
        load={"streams": 1},
        started_at=now,
        lease_until=now + dt.timedelta(hours=1),
    )
    client = Client.objects.create(
        project=project,
        name="hospital-north-with-a-rather-long-name",
        combiner=combiner,
        connection_epoch=1,
        connection_id="a",
        connected_at=now,
        last_seen_at=now,
        created_by=owner,
    )
    package = ComputePackage.objects.create(
        project=project,
        name="digits",
        file_name="package.tgz",
        key="packages/none",
        sha256="ab" * 32,
        size_bytes=1234,
        project_file="studio.yaml",
    )
    path = folder / "seed.safetensors"
    layout = save_arrays({"w": np.zeros((4, 3), np.float32)}, path).to_json()
    key = f"models/{project.pk}/{uuid7().hex}.safetensors"
    storage.put(key, path)
    about = {
        "key": key,
        "sha256": storage.sha256_of(path),
        "size_bytes": path.stat().st_size,
        "layout": layout,
    }
    seed = Model.objects.create(project=project, kind="seed", name="seed", created_by=owner, **about)
    session = Session.objects.create(
        project=project,
        name="Baseline",
        status="running",
        config=SessionConfig(client_settings={"lr": 0.1}).to_json(),
        package=package,
        seed_model=seed,
        current_model=seed,
        rounds_wanted=5,
        rounds_done=1,
        created_by=owner,
        started_at=now,
    )
    model = Model.objects.create(
        project=project,
        kind="round",
        name="Baseline 1",
        parent=seed,
        session=session,
        round_number=1,
        **about,
    )
    first = Round.objects.create(
        project=project,
        session=session,
        number=1,
        status="finished",
        goal=1,
        min_updates=1,
        input_model=seed,
        output_model=model,
        deadline=now,
        ended_at=now,
    )
    second = Round.objects.create(
        project=project,
        session=session,
        number=2,
        goal=1,
        min_updates=1,
        input_model=model,
        deadline=now + dt.timedelta(minutes=3),
    )
    done = Assignment.objects.create(
        project=project,
        round=first,
        client=client,
        model=seed,
        kind="train",
        status="accepted",
        deadline=now,
        num_examples=100,
        metadata={"training_loss": 0.5},
    )
    Assignment.objects.create(
        project=project,
        round=second,
        client=client,
        model=model,
        kind="train",
        status="delivered",
        deadline=now,
        progress=0.5,
    )
    validation = Validation.objects.create(
        project=project,
        model=model,
        client=client,
        client_name=client.name,
        session=session,
        round_number=1,
        assignment_id=done.pk,
        data={"accuracy": 0.875, "note": "<b>not markup</b>"},
    )
    for source, of in (("validation", client), ("validation_mean", None)):
        Metric.objects.create(
            project=project,
            model=model,
            session=session,
            client=of,
            round_number=1,
            source=source,
            name="accuracy",
            value=0.875,
        )
    Event.objects.create(
        project=project, kind="client.connected", message="It connected to c1.", client=client, data={"n": 1}
    )
    Telemetry.objects.create(project=project, client=client, at=now, name="memory_bytes", value=1e9)
    return World(project, client, package, seed, session, first, model, validation)


def pages_of(world: World) -> dict[str, str]:
    """Every page of the project and around it, by name."""
    slug = world.project.slug
    one = {
        "client": world.client.pk,
        "session": world.session.pk,
        "model": world.model.pk,
    }
    plain = ("project", "clients", "client-new", "combiners", "sessions", "models", "seed-upload", "events")
    settings = ("project-settings", "project-members", "project-tokens")
    return (
        {name: reverse(name, args=[slug]) for name in (*plain, *settings)}
        | {name: reverse(name, args=[slug, pk]) for name, pk in one.items()}
        | {"session-round": reverse("session-round", args=[slug, world.session.pk, world.round.pk])}
        | {
            f"session-new-{tab}": reverse("session-new", args=[slug, tab])
            for tab in ("package", "seed", "start")
        }
        | {name: reverse(name) for name in ("projects", "project-new", "my-account", "my-tokens")}
        | {"project-new-form": reverse("project-new") + "?template=federated-learning"}
        | {name: reverse(name) for name in ("account_change_password", "account_email", "account_logout")}
    )


def secrets_of(project: Project) -> list[str]:
    """Digests that no page may show."""
    return list(Token.objects.filter(project=project).values_list("digest", flat=True))
