"""studio.v1 stays one protocol: both sides hold the same generated code, and no field of the first release changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from federation.dialects.native import studio_v1_pb2 as ours

ROOT = Path(__file__).resolve().parent.parent

# what a client or combiner of the first release sends and reads: name and type of each field, by number
FIRST_RELEASE = {
    "Hello": "1 protocol uint32, 2 client_version string, 3 holds string*, 4 attributes_json string, "
    "5 can_validate bool",
    "Received": "1 assignment_id string",
    "Progress": "1 assignment_id string, 2 fraction double, 3 note string",
    "Metrics": "1 assignment_id string, 2 values ValuesEntry*, 3 step int64",
    "Validation": "1 assignment_id string, 2 data_json string, 3 num_examples double",
    "Failure": "1 assignment_id string, 2 reason string, 3 exit_code int32, 4 log_tail string",
    "Log": "1 assignment_id string, 2 level string, 3 text string",
    "Telemetry": "1 values ValuesEntry*",
    "Attributes": "1 attributes_json string",
    "Bye": "1 reason string",
    "Welcome": "1 protocol uint32, 2 server_version string, 3 combiner string, 4 client_id string, "
    "5 client_name string",
    "Task": "1 assignment_id string, 2 kind string, 3 session_id string, 4 session_name string, 5 round uint32, "
    "6 model_id string, 7 model_sha256 string, 8 model_size uint64, 9 package_id string, 10 package_sha256 string, "
    "11 settings_json string, 12 deadline_unix_s double",
    "Cancel": "1 assignment_id string, 2 reason string",
    "Ack": "1 assignment_id string, 2 status string, 3 reason string",
    "Goodbye": "1 code string, 2 reason string, 3 retry bool",
    "UploadStatusRequest": "1 assignment_id string, 2 upload_id string, 3 size uint64",
    "UploadStatusReply": "1 offset uint64, 2 receipt Receipt",
    "UploadChunk": "1 head UploadHead, 2 data bytes, 3 tail UploadTail",
    "UploadHead": "1 assignment_id string, 2 upload_id string, 3 size uint64, 4 offset uint64",
    "UploadTail": "1 sha256 string, 2 num_examples double, 3 metadata_json string",
    "Receipt": "1 status Status, 2 reason string",
    "DownloadRequest": "1 assignment_id string, 2 model_id string, 3 offset uint64",
    "DownloadChunk": "1 offset uint64, 2 size uint64, 3 data bytes, 4 sha256 string",
    "ClientMessage": "1 hello Hello, 2 received Received, 3 progress Progress, 4 metrics Metrics, "
    "5 validation Validation, 6 failure Failure, 7 log Log, 8 telemetry Telemetry, 9 attributes Attributes, 10 bye Bye",
    "ServerMessage": "1 welcome Welcome, 2 task Task, 3 cancel Cancel, 4 ack Ack, 5 goodbye Goodbye",
}


def test_the_generated_code_of_both_sides_is_that_of_the_proto_file(tmp_path: Path) -> None:
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", "sdk/studio_sdk", *out, "studio_v1.proto"],
        cwd=ROOT,
        check=True,
    )
    for package in ("federation.dialects.native", "studio_sdk"):
        folder = ROOT / "sdk" / package if package == "studio_sdk" else ROOT / package.replace(".", "/")
        for made in tmp_path.iterdir():
            # the plugin knows no packages: its one import is written out
            expected = made.read_text().replace(
                "\nimport studio_v1_pb2", f"\nfrom {package} import studio_v1_pb2"
            )
            assert (folder / made.name).read_text() == expected, folder / made.name


def written(message: object) -> dict[int, str]:
    kinds = {
        1: "double",
        3: "int64",
        4: "uint64",
        5: "int32",
        8: "bool",
        9: "string",
        12: "bytes",
        13: "uint32",
    }
    return {
        field.number: f"{field.number} {field.name} "
        + (
            field.message_type.name
            if field.message_type
            else field.enum_type.name
            if field.enum_type
            else kinds[field.type]
        )
        + ("*" if field.is_repeated else "")
        for field in message.DESCRIPTOR.fields  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize("name", sorted(FIRST_RELEASE))
def test_no_field_of_the_first_release_changed(name: str) -> None:
    """Protocol 1 grows by new fields only: older clients leave them out and step over them."""
    now = written(getattr(ours, name))
    for field in FIRST_RELEASE[name].split(", "):
        assert now.get(int(field.split()[0])) == field


def test_every_message_of_the_wire_is_held_to_it() -> None:
    new = {"UploadStart"}  # messages that the first release did not have
    assert set(ours.DESCRIPTOR.message_types_by_name) - new == set(FIRST_RELEASE)
