"""Devices that register themselves: published clients bring an id and a name of their own."""

from __future__ import annotations

import uuid

from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from clients_app.models import Client, Registration
from clients_app.services.devices import MAX_NAME_CHARS, checked_name
from federation.events.services import publish
from foundation.errors import StudioError, invalid
from projects import audit
from projects.choices import Action
from projects.models import Project
from projects.scoping import reach
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.verify import actor_for

_TRIES = 20


def register_device(
    *,
    token: Token,
    client_id: uuid.UUID | None,
    name: str | None,
    dialect: str,
    version: str,
    project: Project | None = None,
) -> Client:
    """The client that this device is, known from now on by the id it brought, and bound to `token`.

    An enrolment token is good for new ids and for those that registered themselves before; a client token for its
    own client; a person's or project's token that may RUN in `project` for any client of it. Without a name it keeps
    the one it has, or gets one; a name that another client has gets a number behind it.
    Raises StudioError 400 (`client_id_taken`: ids are unique on the server), 401.
    """
    owner = _project_for(token, project)
    if token.kind == TokenKind.CLIENT:
        if client_id not in (None, token.client_id):
            raise StudioError("wrong_token", "This token belongs to another client.", 401)
        client_id = token.client_id
    wanted = "" if name is None else checked_name(name)
    client_id = client_id or uuid.uuid4()
    for number in range(1, _TRIES):
        try:
            with transaction.atomic():
                return _registered(token, owner, client_id, _numbered(wanted, number), dialect, version)
        except IntegrityError:
            continue  # the name is another client's, or the same device came twice at once
    raise StudioError("name_taken", f"Too many clients are named {wanted}; choose another name.", 400)


def _project_for(token: Token, project: Project | None) -> Project:
    if token.kind in (TokenKind.CLIENT, TokenKind.ENROLMENT):
        assert token.project_id is not None
        if project is not None and project.pk != token.project_id:
            raise StudioError("wrong_token", "This token belongs to another project.", 401)
        return Project.objects.get(pk=token.project_id)
    if project is None and token.project_id is None:
        raise invalid("project", "This token reaches several projects: name the one to register in.")
    try:
        found: Project = reach(
            Project.objects.all(),
            actor_for(token),
            Action.RUN,
            "project",
            pk=project.pk if project else token.project_id,
        )
    except StudioError as error:
        raise StudioError("wrong_token", error.message, 401) from None
    return found


def _registered(
    token: Token, project: Project, client_id: uuid.UUID, name: str, dialect: str, version: str
) -> Client:
    row = Client.objects.select_for_update().filter(pk=client_id).first()
    if row is None:
        name = name or f"device-{client_id.hex[-8:]}"
        row = Client(pk=client_id, project=project, name=name, created_by=token.user)
        row.save(force_insert=True)
        audit.record(
            actor_for(token), "client.create", project_id=project.pk, target=str(client_id), name=name
        )
        publish(
            project_id=project.pk,
            kind="client.registered",
            message=f"Client {name} registered itself.",
            client_id=client_id,
            dialect=dialect,
        )
    else:
        _may_be(token, project, row)
        if name and row.name != name and not _same_but_number(row.name, name):
            row.name = name
            row.save(update_fields=["name"])
    Registration.objects.update_or_create(
        client=row,
        defaults={"token": token, "dialect": dialect, "version": version[:40], "registered_at": Now()},
    )
    return row


def _may_be(token: Token, project: Project, row: Client) -> None:
    if row.project_id != project.pk:
        raise StudioError(
            "client_id_taken",
            "This client id is taken on this server: give this client a new one (a random UUID).",
            400,
        )
    if token.kind == TokenKind.ENROLMENT and not Registration.objects.filter(client=row).exists():
        raise StudioError(
            "client_id_taken",
            f"This id belongs to the client {row.name}, which has a token of its own: use that, or a new id.",
            400,
        )


def _numbered(name: str, number: int) -> str:
    if number == 1 or not name:
        return name
    suffix = f" ({number})"
    return name[: MAX_NAME_CHARS - len(suffix)] + suffix


def _same_but_number(has: str, wants: str) -> bool:
    """A device that was given `site (2)` keeps it when it comes back asking for `site`."""
    stem, _, number = has.rpartition(" (")
    return stem == wants and number[:-1].isdigit() and number.endswith(")")
