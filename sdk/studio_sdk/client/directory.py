"""Which combiners to try, in which order: the server's word first, then what client.yaml says."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..api import StudioApi
from ..errors import Exit, SdkError, StudioApiError
from ..rest import RetryRule
from .config import ClientConfig, ca_file
from .link import Address

ASK_TIMEOUT_S = 5.0


class Directory:
    """Asks the web before each connection; while the web is down, the last answer and the config serve."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._known: list[Address] = []
        self._folder = tempfile.TemporaryDirectory(prefix="studio-")
        ca = ca_file(config.ca_cert, Path(self._folder.name)) if config.ca_cert else None
        self._asking = self._api(ca, ASK_TIMEOUT_S, RetryRule(tries=1))
        self._fetching = self._api(ca, 60.0, RetryRule(tries=3))
        self.project = ""

    def _api(self, ca: Path | None, timeout_s: float, retry: RetryRule) -> StudioApi:
        config = self._config
        return StudioApi(config.api_url, config.token, timeout_s=timeout_s, ca_cert=ca, retry=retry)

    def close(self) -> None:
        """Close the connections to the web."""
        self._asking.close()
        self._fetching.close()
        self._folder.cleanup()

    def combiners(self) -> tuple[list[Address], str]:
        """(addresses, best first; why there are none or the web could not be asked, or ""). Raises SdkError when the
        token is refused."""
        trouble = ""
        try:
            answer = self._asking.client_self()
            self.project = str(answer.get("project") or "")
            rows = [row for row in answer.get("combiners") or [] if isinstance(row, dict)]
            found = [
                self._address(row.get("name"), row.get("address"), row.get("tls_address")) for row in rows
            ]
            self._known = [address for address in found if address is not None]
            pin = answer.get("pin")
            if not rows and pin and isinstance(pin, dict):
                wanted = ", ".join(f"{key}={value}" for key, value in pin.items())
                trouble = f"this client is pinned to combiners with {wanted}, and none of them takes clients"
        except StudioApiError as error:
            if error.status in (401, 403):
                raise SdkError(f"Studio refuses this client's token: {error}", Exit.REFUSED) from None
            if error.code == "tls_refused":
                raise SdkError(error.message, Exit.TLS) from None
            if error.code == "bad_address":
                raise SdkError(error.message, Exit.USAGE) from None
            trouble = error.message
        own = self._address(None, self._config.combiner, self._config.combiner_tls)
        addresses = list(self._known)
        if own is not None and own.target not in {address.target for address in addresses}:
            addresses.append(own)
        return addresses, trouble

    def _address(self, name: object, plain: object, tls: object) -> Address | None:
        """TLS where it is offered; plain text only where this client's config never spoke of TLS."""
        if tls:
            return Address(str(name or tls), str(tls), True)
        wants_tls = bool(self._config.combiner_tls or self._config.ca_cert)
        return Address(str(name or plain), str(plain), False) if plain and not wants_tls else None

    def fetch_package(self, package_id: str, target: Path, sha256: str) -> None:
        """Download a compute package of this client's project. Raises StudioApiError."""
        if not self.project:
            self.project = str(self._fetching.client_self().get("project") or "")
        self._fetching.download_package(self.project, package_id, target, sha256=sha256)
