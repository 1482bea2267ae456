"""Writes of sessions: what a person asks for. The engine does the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from federation.events.services import publish
from federation.models.models import ComputePackage, Model
from federation.sessions.choices import SESSION_MOVES, SessionStatus
from federation.sessions.config import MAX_ROUNDS, MAX_TIMEOUT_S, SessionConfig, SessionSpec, parse_client_ids
from federation.sessions.models import Session
from foundation import hints
from foundation.errors import StudioError, invalid
from foundation.moves import move
from projects.actors import Actor
from projects.audit import record
from projects.choices import Action
from projects.models import Project
from projects.scoping import reach


def create_session(*, actor: Actor, project: Project, spec: SessionSpec) -> Session:
    """A session that waits to be started. Its seed model and package must be the project's own."""
    reach(Project.objects.all(), actor, Action.RUN, "project", pk=project.pk)
    seed = Model.objects.visible_to(actor).filter(project=project, pk=spec.seed_model_id).first()
    if seed is None:
        raise invalid(
            "seed_model", "There is no such model in this project; choose one from its Models page."
        )
    package = None
    if spec.package_id is not None:
        package = ComputePackage.objects.visible_to(actor).filter(project=project, pk=spec.package_id).first()
        if package is None:
            raise invalid("package", "There is no such compute package in this project; upload one first.")
    with transaction.atomic():
        number = Session.objects.filter(project=project).count() + 1
        session = Session.objects.create(
            project=project,
            name=spec.name or f"Session {number}",
            config=spec.config.to_json(),
            package=package,
            seed_model=seed,
            current_model=seed,
            rounds_wanted=spec.rounds,
            created_by=actor.user,
        )
        record(actor, "session.create", project_id=project.pk, target=session.name, session=str(session.pk))
        publish(
            project_id=project.pk,
            kind="session.created",
            message=f"{session.name} was created with {spec.rounds} rounds.",
            session_id=session.pk,
        )
    return session


def _set_running(session: Session, actor: Actor, verb: str, message: str, **fields: Any) -> None:
    move(
        Session.objects.filter(pk=session.pk),
        SESSION_MOVES,
        SessionStatus.RUNNING,
        stop_asked=False,
        reason="",
        ended_at=None,
        failed_in_row=0,
        waiting_for="",
        waiting_until=None,
        look_at=Now(),
        **fields,
    )
    record(actor, verb, project_id=session.project_id, target=session.name, session=str(session.pk))
    publish(project_id=session.project_id, kind="session.started", message=message, session_id=session.pk)
    hints.wake_session(str(session.pk))


def check_can_run(session: Session) -> None:
    """Raises StudioError 400 `not_offered` for a session that asks for what this server does not do."""
    if why := SessionConfig.from_json(session.config).cannot_run:
        raise StudioError("not_offered", why, 400)


def start_session(*, actor: Actor, session: Session) -> Session:
    """created -> running. Starting one that runs changes nothing; one that ended is refused."""
    session = reach(Session.objects.all(), actor, Action.RUN, "session", pk=session.pk)
    if session.status == SessionStatus.RUNNING:
        return session
    check_can_run(session)
    if session.status != SessionStatus.CREATED:
        raise StudioError(
            "session_ended",
            f"{session.name} has {session.status}; continue it with more rounds instead.",
            409,
        )
    with transaction.atomic():
        _set_running(session, actor, "session.start", f"{session.name} was started.", started_at=Now())
    session.refresh_from_db()
    return session


def stop_session(*, actor: Actor, session: Session) -> Session:
    """Ask a running session to stop: clients are told, the open round ends. One that ended stays as it is."""
    session = reach(Session.objects.all(), actor, Action.RUN, "session", pk=session.pk)
    if session.status == SessionStatus.CREATED:
        raise StudioError(
            "session_not_started", f"{session.name} was never started, so there is nothing to stop.", 409
        )
    with transaction.atomic():
        asked = Session.objects.filter(pk=session.pk, status=SessionStatus.RUNNING, stop_asked=False).update(
            stop_asked=True, look_at=Now()
        )
        if asked:
            record(actor, "session.stop", project_id=session.project_id, target=session.name)
            publish(
                project_id=session.project_id,
                kind="session.stop_asked",
                message=f"{session.name} was asked to stop.",
                session_id=session.pk,
            )
            hints.wake_session(str(session.pk))
    session.refresh_from_db()
    return session


def continue_session(*, actor: Actor, session: Session, rounds: int) -> Session:
    """An ended session goes on from its current model for `rounds` more rounds."""
    session = reach(Session.objects.all(), actor, Action.RUN, "session", pk=session.pk)
    if isinstance(rounds, bool) or not isinstance(rounds, int) or not 1 <= rounds <= MAX_ROUNDS:
        raise invalid("rounds", f"rounds must be a whole number from 1 to {MAX_ROUNDS}.")
    with transaction.atomic():
        locked = Session.objects.select_for_update(of=("self",), no_key=True).get(pk=session.pk)
        if locked.status == SessionStatus.RUNNING:
            raise StudioError(
                "session_running", f"{locked.name} is running; it can be continued once it has ended.", 409
            )
        if locked.status == SessionStatus.CREATED:
            raise StudioError(
                "session_not_started", f"{locked.name} was never started; start it instead.", 409
            )
        config = replace(SessionConfig.from_json(locked.config), target_from_round=locked.rounds_done + 1)
        _set_running(
            locked,
            actor,
            "session.continue",
            f"{locked.name} continues for {rounds} more round{'s' * (rounds != 1)}.",
            rounds_wanted=locked.rounds_done + rounds,
            config=config.to_json(),
        )
    session.refresh_from_db()
    return session


def run_session(
    *,
    actor: Actor,
    session: Session,
    rounds: int | None = None,
    round_timeout_s: float | None = None,
    client_ids: Any = None,
) -> Session:
    """A new session starts, one that ended goes on, for `rounds` rounds of at most `round_timeout_s` each, with the
    clients that `client_ids` names (a list, or text with commas); what is None stays as the session has it. Raises
    StudioError 400, `session_running` (409), 403, 404; then nothing changes."""
    if rounds is not None and not 1 <= rounds <= MAX_ROUNDS:
        raise invalid("rounds", f"rounds must be a whole number from 1 to {MAX_ROUNDS}.")
    if round_timeout_s is not None and not 1 <= round_timeout_s <= MAX_TIMEOUT_S:
        raise invalid("round_timeout", f"round_timeout must be from 1 to {MAX_TIMEOUT_S:g} seconds.")
    reach(Session.objects.all(), actor, Action.RUN, "session", pk=session.pk)
    with transaction.atomic():
        row = Session.objects.select_for_update(of=("self",), no_key=True).get(pk=session.pk)
        if row.status == SessionStatus.RUNNING:
            raise StudioError("session_running", "A session is already running!", 409)
        config = SessionConfig.from_json(row.config)
        if round_timeout_s is not None:
            config = replace(config, round_timeout_s=round_timeout_s)
        if client_ids:
            needed = max(config.min_clients, config.needed_updates)
            config = replace(config, client_ids=parse_client_ids(client_ids, needed=needed))
        row.config = config.to_json()
        if row.status == SessionStatus.CREATED:
            row.rounds_wanted = rounds or row.rounds_wanted
            row.save(update_fields=["rounds_wanted", "config"])
            return start_session(actor=actor, session=row)
        row.save(update_fields=["config"])
        return continue_session(actor=actor, session=row, rounds=rounds or row.rounds_wanted)
