"""Compute packages: what goes in, always the same bytes, and what is refused."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from studio_sdk.errors import PackageError, ProjectFileError
from studio_sdk.project.archive import create_package, unpack
from studio_sdk.project.project_file import find_in_package, find_project_file, read_project_file

STUDIO_YAML = "entry_points:\n  train: {command: python train.py}\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "client"
    folder.mkdir()
    (folder / "studio.yaml").write_text(STUDIO_YAML)
    (folder / "train.py").write_text("print('hello')\n")
    return folder


def test_the_same_content_makes_the_same_sha256_whenever_and_wherever(project: Path, tmp_path: Path) -> None:
    first = create_package(project, tmp_path / "one.tgz")
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for name in ("train.py", "studio.yaml"):  # another order of creation, other times
        (copy / name).write_text((project / name).read_text())
        os.utime(copy / name, (1, 1))
    assert create_package(copy, tmp_path / "two.tgz").sha256 == first.sha256


def test_other_content_makes_another_sha256(project: Path, tmp_path: Path) -> None:
    first = create_package(project, tmp_path / "one.tgz")
    (project / "train.py").write_text("print('hullo')\n")
    assert create_package(project, tmp_path / "two.tgz").sha256 != first.sha256


def test_ignore_follows_gitignores_rules(project: Path, tmp_path: Path) -> None:
    (project / ".ignore").write_text("*.npz\n!keep.npz\n/data/\nlogs/**/x.txt\n")
    for name in (
        "a.npz",
        "keep.npz",
        "data/big.bin",
        "sub/data/small.bin",
        "logs/deep/er/x.txt",
        "logs/y.txt",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    names = create_package(project, tmp_path / "p.tgz").names
    assert names == (".ignore", "keep.npz", "logs/y.txt", "studio.yaml", "sub/data/small.bin", "train.py")


def test_git_virtual_environments_caches_and_links_stay_at_home(project: Path, tmp_path: Path) -> None:
    for name in (
        ".git/config",
        "my-venv/pyvenv.cfg",
        "my-venv/lib/x.py",
        "__pycache__/train.pyc",
        "sub/.git/config",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    (project / "link").symlink_to("/etc/passwd")
    assert create_package(project, tmp_path / "p.tgz").names == ("studio.yaml", "train.py")


def test_a_package_written_into_its_own_folder_does_not_hold_itself(project: Path) -> None:
    first = create_package(project, project / "package.tgz")
    assert create_package(project, project / "package.tgz").sha256 == first.sha256


def test_a_folder_without_project_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProjectFileError, match=r"studio\.yaml, scaleout\.yaml, fedn\.yaml"):
        create_package(tmp_path, tmp_path / "p.tgz")


def test_what_was_packed_is_what_is_unpacked(project: Path, tmp_path: Path) -> None:
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o755)
    made = create_package(project, tmp_path / "p.tgz")
    unpack(made.path, tmp_path / "out")
    assert (tmp_path / "out/train.py").read_text() == "print('hello')\n"
    assert os.access(tmp_path / "out/run.sh", os.X_OK)


def _archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (tarfile.TarInfo("/etc/evil"), "leads out"),
        (tarfile.TarInfo("a/../../evil"), "leads out"),
        (_link("l", "/etc/passwd", tarfile.SYMTYPE), "link or device"),
        (_link("h", "studio.yaml", tarfile.LNKTYPE), "link or device"),
        (_link("d", "", tarfile.CHRTYPE), "link or device"),
    ],
)
def test_a_package_that_reaches_out_leaves_nothing(
    tmp_path: Path, member: tarfile.TarInfo, reason: str
) -> None:
    archive = _archive(
        tmp_path / "p.tgz", (tarfile.TarInfo("studio.yaml"), STUDIO_YAML.encode()), (member, b"")
    )
    with pytest.raises(PackageError, match=reason):
        unpack(archive, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.tgz"]


def test_a_broken_archive_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "p.tgz").write_bytes(b"not an archive")
    with pytest.raises(PackageError, match="cannot be unpacked"):
        unpack(tmp_path / "p.tgz", tmp_path / "out")


def test_the_project_file_nearest_the_top_counts(tmp_path: Path) -> None:
    for name in ("a/b/studio.yaml", "a/scaleout.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(STUDIO_YAML)
    assert find_in_package(tmp_path) == tmp_path / "a/scaleout.yaml"


@pytest.mark.parametrize(("name", "model_format"), [("studio.yaml", "safetensors"), ("fedn.yaml", "npz")])
def test_all_project_files_are_understood(tmp_path: Path, name: str, model_format: str) -> None:
    (tmp_path / name).write_text(STUDIO_YAML)
    project = read_project_file(find_project_file(tmp_path))
    assert project.command("train") == "python train.py"
    assert project.model_format == model_format


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("entry_points: {train: train.py}", "importer form"),
        ("entry_points: {train: {cmd: x}}", "needs `command:`"),
        ("entry_points: {}", "at least one"),
        ("- a list", "no mapping"),
        ("a: [", "cannot be read as YAML"),
        ("python_env: nowhere.yaml\n" + STUDIO_YAML, "no such file"),
        ("python_env: ../../etc/passwd\n" + STUDIO_YAML, "outside the project"),
        ("model_format: pickle\n" + STUDIO_YAML, "safetensors or npz"),
    ],
)
def test_a_wrong_project_file_gets_a_sentence(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "scaleout.yaml").write_text(content)
    with pytest.raises(ProjectFileError, match=reason):
        read_project_file(tmp_path / "scaleout.yaml")


def test_package_create_from_the_command_line_prints_the_sha256(project: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "studio_sdk.cli.main", "package", "create"]
    good = subprocess.run(
        [*command, "--path", str(project), "--output", str(tmp_path / "p.tgz")],
        capture_output=True,
        text=True,
    )
    assert good.returncode == 0
    assert create_package(project, tmp_path / "q.tgz").sha256 in good.stdout
    bad = subprocess.run([*command, "--path", str(tmp_path / "client/..")], capture_output=True, text=True)
    assert bad.returncode == 4
    assert bad.stderr.count("\n") == 1
