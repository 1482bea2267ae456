"""The project file of a compute package (studio.yaml, scaleout.yaml or fedn.yaml) and its python_env."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from federation.models.archive import files_of, refused, shown
from foundation.plain_json import plain

# In one folder the first of these counts.
PROJECT_FILES = ("studio.yaml", "scaleout.yaml", "fedn.yaml")
MAX_YAML_BYTES = 64 << 10
MAX_COMMAND_CHARS = 4000
_ENTRY_POINT = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_IMPORTER_KEYS = {"module", "file", "python", "import", "importer", "callable", "function", "class"}


@dataclass(frozen=True)
class PackageContents:
    """What a compute package says of itself. `project_file` is its path in the archive; `entry_points` maps names
    to shell commands; `python_env` is the content of the file that the project file names, if any."""

    project_file: str
    entry_points: dict[str, str]
    python_env: dict[str, Any] | None


def read_package(path: Path) -> PackageContents:
    """Check a whole archive and read its project file. Raises StudioError `invalid_package` with one sentence."""
    found: dict[str, bytes] = {}
    for member in files_of(path):
        if posixpath.basename(member.name) in PROJECT_FILES and member.name.count("/") <= 1:
            if len(found) >= 64:
                raise refused("The archive holds dozens of project files; a package holds one.")
            found[member.name] = member.read(MAX_YAML_BYTES)
    name = _chosen(list(found))
    project = _load(name, found[name])
    entry_points = _entry_points(name, project.get("entry_points"))
    env_name = project.get("python_env")
    return PackageContents(name, entry_points, _python_env(path, name, env_name) if env_name else None)


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
                f"{name} uses Scaleout's importer form ({key} names Python code instead of a command); Scaleout's "
                f"own client runs that. Here an entry point is a command: “{key}: {{command: python {key}.py}}”."
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
