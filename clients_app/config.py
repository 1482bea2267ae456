"""client.yaml: all that a device needs to find Studio and be known there."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass

import yaml
from django.conf import settings

from clients_app.models import Client
from clients_app.placement import where_to_begin


@dataclass(frozen=True)
class ClientConfig:
    """The content of a client.yaml. Addresses are host:port; the client prefers `combiner_tls`. `ca_cert` is inline
    PEM or a path, and is asked for only where the site's authority is a private one. `ticket` is the token in the form
    that Scaleout's client reads; it is no part of the file."""

    name: str
    client_id: str
    api_url: str
    token: str
    combiner: str | None = None
    combiner_tls: str | None = None
    ca_cert: str | None = None
    ticket: str = ""

    def as_dict(self) -> dict[str, str]:
        """What is set, in the order of the file."""
        return {key: value for key, value in asdict(self).items() if value and key != "ticket"}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True, width=1000)

    def to_fedn_yaml(self) -> str:
        """The client.yaml of FEDn's own client, for `fedn client start -in client.yaml`."""
        keys = {
            "name": self.name,
            "client_id": self.client_id,
            "discover_host": self.api_url,
            "token": self.token,
        }
        return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=1000)

    def scaleout_command(self) -> str:
        """How Scaleout's own client is started as this client."""
        return (
            f"scaleout client start --remote-package -u {self.api_url} --client-id {self.client_id} "
            f"-n {shlex.quote(self.name)} --token {self.ticket}"
        )


def config_for(client: Client, *, token: str, base_url: str, ticket: str = "") -> ClientConfig:
    """The config of a client whose fresh token this is. The combiner is only where to begin: the client asks
    `api_url` for the best one each time it starts."""
    best = where_to_begin(client)
    return ClientConfig(
        name=client.name,
        client_id=str(client.pk),
        api_url=(settings.PUBLIC_URL or base_url).rstrip("/"),
        token=token,
        combiner=best.address if best else None,
        combiner_tls=best.tls_address if best else None,
        ticket=ticket,
    )
