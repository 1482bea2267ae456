"""Why a client refuses to go on: TLS that cannot be trusted, another protocol, a package that is not the announced one.

The combiner is played by a small gRPC server; nothing else of Studio is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from studio_sdk import ClientConfig, FederatedClient
from studio_sdk import studio_v1_pb2 as pb
from studio_sdk.client.directory import Directory
from studio_sdk.client.package_trainer import PackageTrainer
from studio_sdk.errors import Exit, PackageError, SdkError, StudioApiError
from studio_sdk.studio_v1_pb2_grpc import CombinerServicer, add_CombinerServicer_to_server

from tests.sdk_site import free_address, until
from tests.tls_files import certificate


class Played(CombinerServicer):  # type: ignore[misc]
    """Answers every Connect by the test's own function."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def Connect(self, request_iterator: Any, context: Any) -> Iterator[pb.ServerMessage]:
        yield from self._answer(request_iterator, context)


class Server:
    """A gRPC server on loopback until the test ends; `credentials` make it speak TLS."""

    running: list[Server] = []

    def __init__(self, answer: Any, credentials: grpc.ServerCredentials | None = None) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        add_CombinerServicer_to_server(Played(answer), self._server)
        add = self._server.add_insecure_port
        port = self._server.add_secure_port("127.0.0.1:0", credentials) if credentials else add("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        self._server.start()
        self.running.append(self)

    def stop(self) -> None:
        self._server.stop(None)


@pytest.fixture(autouse=True)
def stop_servers() -> Iterator[None]:
    yield
    while Server.running:
        Server.running.pop().stop()


def welcome(messages: Any, _context: Any) -> Iterator[pb.ServerMessage]:
    hello = next(messages).hello
    yield pb.ServerMessage(welcome=pb.Welcome(protocol=hello.protocol, combiner="played", client_name="me"))
    for _message in messages:
        pass


def run(tmp_path: Path, **config: Any) -> tuple[int, list[str]]:
    """Run a client to its end (or stop it once it is connected); its exit code and lines."""
    lines: list[str] = []
    made = ClientConfig.of(
        {"api_url": f"http://{free_address()}", "token": "t", "client_id": "c", **config}, tmp_path
    )
    client = FederatedClient(made, work_dir=tmp_path / "work", say=lines.append)
    client.set_train(lambda arrays, _settings: (arrays, {"num_examples": 1}))
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(client.run()), daemon=True)
    thread.start()
    until(lambda: codes or any("connected to" in line for line in lines), 30, "an end or a connection")
    client.stop()
    thread.join(10)
    return codes[0], lines


def tls_server(pair: tuple[Path, Path]) -> Server:
    cert, key = pair
    return Server(welcome, grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())]))


def test_a_private_authority_is_trusted_when_the_config_names_it(tmp_path: Path) -> None:
    pair = certificate(tmp_path, "127.0.0.1")
    code, lines = run(tmp_path, combiner_tls=tls_server(pair).address, ca_cert=pair[0].name)
    assert code == Exit.STOPPED
    assert "connected to played as me" in lines


@pytest.mark.parametrize("case", ["wrong authority", "wrong host name", "expired"])
def test_tls_that_cannot_be_trusted_ends_the_client_with_the_reason(tmp_path: Path, case: str) -> None:
    host = "studio.example" if case == "wrong host name" else "127.0.0.1"
    pair = certificate(tmp_path, host, days=-1 if case == "expired" else 1)
    other, _key = certificate(tmp_path, "127.0.0.1", stem="other")
    trusted = other if case == "wrong authority" else pair[0]
    code, lines = run(tmp_path, combiner_tls=tls_server(pair).address, ca_cert=str(trusted))
    assert code == Exit.TLS
    reasons = {"wrong authority": "self-signed", "wrong host name": "mismatch", "expired": "has expired"}
    assert reasons[case] in lines[-1].replace("self signed", "self-signed")


def test_a_config_that_speaks_of_tls_never_falls_back_to_plain_text(tmp_path: Path) -> None:
    pair = certificate(tmp_path, "127.0.0.1")
    config = ClientConfig.of(
        {
            "api_url": f"http://{free_address()}",
            "token": "t",
            "combiner": "127.0.0.1:9",
            "ca_cert": str(pair[0]),
        }
    )
    directory = Directory(config)
    assert directory.combiners()[0] == []
    directory.close()


def test_another_protocol_version_has_its_own_exit_code(tmp_path: Path) -> None:
    def refuse(_messages: Any, context: Any) -> Iterator[pb.ServerMessage]:
        context.set_trailing_metadata((("studio-code", "old_protocol"),))
        context.abort(grpc.StatusCode.ABORTED, "This client speaks protocol 1; this server needs 2 or newer.")
        yield pb.ServerMessage()

    code, lines = run(tmp_path, combiner=Server(refuse).address)
    assert code == Exit.PROTOCOL
    assert "needs 2 or newer" in lines[-1]


def test_a_goodbye_that_asks_to_come_back_is_followed_by_another_connection(tmp_path: Path) -> None:
    calls: list[int] = []

    def answer(messages: Any, context: Any) -> Iterator[pb.ServerMessage]:
        calls.append(1)
        if len(calls) == 1:
            yield pb.ServerMessage(goodbye=pb.Goodbye(code="restart", reason="back soon", retry=True))
            return
        yield from welcome(messages, context)

    code, lines = run(tmp_path, combiner=Server(answer).address)
    assert code == Exit.STOPPED
    assert len(calls) == 2
    assert "the combiner says goodbye: back soon" in lines


def test_a_config_without_token_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "client.yaml").write_text("api_url: http://127.0.0.1:1\n")
    with pytest.raises(SdkError, match="lacks token") as refused:
        ClientConfig.read(tmp_path / "client.yaml")
    assert refused.value.exit_code == Exit.USAGE


def test_a_package_that_is_not_the_announced_one_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studio_sdk.client.links import Links
    from studio_sdk.client.store import Store
    from studio_sdk.client.tasks import HeldTask

    monkeypatch.setenv("STUDIO_CACHE_DIR", str(tmp_path / "cache"))

    def fetch(_package: str, _target: Path, sha256: str) -> None:
        raise StudioApiError("checksum", f"The download has sha256 0; {sha256} was expected.", 400)

    store = Store("c", tmp_path / "w")
    trainer = PackageTrainer(store=store, links=Links(), say=print, fetch=fetch)
    task = pb.Task(assignment_id="a", kind="train", package_id="p", package_sha256="0" * 64)
    with pytest.raises(PackageError, match="not what the server announced") as refused:
        trainer.prepare_task(HeldTask(task, None))
    assert refused.value.exit_code == Exit.PACKAGE
    store.close()
