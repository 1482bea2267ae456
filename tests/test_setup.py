"""`make setup` on machines that lack something: a sentence that helps, never a traceback, never half an environment."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = "http://127.0.0.1:9/simple"


class Checkout:
    """A fresh clone with its own requirements, and a machine whose programs we choose."""

    def __init__(self, home: Path) -> None:
        self.root = home / "clone"
        (self.root / "deploy").mkdir(parents=True)
        for name in ("Makefile", "deploy/setup.sh", "deploy/bootstrap.py"):
            shutil.copy(ROOT / name, self.root / name)
        self.requires("")
        self.bin = home / "bin"
        self.bin.mkdir()
        for tool in ("sh", "make", "dirname", "sed"):
            found = shutil.which(tool)
            assert found
            (self.bin / tool).symlink_to(found)
        self.env = {
            "PATH": str(self.bin), "HOME": str(home), "STUDIO_PYTHON_PLACES": "", "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": NOWHERE, "PIP_RETRIES": "1", "PIP_DEFAULT_TIMEOUT": "60", "LANG": "C.UTF-8",
        }  # fmt: skip

    def requires(self, lines: str) -> None:
        (self.root / "requirements.txt").write_text(lines)
        (self.root / "requirements-dev.txt").write_text("")

    def program(self, name: str, script: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def real_python(self, name: str = "python3", **hidden: str) -> None:
        """The Python that runs this test, by a wrapper; as `sys.executable` it names itself truly."""
        base = getattr(sys, "_base_executable", sys.executable)
        self.program(name, f'exec "{base}" "$@"')

    def setup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", "setup", *arguments], cwd=self.root, env=self.env, capture_output=True,
                              text=True, timeout=100, check=False)  # fmt: skip

    def refused(self, *arguments: str) -> str:
        done = self.setup(*arguments)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr + done.stdout
        return done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_no_python_at_all_is_a_sentence(checkout: Checkout) -> None:
    assert "Studio needs Python 3.11, 3.12 or 3.13, and none was found." in checkout.refused()


def test_another_python_is_named(checkout: Checkout) -> None:
    checkout.program("python3", "echo version 3.9")
    said = checkout.refused()
    assert "needs Python 3.11, 3.12 or 3.13" in said
    assert f"only Python 3.9 at {checkout.bin}/python3" in said


def test_a_missing_venv_module_is_named_with_what_to_install(checkout: Checkout) -> None:
    hide = "import sys; sys.modules['ensurepip'] = None; exec(sys.argv[1])"
    checkout.program("python3", f'exec "{sys.executable}" -I -c "{hide}" "$3"')
    said = checkout.refused()
    release = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert "lacks the venv module" in said
    assert f"apt install python{release}-venv" in said


def test_a_python_given_by_name_that_does_not_start_is_named(checkout: Checkout) -> None:
    assert "PYTHON=/no/such/python does not start" in checkout.refused("PYTHON=/no/such/python")


def test_an_unreachable_index_is_a_sentence_and_leaves_nothing_that_is_trusted(checkout: Checkout) -> None:
    checkout.real_python()
    checkout.requires("attrs==26.1.0\n")
    for _ in range(2):
        said = checkout.refused()
        assert "the package index cannot be reached" in said
        log = checkout.root / ".setup" / "pip.log"
        assert str(log) in said
        assert log.stat().st_size > 0
    checkout.requires("")
    assert checkout.setup().returncode == 0


def test_dead_shims_are_passed_over(checkout: Checkout) -> None:
    checkout.program("python3", "echo 'pyenv: version 3.12 is not installed' >&2; exit 127")
    (checkout.bin / "python3.13").symlink_to("/no/such/python")
    checkout.real_python("python3.11")
    done = checkout.setup()
    assert done.returncode == 0, done.stderr


def test_the_second_run_takes_under_a_second_and_changed_requirements_are_installed(
    checkout: Checkout,
) -> None:
    checkout.real_python()
    assert checkout.setup().returncode == 0
    start = time.monotonic()
    assert checkout.setup().returncode == 0
    assert time.monotonic() - start < 1.0
    checkout.requires("attrs==26.1.0\n")
    assert "cannot be reached" in checkout.refused()


def test_a_killed_installation_is_made_anew(checkout: Checkout) -> None:
    checkout.real_python()
    with socket.socket() as silent:  # an index that takes the question and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        checkout.env["PIP_INDEX_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        checkout.requires("attrs==26.1.0\n")
        with subprocess.Popen(["make", "setup"], cwd=checkout.root, env=checkout.env, start_new_session=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as making:  # fmt: skip
            silent.settimeout(60)
            connection, _ = silent.accept()
            os.killpg(making.pid, signal.SIGKILL)
            connection.close()
    half = checkout.root / ".venv" / "bin" / "half-installed"
    half.write_text("")
    checkout.requires("")
    done = checkout.setup()
    assert done.returncode == 0, done.stderr
    assert "Making .venv" in done.stderr
    assert not half.exists()


def test_a_moved_folder_gets_a_new_environment(checkout: Checkout) -> None:
    checkout.real_python()
    assert checkout.setup().returncode == 0
    elsewhere = checkout.root.with_name("moved")
    checkout.root.rename(elsewhere)
    checkout.root = elsewhere
    done = checkout.setup()
    assert done.returncode == 0, done.stderr
    assert "Making .venv" in done.stderr


def test_two_setups_at_once_do_not_disturb_each_other(checkout: Checkout) -> None:
    checkout.real_python()
    both = [
        subprocess.Popen(["make", "setup"], cwd=checkout.root, env=checkout.env, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=100)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "".join(said).count("Making .venv") == 1


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "zsh", "ksh"])
def test_the_script_is_plain_sh(shell: str) -> None:
    found = shutil.which(shell)
    if found:
        subprocess.run([found, "-n", str(ROOT / "deploy" / "setup.sh")], check=True)


def test_the_makefile_needs_nothing_newer_than_make_3_81() -> None:
    text = (ROOT / "Makefile").read_text()
    for newer in (".ONESHELL", ".SHELLFLAGS", "$(file ", "&:", "!=", "undefine"):
        assert newer not in text


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "CI=true" in script and script.rstrip().endswith("make test")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make test" in (ROOT / "README.md").read_text()
