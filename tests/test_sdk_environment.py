"""python_env.yaml: built once per content, whole or not at all, and pip's own reason when it cannot be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from studio_sdk.errors import EnvironmentBuildError, ProjectFileError
from studio_sdk.project.environment import environment_for, read_spec

BUILD = "import sys; from pathlib import Path; from studio_sdk.project.environment import *; "
BUILD += "print(environment_for(read_spec(Path(sys.argv[1])), lambda line: print(line, flush=True)))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A requirement that needs no package index: a wheel with one module and one script."""
    path = tmp_path_factory.mktemp("wheels") / "tinything-1.0-py3-none-any.whl"
    files = {
        "tinything.py": "def main():\n    import sys\n    print(sys.prefix)\n",
        "tinything-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n",
        "tinything-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tinything-1.0.dist-info/entry_points.txt": "[console_scripts]\ntinything = tinything:main\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        record = "".join(f"{name},,\n" for name in [*files, "tinything-1.0.dist-info/RECORD"])
        archive.writestr("tinything-1.0.dist-info/RECORD", record)
    return f"tinything @ file://{path}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STUDIO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def env_file(folder: Path, *requirements: str, name: str = "python_env.yaml") -> Path:
    path = folder / name
    path.write_text("name: t\ndependencies:\n" + "".join(f"  - {line}\n" for line in requirements))
    return path


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_half_made_and_three_clients_then_build_once(
    tmp_path: Path, cache: Path, wheel: str, wait_until: Callable[..., Any]
) -> None:
    path = env_file(tmp_path, wheel)
    killed = subprocess.Popen([sys.executable, "-c", BUILD, str(path)], stdout=subprocess.DEVNULL)
    wait_until(lambda: list(cache.glob("envs/.building-*/bin/python")), 60, "the build to begin")
    killed.kill()
    killed.wait()
    assert not [entry for entry in cache.glob("envs/*") if entry.is_dir() and not entry.name.startswith(".")]

    builders = [
        subprocess.Popen([sys.executable, "-c", BUILD, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [builder.communicate(timeout=110)[0].splitlines() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert len({lines[-1] for lines in outputs}) == 1
    assert sum("environment built" in lines for lines in outputs) == 1
    ready = Path(outputs[0][-1])
    script = subprocess.run([ready / "bin" / "tinything"], capture_output=True, text=True, check=True)
    assert script.stdout.strip() == str(ready)
    helper = subprocess.run(
        [ready / "bin" / "python", "-c", "import studio_sdk; print(studio_sdk.__file__)"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert helper.stdout.startswith(str(ready)), "the SDK's own wheel is in the environment"
    assert not list(cache.glob("envs/.building-*")), "what the killed build left is gone"


def test_a_pin_that_cannot_be_installed_ends_with_pips_reason(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(EnvironmentBuildError, match=r"pip says: ERROR.*numpy|no-such-thing") as failed:
        environment_for(read_spec(env_file(tmp_path, "no-such-thing==9.9")))
    assert failed.value.exit_code == 5
    assert not [entry for entry in cache.glob("envs/*") if entry.is_dir()]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("dependencies: numpy", "must be a list"),
        ("dependencies: ['--index-url=http://evil', numpy]", "only requirements"),
        ("[", "cannot be read as YAML"),
        ("- a", "must be a mapping"),
    ],
)
def test_a_wrong_python_env_gets_a_sentence(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "python_env.yaml").write_text(content)
    with pytest.raises(ProjectFileError, match=reason):
        read_spec(tmp_path / "python_env.yaml")


def test_a_python_that_is_not_here_is_named(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "python_env.yaml"
    path.write_text("python: '3.99'\ndependencies: []\n")
    with pytest.raises(EnvironmentBuildError, match=r"Python 3\.99"):
        environment_for(read_spec(path))


def test_other_requirements_make_another_environment(tmp_path: Path) -> None:
    one = read_spec(env_file(tmp_path, "numpy==2.0.0")).key
    assert one != read_spec(env_file(tmp_path, "numpy==2.0.1")).key
    assert one == read_spec(env_file(tmp_path, "numpy==2.0.0", name="again.yaml")).key


def test_ctrl_c_ends_a_build_with_its_installer(
    tmp_path: Path, cache: Path, wheel: str, wait_until: Callable[..., Any]
) -> None:
    folder = tmp_path / "client"
    folder.mkdir()
    env_file(folder, wheel)
    (folder / "studio.yaml").write_text(
        "python_env: python_env.yaml\nentry_points: {train: {command: 'true'}}\n"
    )
    (tmp_path / "client.yaml").write_text("name: a\napi_url: http://127.0.0.1:1\ntoken: x\n")
    client = subprocess.Popen(
        [sys.executable, "-m", "studio_sdk.cli.main", "client", "start", "-in", "client.yaml", "--path", "client"],
        cwd=tmp_path, env=dict(os.environ), stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_until(lambda: list(cache.glob("envs/.building-*/bin/python")), 60, "the build to begin")
    client.send_signal(signal.SIGINT)
    _, said = client.communicate(timeout=10)
    assert client.returncode == 0, said.decode()
    assert not list(cache.glob("envs/.building-*"))
