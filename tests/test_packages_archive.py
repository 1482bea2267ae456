"""What a compute package may be, and the sentence for everything it may not be."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.models import archive
from federation.models.choices import PackageForm
from federation.models.project_file import PackageContents, read_package
from foundation.errors import StudioError
from tests.archives import STUDIO_YAML, tar_bytes

TRAIN = "entry_points: {train: {command: python train.py}}\n"


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], PackageContents]:
    def read(body: bytes) -> PackageContents:
        path = tmp_path / "package"
        path.write_bytes(body)
        return read_package(path)

    return read


@pytest.fixture
def sentence(read: Callable[[bytes], PackageContents]) -> Callable[[bytes], str]:
    """The sentence with which an archive is refused."""

    def refusal(body: bytes) -> str:
        with pytest.raises(StudioError) as refused:
            read(body)
        assert (refused.value.code, refused.value.status) == ("invalid_package", 400)
        assert refused.value.message.endswith(".") or refused.value.message.endswith("”.")
        return refused.value.message

    return refusal


def adding(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "", size: int = 0) -> bytes:
    def more(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, linkname, size
        tar.addfile(info, io.BytesIO(bytes(size)))

    return tar_bytes(more=more)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2"])
def test_an_archive_with_a_project_file_is_understood(
    mode: str, read: Callable[[bytes], PackageContents]
) -> None:
    contents = read(tar_bytes(mode=mode))
    assert contents.project_file == "studio.yaml"
    assert contents.entry_points == {"train": "python train.py", "validate": "python validate.py"}
    assert contents.python_env is None


@pytest.mark.parametrize("name", ["studio.yaml", "scaleout.yaml", "fedn.yaml"])
@pytest.mark.parametrize("folder", ["", "./", "client/"])
def test_each_project_file_is_found_at_the_top_or_one_folder_down(
    name: str, folder: str, read: Callable[[bytes], PackageContents]
) -> None:
    contents = read(tar_bytes({f"{folder}{name}": STUDIO_YAML}))
    assert contents.project_file == f"{folder}{name}".removeprefix("./")


def test_at_the_top_studio_yaml_counts_before_the_others(read: Callable[[bytes], PackageContents]) -> None:
    other = b"entry_points: {train: {command: other}}"
    contents = read(tar_bytes({"fedn.yaml": other, "sub/studio.yaml": other, "studio.yaml": STUDIO_YAML}))
    assert contents.entry_points["train"] == "python train.py"


def test_the_python_env_that_the_project_file_names_is_read(read: Callable[[bytes], PackageContents]) -> None:
    files = {
        "client/python_env.yaml": b"name: digits\nbuild_dependencies: [pip]\ndependencies:\n- numpy==2.1.0\n",
        "client/fedn.yaml": b"python_env: python_env.yaml\n" + TRAIN.encode(),
    }
    assert read(tar_bytes(files)).python_env == {
        "name": "digits",
        "build_dependencies": ["pip"],
        "dependencies": ["numpy==2.1.0"],
    }


HOSTILE = [
    ("absolute path", adding("/etc/passwd"), "absolute path"),
    ("windows absolute path", adding("C:\\windows\\x"), "absolute path"),
    ("climbing path", adding("a/../../x"), "“..”"),
    ("climbing path with backslashes", adding("a\\..\\..\\x"), "“..”"),
    ("symbolic link", adding("x", tarfile.SYMTYPE, "/etc/passwd"), "a link: x"),
    ("hard link", adding("x", tarfile.LNKTYPE, "studio.yaml"), "a link: x"),
    ("character device", adding("x", tarfile.CHRTYPE), "device or a pipe"),
    ("block device", adding("x", tarfile.BLKTYPE), "device or a pipe"),
    ("pipe", adding("x", tarfile.FIFOTYPE), "device or a pipe"),
    ("sparse file", adding("x", tarfile.GNUTYPE_SPARSE), "neither file nor folder"),
    ("name twice", adding("studio.yaml"), "twice"),
    ("control characters", adding("a\nb"), "control characters"),
    ("long name", adding("a" * 201), "too long"),
    ("deep name", adding("a/" * 60 + "b"), "too long or too deep"),
    ("no project file", tar_bytes({"train.py": b""}), "no project file"),
    ("project file too deep", tar_bytes({"a/b/studio.yaml": STUDIO_YAML}), "no project file"),
    ("two projects", tar_bytes({"a/fedn.yaml": STUDIO_YAML, "b/fedn.yaml": STUDIO_YAML}), "several folders"),
    ("empty archive", tar_bytes({}), "The archive is empty"),
    ("empty file", b"", "this file is empty"),
    ("text", b"hello", "no such archive"),
    ("gzip of text", gzip.compress(b"hello" * 1000), "no tar archive"),
]


@pytest.mark.parametrize(("body", "says"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_a_hostile_archive_is_refused_with_a_sentence(
    body: bytes, says: str, sentence: Callable[[bytes], str]
) -> None:
    assert says in sentence(body)


def test_a_zip_is_refused_naming_what_is_accepted(sentence: Callable[[bytes], str]) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive_file:
        archive_file.writestr("studio.yaml", STUDIO_YAML)
    said = sentence(out.getvalue())
    assert "zip" in said
    assert ".tgz, .tar.gz or .tar.bz2" in said


@pytest.mark.parametrize("cut", [0.3, 0.9, 0.995])
def test_an_archive_that_is_cut_short_is_refused(cut: float, sentence: Callable[[bytes], str]) -> None:
    whole = tar_bytes({"studio.yaml": STUDIO_YAML, "data": bytes(range(256)) * 100})
    assert "damaged" in sentence(whole[: int(len(whole) * cut)])


def test_a_flipped_bit_is_found_by_the_checksum(sentence: Callable[[bytes], str]) -> None:
    whole = bytearray(tar_bytes())
    whole[-6] ^= 1
    assert "damaged" in sentence(bytes(whole))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2"])
def test_a_bomb_is_refused_in_little_memory(mode: str, sentence: Callable[[bytes], str]) -> None:
    body = tar_bytes({"studio.yaml": STUDIO_YAML, "zeros": bytes(64 << 20)}, mode=mode)
    tracemalloc.start()
    try:
        assert "100 times its size" in sentence(body)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_in_a_header_is_refused_in_little_memory(sentence: Callable[[bytes], str]) -> None:
    body = adding("x", b"x", size=12 << 20)  # an extended header, which tarfile reads whole
    tracemalloc.start()
    try:
        assert "absurd length" in sentence(body)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_more_bytes_than_allowed_are_refused(
    sentence: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1 << 20)
    assert "more than 1 MiB" in sentence(tar_bytes({"studio.yaml": STUDIO_YAML, "data": bytes(2 << 20)}))


def test_more_members_than_allowed_are_refused(sentence: Callable[[bytes], str]) -> None:
    assert "more than 20000 files" in sentence(tar_bytes({f"f{n}": b"" for n in range(20_001)}))


PROJECT_FILES = [
    ("no train", "entry_points: {validate: {command: x}}", "no train entry point"),
    ("no entry points", "python_env: x", "no entry_points"),
    ("a list", "- a\n- b", "must be a mapping"),
    ("no command", "entry_points: {train: {cmd: x}}", "train in studio.yaml has no command"),
    ("empty command", "entry_points: {train: {command: ' '}}", "has no command"),
    ("bad yaml", "entry_points: {train: [", "not valid YAML at line"),
    ("code", "entry_points: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ("aliases", "a: &a [1]\nb: *a\n" + TRAIN, "aliases"),
    ("deep nesting", "[" * 5000, "not valid YAML"),
    ("too large", "#" * (65 << 10), "at most 65536"),
    ("importer, a file", "entry_points: {startup: startup.py}", "in a scaleout.yaml"),
    ("importer, a module", "entry_points: {train: {module: train}}", "in a scaleout.yaml"),
    ("missing env", "python_env: env.yaml\n" + TRAIN, "not in the archive"),
    ("climbing env", "python_env: ../env.yaml\n" + TRAIN, "outside the package"),
    ("env no name", "python_env: [a]\n" + TRAIN, "name of a file"),
]


@pytest.mark.parametrize(
    ("text", "says"), [row[1:] for row in PROJECT_FILES], ids=[row[0] for row in PROJECT_FILES]
)
def test_a_project_file_that_cannot_be_run_is_refused_with_a_sentence(
    text: str, says: str, sentence: Callable[[bytes], str]
) -> None:
    assert says in sentence(tar_bytes({"studio.yaml": text.encode()}))


IMPORTER_FILES = [
    ("no such file", "entry_points: {startup: start.py}", "which is not in the archive"),
    ("a folder below", "entry_points: {startup: code/startup.py}", "a Python file beside it"),
    ("a folder above", "entry_points: {startup: ../startup.py}", "a Python file beside it"),
    ("absolute", "entry_points: {startup: /etc/startup.py}", "a Python file beside it"),
    ("no Python", "entry_points: {startup: startup.sh}", "a Python file beside it"),
    ("a mixture", "entry_points: {startup: startup.py, train: {command: x}}", "mixes files and commands"),
    ("no startup", "entry_points: {build: startup.py}", "no startup entry point"),
    ("no name", "entry_points: {startup: startup.py, '../x': startup.py}", "is no name"),
]


@pytest.mark.parametrize(
    ("text", "says"), [row[1:] for row in IMPORTER_FILES], ids=[row[0] for row in IMPORTER_FILES]
)
def test_an_importer_package_that_scaleouts_client_could_not_start_is_refused(
    text: str, says: str, sentence: Callable[[bytes], str]
) -> None:
    files = {
        "client/scaleout.yaml": text.encode(),
        "client/startup.py": b"",
        "startup.sh": b"",
        "start.py": b"",
    }
    assert says in sentence(tar_bytes(files))


@pytest.mark.parametrize("folder", ["", "client/"])
def test_scaleouts_importer_form_names_files_of_the_package(
    folder: str, read: Callable[[bytes], PackageContents]
) -> None:
    files = {
        f"{folder}scaleout.yaml": b"entry_points: {startup: startup.py, build: build.py}",
        f"{folder}startup.py": b"",
        f"{folder}build.py": b"",
    }
    contents = read(tar_bytes(files))
    assert contents.form == PackageForm.IMPORTER
    assert contents.entry_points == {"startup": "startup.py", "build": "build.py"}


def test_a_scaleout_yaml_with_commands_is_a_command_package(
    read: Callable[[bytes], PackageContents],
) -> None:
    assert read(tar_bytes({"scaleout.yaml": STUDIO_YAML})).form == PackageForm.COMMAND


def test_an_alias_bomb_is_refused_at_once(sentence: Callable[[bytes], str]) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    assert "aliases" in sentence(tar_bytes({"studio.yaml": "\n".join(lines).encode()}))


def test_dependencies_that_are_no_list_are_refused(sentence: Callable[[bytes], str]) -> None:
    files = {"studio.yaml": f"python_env: e.yaml\n{TRAIN}".encode(), "e.yaml": b"dependencies: numpy"}
    assert "must be a list of requirements" in sentence(tar_bytes(files))
