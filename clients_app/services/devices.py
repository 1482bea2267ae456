"""Registering devices. Creating a client deploys nothing: it makes a config that holds a token of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable

from django.db import IntegrityError, transaction

from clients_app.config import ClientConfig, config_for
from clients_app.models import Client, Combiner
from clients_app.selectors import COMBINER_HOSTS
from clients_app.services.pins import checked_pin, pin_client
from federation.events.services import publish
from foundation.errors import StudioError, forbidden, invalid, not_found
from foundation.hints import wake_combiners, wake_session
from foundation.plain_json import plain_text
from projects import audit
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project
from projects.scoping import reach
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.services import create_token, revoke_token
from projects.tokens.tickets import lasting_ticket

MAX_NAME_CHARS = 120
MAX_ATTRIBUTES = 1000
MAX_ATTRIBUTE_CHARS = 10_000
_SPACES = re.compile(r"\s+")
_HOST = re.compile(r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[1-9][0-9]{0,4})?")


def register_client(
    *, actor: Actor, project: Project, name: str, base_url: str = "", pin: object = None
) -> tuple[Client, ClientConfig, str]:
    """A new client, its config and its token, which is shown this once. `base_url` is where Studio was reached,
    used unless `STUDIO_PUBLIC_URL` is set; `pin` as in `pin_client`. Raises StudioError 400, `name_taken` (409), 403,
    404."""
    project = reach(Project.objects.all(), actor, Action.RUN, "project", pk=project.pk)
    client = Client(project=project, name=checked_name(name), pin=checked_pin(pin), created_by=actor.user)
    with transaction.atomic():
        _save(client)
        token, secret = create_token(
            actor=actor, kind=TokenKind.CLIENT, name=client.name, project=project, client=client
        )
        audit.record(actor, "client.create", project_id=project.pk, target=str(client.pk), name=client.name)
        publish(
            project_id=project.pk,
            kind="client.registered",
            message=f"Client {client.name} was registered.",
            client_id=client.pk,
        )
    config = config_for(client, token=secret, base_url=base_url, ticket=lasting_ticket(token, secret))
    return client, config, secret


def enrol_client(
    *, token: Token, name: str, base_url: str = "", pin: object = None
) -> tuple[Client, ClientConfig, str]:
    """A device registers itself by an enrolment token. Otherwise as `register_client`."""
    if token.kind != TokenKind.ENROLMENT or token.project is None:
        raise forbidden("Enrolling needs an enrolment token; register clients on the Clients page otherwise.")
    device = Actor(
        token_id=token.pk, project_id=token.project.pk, actions=frozenset({Action.VIEW, Action.RUN})
    )
    return register_client(actor=device, project=token.project, name=name, base_url=base_url, pin=pin)


def rename_client(*, actor: Actor, client: Client, name: str) -> Client:
    """Raises StudioError 400, `name_taken` (409), 403, 404."""
    row: Client = reach(Client.objects.all(), actor, Action.RUN, "client", pk=client.pk)
    before, row.name = row.name, checked_name(name)
    if before != row.name:
        with transaction.atomic():
            _save(row, ["name"])
            audit.record(
                actor,
                "client.rename",
                project_id=row.project_id,
                target=str(row.pk),
                name=row.name,
                before=before,
            )
            publish(
                project_id=row.project_id,
                kind="client.renamed",
                message=f"Client {before} is now called {row.name}.",
                client_id=row.pk,
            )
    return row


def change_client(*, actor: Actor, client: Client, name: str | None = None, pin: object = None) -> Client:
    """Rename it, pin it to combiners, or both; nothing changes when either is refused. Raises as `rename_client` and
    `pin_client` do."""
    with transaction.atomic():
        if name is not None:
            client = rename_client(actor=actor, client=client, name=name)
        return client if pin is None else pin_client(actor=actor, client=client, pin=pin)


def new_config(*, actor: Actor, client: Client, base_url: str = "") -> tuple[Client, ClientConfig, str]:
    """A fresh token in a fresh config; every earlier token of the client is revoked and its streams close."""
    row: Client = reach(Client.objects.select_related("project"), actor, Action.RUN, "client", pk=client.pk)
    with transaction.atomic():
        for old in _living_tokens(row):
            revoke_token(actor=actor, token=old)
        token, secret = create_token(
            actor=actor, kind=TokenKind.CLIENT, name=row.name, project=row.project, client=row
        )
        audit.record(actor, "client.config", project_id=row.project_id, target=str(row.pk))
        publish(
            project_id=row.project_id,
            kind="client.config_renewed",
            message=f"Client {row.name} got a new config; its earlier token no longer works.",
            client_id=row.pk,
        )
    config = config_for(row, token=secret, base_url=base_url, ticket=lasting_ticket(token, secret))
    return row, config, secret


def set_attribute(*, actor: Actor, client: Client, key: str, value: str) -> Client:
    """Say one thing of a client, such as its region; what it says of itself later replaces it. Raises StudioError 400,
    403, 404."""
    key, value = plain_text(key).strip(), plain_text(value)
    if not 1 <= len(key) <= MAX_NAME_CHARS or len(value) > MAX_ATTRIBUTE_CHARS:
        raise invalid("key", f"An attribute has a key of 1 to {MAX_NAME_CHARS} characters and a short value.")
    reach(Client.objects.all(), actor, Action.RUN, "client", pk=client.pk)
    with transaction.atomic():
        row = Client.objects.select_for_update().get(pk=client.pk)
        said = row.attributes if isinstance(row.attributes, dict) else {}
        if key not in said and len(said) >= MAX_ATTRIBUTES:
            raise invalid("key", f"A client has at most {MAX_ATTRIBUTES} attributes.")
        row.attributes = {**said, key: value}
        row.save(update_fields=["attributes"])
        audit.record(actor, "client.attribute", project_id=row.project_id, target=str(row.pk), key=key)
    return row


def delete_client(*, actor: Actor, client: Client) -> None:
    """The client, its tokens and what it still owes go; its streams close. Models and metrics stay."""
    row: Client = reach(Client.objects.all(), actor, Action.RUN, "client", pk=client.pk)
    with transaction.atomic():
        sessions = set(
            Client.objects.filter(pk=row.pk, assignments__status__in=("assigned", "delivered")).values_list(
                "assignments__round__session_id", flat=True
            )
        )
        Client.objects.select_for_update().get(pk=row.pk)  # nobody writes an event of it from here on
        audit.record(actor, "client.delete", project_id=row.project_id, target=str(row.pk), name=row.name)
        gone = str(row.pk)
        row.delete()
        publish(
            project_id=row.project_id,
            kind="client.deleted",
            message=f"Client {row.name} was deleted.",
            client=gone,
        )
        wake_combiners([gone])
        for session_id in sessions:
            wake_session(str(session_id))


def name_combiner_host(*, actor: Actor, project: Project, combiner: Combiner, hostname: str) -> None:
    """The host name, or `host:port`, by which this project's clients reach a combiner, which serves others too; empty:
    its own again. Raises StudioError 400, 403, 404."""
    project = reach(Project.objects.all(), actor, Action.ADMIN, "project", pk=project.pk)
    name = hostname.strip() if isinstance(hostname, str) else "?"
    if name and (len(name) > 253 or not _HOST.fullmatch(name)):
        raise invalid(
            "public_hostname", "A host is one such as combiner.example.org or combiner.example.org:443."
        )
    with transaction.atomic():
        row = Project.objects.select_for_update(of=("self",), no_key=True).get(pk=project.pk)
        hosts = {**row.settings.get(COMBINER_HOSTS, {}), str(combiner.pk): name}
        row.settings = {**row.settings, COMBINER_HOSTS: {key: host for key, host in hosts.items() if host}}
        row.save(update_fields=["settings"])
        audit.record(actor, "combiner.host", project_id=row.pk, target=combiner.name, name=name)


def _living_tokens(client: Client) -> Iterable[Token]:
    return Token.objects.filter(client_id=client.pk, kind=TokenKind.CLIENT, revoked_at=None)


def checked_name(name: object) -> str:
    text = _SPACES.sub(" ", name).strip() if isinstance(name, str) else ""
    if not 1 <= len(text) <= MAX_NAME_CHARS or not text.isprintable():
        raise invalid("name", f"A client's name has 1 to {MAX_NAME_CHARS} printable characters.")
    return text


def _save(row: Client, update_fields: list[str] | None = None) -> None:
    try:
        with transaction.atomic():
            row.save(force_insert=update_fields is None, update_fields=update_fields)
    except IntegrityError:
        if not Project.objects.filter(pk=row.project_id).exists():
            raise not_found("project") from None
        raise StudioError(
            "name_taken",
            f"This project already has a client named {row.name}; choose another name.",
            409,
            field="name",
        ) from None
