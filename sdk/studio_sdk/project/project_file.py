"""The project file: which environment, which commands."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import ProjectFileError

PROJECT_FILES = ("studio.yaml", "scaleout.yaml", "fedn.yaml")
ENTRY_POINTS = ("build", "startup", "train", "validate")
FORMATS = ("safetensors", "npz")


@dataclass(frozen=True)
class ProjectFile:
    """What a project file says. Commands run in `folder`; `model_format` is how models are handed to them."""

    path: Path
    commands: dict[str, str]
    python_env: Path | None
    model_format: str

    @property
    def folder(self) -> Path:
        """The folder that holds the project file; commands run there."""
        return self.path.parent

    def command(self, entry_point: str) -> str:
        """The command of an entry point. Raises ProjectFileError when the project has none."""
        try:
            return self.commands[entry_point]
        except KeyError:
            raise ProjectFileError(f"{self.path.name} has no entry point `{entry_point}`.") from None


def find_project_file(folder: Path) -> Path:
    """The project file directly in `folder`. Raises ProjectFileError when there is none."""
    if not folder.is_dir():
        raise ProjectFileError(f"{folder} is not a folder.")
    for name in PROJECT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ProjectFileError(
        f"{folder} holds no project file: one of {', '.join(PROJECT_FILES)} is needed there."
    )


def find_in_package(folder: Path) -> Path:
    """The project file nearest to the top of an unpacked package."""
    found = [
        Path(root) / name for root, _dirs, files in os.walk(folder) for name in PROJECT_FILES if name in files
    ]
    if not found:
        raise ProjectFileError(
            f"The package holds no project file: one of {', '.join(PROJECT_FILES)} is needed."
        )
    return min(found, key=lambda path: (len(path.parts), PROJECT_FILES.index(path.name), str(path)))


def read_project_file(path: Path) -> ProjectFile:
    """Parse and check a project file. Raises ProjectFileError with what is wrong, where, and what would be
    right."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProjectFileError(f"{path.name} cannot be read as YAML: {_first_line(error)}") from None
    if not isinstance(content, dict):
        raise ProjectFileError(f"{path.name} is empty or no mapping; it needs `entry_points:`.")
    entries = content.get("entry_points")
    if not isinstance(entries, dict) or not entries:
        raise ProjectFileError(f"{path.name} needs `entry_points:` with at least one entry.")
    commands = {str(name): _command(path.name, str(name), entry) for name, entry in entries.items()}
    model_format = content.get("model_format", "safetensors" if path.name == "studio.yaml" else "npz")
    if model_format not in FORMATS:
        raise ProjectFileError(
            f"{path.name}: model_format is {model_format!r}; it may be {' or '.join(FORMATS)}."
        )
    return ProjectFile(path, commands, _python_env(path, content.get("python_env")), str(model_format))


def _command(file_name: str, name: str, entry: Any) -> str:
    if isinstance(entry, str):
        raise ProjectFileError(
            f"{file_name}: entry point `{name}` names a file to import ({entry!r}). That is Scaleout's "
            f"importer form, "
            f"which Scaleout's own client runs. Here it must be a mapping with `command: python {entry}`."
        )
    command = entry.get("command") if isinstance(entry, dict) else None
    if not isinstance(command, str) or not command.strip():
        raise ProjectFileError(f"{file_name}: entry point `{name}` needs `command:` with a shell command.")
    return command.strip()


def _python_env(path: Path, named: Any) -> Path | None:
    if named is None:
        return None
    if not isinstance(named, str) or not named:
        raise ProjectFileError(f"{path.name}: python_env must name a file such as python_env.yaml.")
    target = path.parent / named
    if not target.resolve().is_relative_to(path.parent.resolve()):
        raise ProjectFileError(f"{path.name}: python_env {named!r} lies outside the project.")
    if not target.is_file():
        raise ProjectFileError(
            f"{path.name} names the environment {named}, but there is no such file beside it."
        )
    return target


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
