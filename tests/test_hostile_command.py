"""The command line over the whole corpus: `inspect --json` says of every file what it is, and outlives all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from corpus import CORPUS, ROOT, check_words, lay_out, touched
from hostile.assemble import Case

KEYS = {
    "format", "verdict", "reason", "sha256", "tensors", "parameters", "dtypes", "architecture", "epoch", "metrics",
}  # fmt: skip
MEGABYTES = 2048  # of the command with torch in it, and of any process that it starts
# Tried as data too, whose reader says in its own words what they are.
AS_DATA = (".png", ".jpg", ".7z")
# Runs a command and prints its peak memory; in between, because Linux counts that of whoever forks as the forked's.
MEASURED = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10))
sys.exit(status)
"""


@dataclass(frozen=True)
class Done:
    rows: dict[str, dict[str, Any]]
    status: int
    said: str
    megabytes: int


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def paths(base: Path) -> dict[str, Path]:
    return lay_out(base)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("command")


@pytest.fixture(scope="module")
def done(paths: dict[str, Path], scratch: Path) -> list[Done]:
    """Run the command over one half of the files and, beside it, over the other."""
    files = [str(each) for each in paths.values()]
    settled = {**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    running = []
    for half in (0, 1):
        command = [sys.executable, "-c", MEASURED, str(scratch.parent / f"peak-{half}")]
        command += [sys.executable, "-m", "workspace", "inspect", "--json", *files[half::2]]
        with (scratch.parent / f"out-{half}").open("w") as out, (scratch.parent / f"err-{half}").open("w") as err:
            running.append(subprocess.Popen(command, cwd=ROOT, env=settled, stdout=out, stderr=err))
    return [_waited(each, scratch.parent, half) for half, each in enumerate(running)]


def _waited(running: subprocess.Popen[bytes], home: Path, half: int) -> Done:
    status = running.wait()
    rows = map(json.loads, (home / f"out-{half}").read_text().splitlines())
    said, peak = (home / f"err-{half}").read_text(), int((home / f"peak-{half}").read_text())
    return Done({row["name"]: row for row in rows}, status, said, peak)


def test_every_file_has_its_row(done: list[Done], paths: dict[str, Path]) -> None:
    assert [each.status for each in done] == [2, 2]
    assert set(done[0].rows) | set(done[1].rows) == {each.name for each in paths.values()}
    for each in done:
        assert "Traceback" not in each.said and "mistake of Theodolite" not in each.said
        assert each.megabytes < MEGABYTES
        assert all(line.isprintable() for line in each.said.splitlines())


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_the_row_of_a_file(case: Case, done: list[Done], paths: dict[str, Path], base: Path) -> None:
    path = paths[case.name]
    row = (done[0].rows | done[1].rows)[path.name]
    assert row.keys() >= KEYS
    assert row["verdict"] == case.verdict, row["reason"]
    if path.suffix not in AS_DATA:
        check_words(case, path, row["reason"])
    assert not touched(case, base / "corpus")
    if case.verdict == "refused":
        assert row["format"] is None and row["tensors"] is None
    else:
        assert row["tensors"] > 0 and row["parameters"] >= 0 and row["format"] and row["dtypes"]
        assert len(row["sha256"]) == 64


def test_nothing_is_left_in_the_folder_for_scratch(done: list[Done], scratch: Path) -> None:
    assert done
    assert list(scratch.iterdir()) == []
