"""TLS of the combiner: a private authority works; a wrong authority, host name or an expired certificate does not."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from studio_sdk.client.lane import Lane, LaneClosed, LaneError

from federation.dialects.native import studio_v1_pb2 as wire
from federation.dialects.native.studio_v1_pb2_grpc import CombinerStub
from studio.management.commands.combiner import read_listeners
from tests.rig import Child, Rig

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass
class Authority:
    key: Any
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(key, _sign(name, key.public_key(), name, key, is_ca=True))

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, folder: Path, host: str = "127.0.0.1", *, expired: bool = False) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        certificate = _sign(host, key.public_key(), str(issuer), self.key, host=host, expired=expired)
        cert, private = folder / "cert.pem", folder / "key.pem"
        cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert, private


def _sign(
    name: str,
    public: Any,
    issuer: str,
    by: Any,
    *,
    host: str = "",
    is_ca: bool = False,
    expired: bool = False,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    end = now - dt.timedelta(days=1) if expired else now + dt.timedelta(days=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    if host:
        try:
            named: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            named = x509.DNSName(host)
        builder = builder.add_extension(x509.SubjectAlternativeName([named]), critical=False)
    return builder.sign(by, hashes.SHA256())


def tls_combiner(rig: Rig, pair: tuple[Path, Path]) -> Child:
    cert, key = pair
    return rig.combiner(
        "secure",
        extra=["--tls-cert", str(cert), "--tls-key", str(key), "--tls-port", "0", "--host", "127.0.0.1"],
    )


def greet(address: str, root: bytes, token: str) -> wire.Welcome:
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(root)) as channel:
        hello = wire.ClientMessage(hello=wire.Hello(protocol=1, client_version="test"))
        stream = CombinerStub(channel).Connect(
            iter([hello]), metadata=(("authorization", f"Bearer {token}"),), timeout=10
        )
        return next(iter(stream)).welcome


def test_a_private_authority_works(rig: Rig) -> None:
    authority = Authority.make("Our own")
    _, token = rig.client("a")
    combiner = tls_combiner(rig, authority.issue(rig.folder))
    assert greet(combiner.tls_address, authority.pem, token).client_name == "a"


def test_the_lane_speaks_tls_with_the_same_certificate_and_plain_streams_are_not_sent_to_it(rig: Rig) -> None:
    ours, theirs = Authority.make("Ours"), Authority.make("Theirs")
    _, token = rig.client("a")
    combiner = tls_combiner(rig, ours.issue(rig.folder))
    named = greet(combiner.tls_address, ours.pem, token).lane
    assert named.startswith(":")
    nothing = wire.DownloadRequest(assignment_id=str(uuid.uuid4()), model_id=str(uuid.uuid4()))

    def ask(root: bytes) -> None:
        lane = Lane(f"127.0.0.1{named}", token, True, root.decode())
        list(lane.download(nothing, 0, lambda _cut: None))

    with pytest.raises(LaneError) as heard:
        ask(ours.pem)
    assert heard.value.code() == grpc.StatusCode.NOT_FOUND
    with pytest.raises(LaneClosed, match="CERTIFICATE_VERIFY_FAILED"):
        ask(theirs.pem)
    with grpc.insecure_channel(combiner.address) as channel:
        hello = wire.ClientMessage(hello=wire.Hello(protocol=1, client_version="test"))
        stream = CombinerStub(channel).Connect(
            iter([hello]), metadata=(("authorization", f"Bearer {token}"),), timeout=10
        )
        assert next(iter(stream)).welcome.lane == ""


def test_an_update_goes_up_the_lane_over_tls(rig: Rig) -> None:
    """Several buffers, through TLS, which hands its bytes on in a way of its own."""
    authority = Authority.make("Ours")
    _, token = rig.client("a")
    combiner = tls_combiner(rig, authority.issue(rig.folder))
    client = rig.connect(combiner, token)
    rig.worker()
    rig.session(seed=rig.model({"w": np.zeros(900_000, np.float32)}), min_clients=1)
    task = client.next_task()
    lane = Lane(
        f"127.0.0.1{greet(combiner.tls_address, authority.pem, rig.client('b')[1]).lane}",
        token,
        True,
        authority.pem.decode(),
    )
    asked = wire.DownloadRequest(assignment_id=task.assignment_id, model_id=task.model_id, offset=1_000_000)
    model = b"".join(bytes(view) for view in lane.download(asked, task.model_size, lambda _cut: None))
    assert model == client.download(task)[1_000_000:]
    body = client.encode({"w": np.random.default_rng(5).standard_normal(900_000).astype(np.float32)})
    file = rig.folder / "update"
    file.write_bytes(body)
    start = wire.UploadStart(
        head=wire.UploadHead(assignment_id=task.assignment_id, upload_id="u", size=len(body)),
        tail=wire.UploadTail(sha256=hashlib.sha256(body).hexdigest(), num_examples=1),
    )
    assert lane.upload(start, file, lambda _cut: None).status == wire.Receipt.ACCEPTED


def test_beyond_loopback_only_a_lane_that_was_asked_for_is_opened(tmp_path: Path) -> None:
    given = {"tls_cert": None, "tls_key": None, "tls_host": "", "port": 1, "tls_port": 2, "insecure": True}
    here, open_ = {**given, "host": "127.0.0.1"}, {**given, "host": "0.0.0.0"}
    assert read_listeners({**here, "lane_port": None}).lane_port == 0
    assert read_listeners({**here, "lane_port": -1}).lane_port is None
    assert read_listeners({**open_, "lane_port": None}).lane_port is None
    assert read_listeners({**open_, "lane_port": 9100}).lane_port == 9100


def refusal(rig: Rig, root: bytes, pair: tuple[Path, Path]) -> str:
    _, token = rig.client("a")
    combiner = tls_combiner(rig, pair)
    with pytest.raises(grpc.RpcError) as refused:
        greet(combiner.tls_address, root, token)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    return str(refused.value.details())


def test_a_certificate_of_another_authority_is_refused_by_the_client(rig: Rig) -> None:
    ours, theirs = Authority.make("Ours"), Authority.make("Theirs")
    assert "CERTIFICATE_VERIFY_FAILED" in refusal(rig, ours.pem, theirs.issue(rig.folder))


def test_a_certificate_for_another_host_is_refused_by_the_client(rig: Rig) -> None:
    ours = Authority.make("Ours")
    said = refusal(rig, ours.pem, ours.issue(rig.folder, "studio.example.org"))
    assert "127.0.0.1" in said or "name" in said.lower()


def test_an_expired_certificate_is_refused_by_the_client(rig: Rig) -> None:
    ours = Authority.make("Ours")
    assert "CERTIFICATE_VERIFY_FAILED" in refusal(rig, ours.pem, ours.issue(rig.folder, expired=True))


def test_plain_text_beyond_loopback_needs_a_word(rig: Rig) -> None:
    child = rig._start(["manage.py", "combiner", "--host", "0.0.0.0", "--port", "0"], "open", {})
    assert child.process.wait(30) != 0
    assert "--insecure" in child.log.read_text()
