"""Entry points as commands: what they see, how they end, and that nothing of them stays."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from studio_sdk.errors import ProjectFileError
from studio_sdk.project.entry_point import (
    CancelSwitch,
    EntryPointCancelled,
    EntryPointLate,
    Listeners,
    run_entry_point,
)
from studio_sdk.project.project_file import ProjectFile, read_project_file


def project(folder: Path, **commands: str) -> ProjectFile:
    path = folder / "studio.yaml"
    path.write_text(yaml.safe_dump({"entry_points": {name: {"command": c} for name, c in commands.items()}}))
    return read_project_file(path)


def _gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False
    return state == "Z"


def test_a_command_runs_in_its_folder_with_quoted_arguments(tmp_path: Path) -> None:
    lines: list[str] = []
    made = project(tmp_path, train="echo first && pwd && printf '%s\\n'")
    ended = run_entry_point(made, "train", ["a b; exit 9", "c'd"], listeners=Listeners(line=lines.append))
    assert ended.exit_code == 0
    assert lines == ["first", str(tmp_path), "a b; exit 9", "c'd"]


def test_the_exit_code_and_the_tail_of_the_output_are_kept(tmp_path: Path) -> None:
    ended = run_entry_point(project(tmp_path, train="seq 1 100; echo oops >&2; exit 3"), "train", [])
    assert ended.exit_code == 3
    assert ended.tail.splitlines()[-2:] == ["100", "oops"]
    assert "\n50\n" not in ended.tail


def test_a_stop_cuts_the_transfer_that_is_under_way_and_keeps_none_of_those_before() -> None:
    """A task may try for days; each try would keep its call."""
    cancel = CancelSwitch()
    cut: list[int] = []
    for number in range(3):
        cancel.cut_by(partial(cut.append, number))
    woken: list[None] = []
    wake = partial(woken.append, None)
    cancel.call(wake)
    cancel.call(wake)
    cancel.set()
    assert (cut, len(woken)) == ([2], 1)
    cancel.cut_by(partial(cut.append, 3))  # it was asked for before: at once
    assert cut == [2, 3]


def test_an_abort_ends_the_whole_process_group_within_five_seconds(
    tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    # the shell and its child both ignore the polite signal
    (tmp_path / "stubborn.sh").write_text(
        "trap '' TERM\nsleep 600 &\necho $! > child.pid\necho $$ > shell.pid\nwait\nsleep 600\n"
    )
    made = project(tmp_path, train="sh stubborn.sh")
    cancel = CancelSwitch()
    ended: list[float] = []

    def run() -> None:
        with pytest.raises(EntryPointCancelled):
            run_entry_point(made, "train", [], cancel=cancel)
        ended.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: (tmp_path / "shell.pid").exists() and (tmp_path / "shell.pid").read_text().strip())
    asked = time.monotonic()
    cancel.set()
    thread.join(10)
    assert ended and 1 < ended[0] - asked < 5, "it must have been killed, not asked"
    for name in ("child.pid", "shell.pid"):
        pid = int((tmp_path / name).read_text())
        wait_until(lambda pid=pid: _gone(pid), 1, f"{name} to be gone")


def test_one_that_hangs_is_stopped_at_its_deadline_with_its_last_words(tmp_path: Path) -> None:
    made = project(tmp_path, train="echo thinking; sleep 600")
    started = time.monotonic()
    with pytest.raises(EntryPointLate) as late:
        run_entry_point(made, "train", [], deadline=started + 1)
    assert time.monotonic() - started < 5
    assert late.value.tail == "thinking"


def test_what_a_command_leaves_running_goes_with_it(tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    made = project(tmp_path, train="sleep 600 & echo $! > pid")
    assert run_entry_point(made, "train", []).exit_code == 0
    wait_until(lambda: _gone(int((tmp_path / "pid").read_text())), 5, "the left-over to be gone")


def test_a_missing_entry_point_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProjectFileError, match="no entry point `validate`"):
        run_entry_point(project(tmp_path, train="true"), "validate", [])


def test_metrics_arrive_while_the_command_runs(tmp_path: Path) -> None:
    heard: list[tuple[dict[str, float], int]] = []
    (tmp_path / "t.py").write_text("from studio_sdk import log_metric\nlog_metric('loss', 0.5, step=2)\n")
    ended = run_entry_point(
        project(tmp_path, train="python t.py"),
        "train",
        [],
        listeners=Listeners(metrics=lambda v, s: heard.append((v, s))),
    )
    assert ended.exit_code == 0, ended.tail
    assert heard == [({"loss": 0.5}, 2)]


def test_terminal_control_sequences_do_not_pass(tmp_path: Path) -> None:
    ended = run_entry_point(project(tmp_path, train="printf 'a\\033[31mb\\n'"), "train", [])
    assert ended.tail == "a[31mb"


def test_a_cancel_that_came_before_the_start_still_stops_it(tmp_path: Path) -> None:
    cancel = CancelSwitch()
    cancel.set()
    with pytest.raises(EntryPointCancelled):
        run_entry_point(project(tmp_path, train="sleep 600"), "train", [], cancel=cancel)
