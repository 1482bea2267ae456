"""The SDK's own wheel, made from the installed files: it is on no package index.

Entry points need the helper functions only, so the wheel asks for numpy and nothing else: a package is free
to pin its own gRPC or protobuf.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from ..version import VERSION

_NAME = f"studio_sdk-{VERSION}"
_METADATA = f"""Metadata-Version: 2.1
Name: studio-sdk
Version: {VERSION}
Summary: The helper functions of Studio's compute packages
Requires-Python: >=3.11
Requires-Dist: numpy>=1.26
"""
_WHEEL = "Wheel-Version: 1.0\nGenerator: studio-sdk\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def source_files() -> dict[str, bytes]:
    """The SDK's files as installed here, by their name in the wheel."""
    top = Path(__file__).resolve().parent.parent
    return {
        f"studio_sdk/{path.relative_to(top).as_posix()}": path.read_bytes()
        for path in sorted(top.rglob("*"))
        if path.is_file() and path.suffix in {".py", ".pyi", ".proto", ".typed"}
    }


def source_digest() -> str:
    """Changes when the SDK's files do: an environment built with other files is another environment."""
    digest = hashlib.sha256()
    for name, content in source_files().items():
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def build_wheel(folder: Path) -> Path:
    """Write the wheel into `folder` and return its path."""
    files = source_files()
    info = f"{_NAME}.dist-info"
    files[f"{info}/METADATA"] = _METADATA.encode()
    files[f"{info}/WHEEL"] = _WHEEL.encode()
    record = "".join(f"{name},{_digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"{_NAME}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            wheel.writestr(entry, content)
    return path


def _digest(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
