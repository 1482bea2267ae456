"""The project file of a compute package (studio.yaml, scaleout.yaml or fedn.yaml) and its python_env."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from federation.models.archive import files_of, refused, shown
from federation.models.choices import PackageForm
from foundation.plain_json import plain

# In one folder the first of these counts.
PROJECT_FILES = ("studio.yaml", "scaleout.yaml", "fedn.yaml")
MAX_YAML_BYTES = 64 << 10
MAX_COMMAND_CHARS = 4000
IMPORTER_FILE = "scaleout.yaml"  # the one project file whose entry points may be Python files
_ENTRY_POINT = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_IMPORTER_KEYS = {"module", "file", "python", "import", "importer", "callable", "function", "class"}


@dataclass(frozen=True)
class PackageContents:
    """What a compute package says of itself. `project_file` is its path in the archive; `entry_points` maps names
    to shell commands, or, in the importer form, to Python files beside the project file; `python_env` is the content
    of the file that the project file names, if any."""

    project_file: str
    form: PackageForm
    entry_points: dict[str, str]
    python_env: dict[str, Any] | None


def read_package(path: Path) -> PackageContents:
    """Check a whole archive and read its project file. Raises StudioError `invalid_package` with one sentence."""
    found: dict[str, bytes] = {}
    files: set[str] = set()
    for member in files_of(path):
        files.add(member.name)
        if posixpath.basename(member.name) in PROJECT_FILES and member.name.count("/") <= 1:
            if len(found) >= 64:
                raise refused("The archive holds dozens of project files; a package holds one.")
            found[member.name] = member.read(MAX_YAML_BYTES)
    name = _chosen(list(found))
    project = _load(name, found[name])
    given = project.get("entry_points")
    if posixpath.basename(name) == IMPORTER_FILE and isinstance(given, dict) and _imports(given):
        form, entry_points = PackageForm.IMPORTER, _importer_files(name, given, files)
    else:
        form, entry_points = PackageForm.COMMAND, _entry_points(name, given)
    env_name = project.get("python_env")
    return PackageContents(name, form, entry_points, _python_env(path, name, env_name) if env_name else None)


def _imports(given: dict[Any, Any]) -> bool:
    return any(isinstance(value, str) for value in given.values())


def _importer_files(name: str, given: dict[Any, Any], files: set[str]) -> dict[str, str]:
    """Each entry point names a file in which Scaleout's client finds a function of the entry point's name."""
    folder = posixpath.dirname(name)
    points: dict[str, str] = {}
    for key, value in given.items():
        if not isinstance(key, str) or not _ENTRY_POINT.fullmatch(key):
            raise refused(f"{name} has an entry point that is no name: {shown(str(key))}.")
        if not isinstance(value, str):
            raise refused(
                f"{name} mixes files and commands: {key} must name a Python file too, such as “{key}: {key}.py”."
            )
        if "/" in value or "\\" in value or not value.endswith(".py"):
            raise refused(
                f"The entry point {key} in {name} must name a Python file beside it, not {shown(value)}."
            )
        if posixpath.join(folder, value) not in files:
            raise refused(f"{name} names {shown(value)} for {key}, which is not in the archive.")
        points[key] = value
    if "startup" not in points:
        raise refused(
            f"{name} has no startup entry point; Scaleout's client runs “startup: startup.py” first."
        )
    return points


def _chosen(names: list[str]) -> str:
    """The project file that counts: in the archive's root, else one folder down."""
    if not names:
        raise refused(
            f"The archive has no project file: put a {', '.join(PROJECT_FILES[:-1])} or {PROJECT_FILES[-1]} in it, "
            "at the top or one folder down."
        )
    folders = sorted({posixpath.dirname(name) for name in names})
    if folders[0] and len(folders) > 1:
        raise refused(
            f"The archive has project files in several folders ({shown(folders[0])} and {shown(folders[1])}); "
            "a package holds one project."
        )
    here = [name for name in names if posixpath.dirname(name) == folders[0]]
    return min(here, key=lambda name: PROJECT_FILES.index(posixpath.basename(name)))


class _NoAliases(yaml.SafeLoader):
    """YAML whose aliases are refused: a few hundred bytes of them expand to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses aliases (*name), which are not read here")
        return super().compose_node(parent, index)


def _load(name: str, body: bytes) -> dict[str, Any]:
    try:
        content = yaml.load(body.decode("utf-8"), Loader=_NoAliases)  # noqa: S506  (a SafeLoader)
    except UnicodeDecodeError:
        raise refused(f"{name} is not UTF-8 text.") from None
    except yaml.MarkedYAMLError as error:
        where = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise refused(f"{name} is not valid YAML{where}: {error.problem or 'it cannot be read'}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, yaml.YAMLError) else "it cannot be read"
        raise refused(f"{name} is not valid YAML: {reason[:200]}.") from None
    if not isinstance(content, dict):
        raise refused(
            f"{name} must be a mapping with entry_points, such as “train: {{command: python train.py}}”."
        )
    return content


def _entry_points(name: str, given: Any) -> dict[str, str]:
    if not isinstance(given, dict) or not given:
        raise refused(f"{name} has no entry_points; it needs at least “train: {{command: python train.py}}”.")
    commands: dict[str, str] = {}
    for key, value in given.items():
        if not isinstance(key, str) or not _ENTRY_POINT.fullmatch(key):
            raise refused(f"{name} has an entry point that is no name: {shown(str(key))}.")
        if isinstance(value, str) or (
            isinstance(value, dict) and "command" not in value and _IMPORTER_KEYS & set(value)
        ):
            raise refused(
                f"{name} uses an importer form ({key} names Python code instead of a command). Scaleout's own client "
                f"takes file names, in a {IMPORTER_FILE}; here an entry point is a command: "
                f"“{key}: {{command: python {key}.py}}”."
            )
        command = value.get("command") if isinstance(value, dict) else None
        if not isinstance(command, str) or not command.strip():
            raise refused(
                f"The entry point {key} in {name} has no command, such as “command: python {key}.py”."
            )
        if len(command) > MAX_COMMAND_CHARS or "\x00" in command:
            raise refused(f"The command of {key} in {name} is longer than {MAX_COMMAND_CHARS} characters.")
        commands[key] = command.strip()
    if "train" not in commands:
        raise refused(f"{name} has no train entry point; every client is asked to train.")
    return commands


def _python_env(path: Path, project_file: str, named: Any) -> dict[str, Any]:
    if not isinstance(named, str):
        raise refused(f"python_env in {project_file} must be the name of a file, such as python_env.yaml.")
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(project_file), named))
    if named.startswith("/") or wanted.startswith(".."):
        raise refused(f"python_env in {project_file} names a file outside the package: {shown(named)}.")
    for member in files_of(path):
        if member.name == wanted:
            return _checked_env(wanted, _load(wanted, member.read(MAX_YAML_BYTES)))
    raise refused(f"{project_file} names {shown(named)} as python_env, which is not in the archive.")


def _checked_env(name: str, env: dict[str, Any]) -> dict[str, Any]:
    for key in ("build_dependencies", "dependencies"):
        pins = env.get(key)
        if pins is not None and not (isinstance(pins, list) and all(isinstance(pin, str) for pin in pins)):
            raise refused(f"{key} in {name} must be a list of requirements, such as “- numpy==2.1.0”.")
    kept = plain(env)
    assert isinstance(kept, dict)
    return kept
