"""client.yaml: who this client is and where it connects."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import Exit, SdkError
from .attributes import from_mapping

_PEM = "-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True)
class ClientConfig:
    """The contents of a client.yaml. `combiner` is plain text, `combiner_tls` is preferred; `ca_cert` is PEM text.
    `attributes`: what it says of itself, for sessions that choose by it."""

    name: str
    client_id: str
    api_url: str
    token: str
    combiner: str | None = None
    combiner_tls: str | None = None
    ca_cert: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def read(cls, path: str | Path) -> ClientConfig:
        """Read a client.yaml. Raises SdkError with what is missing. A relative `ca_cert` is beside the file."""
        file = Path(path)
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SdkError(
                f"There is no {path}. Download it from the project's Clients page.", Exit.USAGE
            ) from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SdkError(
                f"{path} cannot be read: {' '.join(str(error).split())[:300]}", Exit.USAGE
            ) from None
        if not isinstance(content, dict):
            raise SdkError(
                f"{path} is no client config: it must be a mapping with api_url and token.", Exit.USAGE
            )
        return cls.of(content, file.parent)

    @classmethod
    def of(cls, content: dict[str, Any], folder: Path = Path()) -> ClientConfig:
        """The config in a mapping, such as the answer of `StudioApi.create_client`'s "config"."""
        missing = [key for key in ("api_url", "token") if not content.get(key)]
        if missing:
            raise SdkError(f"The client config lacks {' and '.join(missing)}.", Exit.USAGE)

        def text(key: str) -> str | None:
            value = content.get(key)
            return None if value in (None, "") else str(value)

        return cls(
            name=text("name") or "client",
            client_id=text("client_id") or "",
            api_url=str(content["api_url"]),
            token=str(content["token"]),
            combiner=text("combiner"),
            combiner_tls=text("combiner_tls"),
            ca_cert=_pem(text("ca_cert"), folder),
            attributes=from_mapping(content.get("attributes")),
        )


def _pem(named: str | None, folder: Path) -> str | None:
    if named is None or _PEM in named:
        return named
    path = Path(os.path.expandvars(named)).expanduser()
    try:
        content = (path if path.is_absolute() else folder / path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise SdkError(f"The certificate authority {named} cannot be read: {error}", Exit.USAGE) from None
    if _PEM not in content:
        raise SdkError(f"{named} holds no certificate in PEM form.", Exit.USAGE)
    return content


def ca_file(pem: str, folder: Path) -> Path:
    """The authority as a file, for libraries that want a path."""
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix="ca-", suffix=".pem", delete=False) as file:
        file.write(pem)
    return Path(file.name)
