"""`python -m examples.digits.compression`, as somebody runs it who wonders whether to compress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.digits import compression
from federation.sessions.config.session import COMPRESSIONS

ROOT = Path(__file__).resolve().parent.parent


def test_it_compares_every_compression_that_a_session_may_have() -> None:
    assert set(compression.COMPRESSIONS) - {compression.DROPPED} == set(COMPRESSIONS)


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_trains_and_prints_a_table_and_a_line_of_json(tmp_path: Path) -> None:
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("STUDIO_")
        and key not in ("DATABASE_URL", "REDIS_URL", "STORAGE_URL", "DJANGO_SETTINGS_MODULE")
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "examples.digits.compression", "--rounds", "5", "--only", "none", "int8"],
        cwd=ROOT, env={**clean, "STUDIO_CACHE_DIR": str(tmp_path)}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        said, errors = child.communicate(timeout=240)
    finally:
        child.terminate()  # it stops its Studio; nothing happens to one that has ended
        child.wait(30)
    assert child.returncode == 0, errors
    *lines, last = said.splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["compression", "---", "none", "int8"]
    found = json.loads(last)
    none, int8 = found["compressions"]["none"], found["compressions"]["int8"]
    assert none["saved"] == 0 and 0.7 < int8["saved"] < 0.75
    assert int8["bytes_up_per_round"] == pytest.approx(
        (1 - int8["saved"]) * none["bytes_up_per_round"], rel=0.01
    )
    assert min(none["accuracy"], int8["accuracy"]) >= 0.90
    assert abs(none["accuracy"] - int8["accuracy"]) < 0.02
    assert int8["distance"] < 0.05
