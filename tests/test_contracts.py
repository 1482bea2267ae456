"""What must hold between the rooms of the house, and about what it is built from."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import call_command

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("studio", "federation", "clients_app", "projects", "foundation")
PINNED = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(\[[a-z0-9,_-]+\])?==[0-9][^\s;]*(\s*;.+)?$")


def sources(*rooms: str) -> Iterator[Path]:
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            if "migrations" not in path.parts and "_pb2" not in path.name:
                yield path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def test_no_import_runs_up_the_house() -> None:
    done = subprocess.run([str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_contract_sees_an_import_that_runs_up(tmp_path: Path) -> None:
    """The contract can fail: a copy of the tree with one wrong import is refused."""
    for room in ROOMS:
        for path in [*sources(room), *(ROOT / room).rglob("*_pb2*.py")]:
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    wrong = tmp_path / "foundation" / "upward.py"
    wrong.write_text("import projects.models\n")
    done = subprocess.run([str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=tmp_path,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode != 0
    assert "foundation.upward -> projects.models" in done.stdout


def test_aggregation_can_be_imported_without_django() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sources("federation/aggregation")
    ]
    script = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "bad = [n for n in sys.modules if n.split('.')[0] in ('django', 'grpc', 'celery', 'rest_framework')]\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_aggregation_uses_numpy_and_our_errors_only() -> None:
    allowed = {"numpy", "ml_dtypes", "safetensors", "foundation", "federation", "__future__"}
    for path in sources("federation/aggregation"):
        for name in imports(path):
            top = name.split(".")[0]
            assert top in allowed or top in sys.stdlib_module_names, f"{path.name} imports {name}"
            if top == "foundation":
                assert name == "foundation.errors", f"{path.name} imports {name}"
            if top == "federation":
                assert name.startswith("federation.aggregation"), f"{path.name} imports {name}"


def test_dialects_speak_no_sql_and_the_combiner_knows_no_dialect() -> None:
    for path in sources("federation/dialects"):
        assert not any(name.startswith(("django.db", "psycopg", "sqlite3")) for name in imports(path)), path
        assert ".objects." not in path.read_text(), path
    for path in sources("federation/combiner"):
        assert not any(name.startswith("federation.dialects") for name in imports(path)), path


def test_the_supervisor_knows_neither_django_nor_rows() -> None:
    for path in sources("studio/supervisor"):
        for name in imports(path):
            assert not name.startswith(("django", "federation", "projects", "clients_app", "foundation")), (
                path
            )


def test_the_ground_imports_nothing_of_ours() -> None:
    for path in sources("foundation"):
        for name in imports(path):
            assert name.split(".")[0] not in set(ROOMS) - {"foundation"}, f"{path}: {name}"


def test_the_sdk_needs_no_django_and_nothing_of_the_server() -> None:
    for path in sources("sdk/studio_sdk"):
        for name in imports(path):
            assert name.split(".")[0] not in {"django", "celery", *ROOMS}, f"{path}: {name}"


def test_no_room_is_an_attic() -> None:
    attics = {"utils.py", "helpers.py", "manager.py", "common.py", "misc.py"}
    assert [path for path in sources(*ROOMS, "sdk/studio_sdk") if path.name in attics] == []


def test_views_and_tasks_write_no_rows() -> None:
    """Writes go through services; a view, task, servicer or API module parses, calls and renders."""
    write = re.compile(
        r"\.objects\.(create|bulk_create|update_or_create|get_or_create)\(|\.save\(|\.delete\(\)"
    )
    doors = [p for p in sources(*ROOMS) if p.name in ("views.py", "api.py", "tasks.py", "consumers.py")]
    doors += [p for p in sources(*ROOMS) if p.parent.name in ("views", "api")]
    doors += list(sources("federation/dialects"))
    for path in doors:
        found = write.search(path.read_text())
        assert found is None, f"{path.relative_to(ROOT)}: {found.group(0) if found else ''}"


@pytest.mark.django_db
def test_every_model_change_has_its_migration() -> None:
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_requirements_are_fully_pinned_and_name_no_index(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line.strip()]
    pins = [line for line in lines if not line.lstrip().startswith("#")]
    assert len(pins) > 20
    assert [line for line in pins if not PINNED.match(line)] == []
    assert [line for line in lines if re.search(r"https?:|file:|--|@ ", line)] == []


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_every_asked_for_package_is_pinned(name: str) -> None:
    def normal(text: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split(r"[\[=~<>; ]", text.strip())[0]).lower()

    asked = [line for line in (ROOT / f"{name}.in").read_text().splitlines() if line and line[0] not in "#-"]
    pinned = {
        normal(line)
        for file in ("requirements.txt", "requirements-dev.txt")
        for line in (ROOT / file).read_text().splitlines()
        if line and line[0] not in "# "
    }
    assert [line for line in asked if normal(line) not in pinned] == []


def test_the_licence_is_apache_2_0_in_full() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_pages_load_nothing_from_elsewhere() -> None:
    for path in (ROOT / "templates").rglob("*.html"):
        found = re.search(r"""(src|href|action)=["'](https?:)?//""", path.read_text())
        assert found is None or found.group(1) == "href", f"{path}: {found}"
