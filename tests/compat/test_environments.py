"""The cache of environments: built once, found again, built anew when damaged, and honest about what is missing."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.compat import environments
from tests.compat.environments import Published, Unavailable

HERE = (sys.version_info[0], sys.version_info[1])
TINY = Published("tiny", ("tiny==1.0",), (HERE,))


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of the test's own, and an index with one small package."""
    wheels = str(make_wheel(tmp_path).parent)
    settings = {"STUDIO_COMPAT_CACHE": str(tmp_path / "cache")}
    settings |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "UV_NO_INDEX": "1", "UV_FIND_LINKS": wheels}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def make_wheel(folder: Path) -> Path:
    files = {
        "tiny.py": b"def main():\n    print('tiny runs')\n",
        "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny-1.0.dist-info/entry_points.txt": b"[console_scripts]\ntiny = tiny:main\n",
    }
    record = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b'=').decode()},{len(body)}"
        for name, body in files.items()
    ]
    files["tiny-1.0.dist-info/RECORD"] = "\n".join([*record, "tiny-1.0.dist-info/RECORD,,", ""]).encode()
    path = folder / "wheels" / "tiny-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return path


def built() -> Path:
    environments._environment.cache_clear()
    environments._version_of.cache_clear()
    return environments._environment(TINY).folder


def test_it_is_built_once_and_its_scripts_run_from_where_it_lies() -> None:
    folder = built()
    said = subprocess.run([folder / "bin" / "tiny"], capture_output=True, text=True, check=True)
    assert said.stdout == "tiny runs\n"
    before = folder.stat().st_ino
    assert built().stat().st_ino == before
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def whole(folder: Path) -> bool:
    environments._version_of.cache_clear()
    return environments.is_whole(folder, TINY)


def test_a_damaged_one_is_noticed_and_built_again() -> None:
    folder = built()
    [module] = folder.glob("lib/python3*/site-packages/tiny.py")
    for victim in (folder / environments._MARK, module, folder / "bin" / "python"):
        kept = victim.rename(victim.with_name("kept"))
        assert not whole(folder), victim
        kept.rename(victim)
        assert whole(folder), victim
    module.write_bytes(module.read_bytes()[:-1])
    assert not whole(folder)
    assert whole(built())


def test_a_dead_shim_on_the_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shims = tmp_path / "shims"
    versions = tmp_path / "pyenv" / "versions"
    for folder in (shims, versions / "9.9.1" / "bin", versions / "9.9.2" / "bin"):
        folder.mkdir(parents=True)
    script(shims / "python9.9", "echo 'python9.9: command not found' >&2; exit 127")
    script(versions / "9.9.2" / "bin" / "python", "exit 1")
    alive = script(versions / "9.9.1" / "bin" / "python", "echo 9.9.1")
    monkeypatch.setenv("PATH", f"{shims}:{os.environ['PATH']}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert environments.interpreter_for(Published("tiny", ("tiny==1.0",), ((9, 9),))) == ("9.9.1", alive)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_without_a_fitting_python_it_says_what_to_install() -> None:
    with pytest.raises(Unavailable, match=r"tiny==1\.0 needs Python 2\.7, and none that starts was found"):
        environments._environment(Published("tiny", ("tiny==1.0",), ((2, 7),)))


def test_what_the_installer_complains_about_is_passed_on() -> None:
    with pytest.raises(Unavailable, match=r"tiny==9\.9 cannot be installed: .*tiny==9\.9"):
        environments._environment(Published("tiny", ("tiny==9.9",), (HERE,)))
