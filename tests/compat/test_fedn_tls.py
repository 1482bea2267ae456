"""TLS with a private authority on port 443, the only port on which FEDn's clients speak it, and send their token."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.compat.conftest import CI
from tests.compat.environments import Environment
from tests.compat.runners import Device, Devices
from tests.compat.world import Site, World, assert_equal_layers, expected, share
from tests.sdk_site import new_person
from tests.services.stack import running
from tests.tls_files import certificate

pytestmark = [pytest.mark.once, pytest.mark.slow]

ADDRESS = "127.0.0.77"  # a loopback address of its own: 443 of 127.0.0.1 may be somebody's


def port_443_is_ours() -> str:
    """Why not, or nothing."""
    try:
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((ADDRESS, 443))
    except OSError as reason:
        return f"{ADDRESS}:443 cannot be listened on here ({reason.strerror}); run as root."
    return ""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The certificate of the address, which is also what users are given to trust, and its key."""
    return certificate(tmp_path_factory.mktemp("tls"), ADDRESS)


@pytest.fixture(scope="module")
def site(
    fedn_environment: Environment,
    devices: Devices,
    authority: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """A project on a Studio that serves everything on TLS."""
    if reason := port_443_is_ours():
        pytest.fail(reason) if CI else pytest.skip(f"NOT RUN: {reason}")
    folder = tmp_path_factory.mktemp("secure")
    trusted, key = authority
    listen = ["--host", ADDRESS, "--combiner-port", "443", "--tls-cert", str(trusted), "--tls-key", str(key)]
    with pytest.MonkeyPatch.context() as env, running(folder / "data", *listen) as stack:
        env.setenv("REQUESTS_CA_BUNDLE", str(trusted))
        with new_person(stack.web) as api:
            yield World(stack, api, devices, folder).site("Secure")


def client(site: Site, name: str, **env: str) -> Device:
    return site.world.devices.start_fedn_client(
        name, url=site.url, token=site.enrolment_token, env={**share(2.0, 5), **env}
    )


@pytest.fixture(scope="module")
def trusting(site: Site, authority: tuple[Path, Path]) -> Device:
    """A client that was told of the private authority."""
    site.upload_package()
    return client(site, "trusting", GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=str(authority[0]))


@pytest.fixture(scope="module")
def finished(site: Site, trusting: Device) -> dict[str, Any]:
    site.until_online("trusting")
    return site.until_session(site.session(rounds=2))


def test_a_client_that_trusts_the_authority_trains(
    site: Site, trusting: Device, finished: dict[str, Any]
) -> None:
    assert trusting.said(rf"Connecting \(GRPC\) to {ADDRESS}:443")
    assert finished["status"] == "finished", finished
    assert_equal_layers(site.layers_of(finished["current_model"]), expected(2, (2.0, 5)))


def test_a_client_that_sends_no_token_over_tls_is_refused(
    site: Site, trusting: Device, authority: tuple[Path, Path]
) -> None:
    # told of the authority by this variable FEDn encrypts and leaves its token out; its id alone is no proof there
    silent = client(site, "silent", FEDN_GRPC_ROOT_CERT_PATH=str(authority[0]))
    assert silent.ended() != 0
    assert silent.said(rf"Connecting \(GRPC\) to {ADDRESS}:443")
    assert silent.said("UNAUTHENTICATED")
    assert {row["name"] for row in site.api.clients(site.slug) if row["online"]} == {"trusting"}
