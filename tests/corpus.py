"""The corpus: laid out once for all tests of a session, and put to the readers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hostile import archives, calling, clinic, executing, exhausting, folders, headers, honest, tensors
from hostile.assemble import CANARY, Case

GROUPS = (executing, calling, exhausting, archives, tensors, headers, folders, clinic, honest)
CORPUS: tuple[Case, ...] = tuple(case for group in GROUPS for case in group.cases())
ROOT = Path(__file__).resolve().parents[1]
UNSAFE = ("weights_only=False", "allow_pickle", "trust_remote_code", "unsafe", "Traceback", "eval(", "extractall")


def write(case: Case, root: Path) -> Path:
    """Lay a case out in a folder of its own below `root`; return the path to give to a reader."""
    folder = root / case.name
    folder.mkdir(parents=True)
    return case.write(folder)


def touched(case: Case, root: Path) -> bool:
    """Tell whether something ran: the canary is there."""
    return (root / case.name / CANARY).exists()


def lay_out(base: Path, cases: Iterable[Case] = CORPUS) -> dict[str, Path]:
    """Write the cases below `base` and return their paths; what an earlier test has written is taken as it is."""
    listed = base / "corpus.json"
    known: dict[str, str] = json.loads(listed.read_text()) if listed.exists() else {}
    known |= {case.name: str(write(case, base / "corpus")) for case in cases if case.name not in known}
    listed.write_text(json.dumps(known))
    return {case.name: Path(known[case.name]) for case in cases}


def watch(mode: str, paths: dict[str, Path], scratch: Path) -> dict[str, dict[str, Any]]:
    """Open files in a process of their own each; see `watch_readers`."""
    lines = "".join(json.dumps([name, str(path)]) + "\n" for name, path in paths.items())
    done = subprocess.run(
        [sys.executable, "-m", "watch_readers", mode],
        input=lines,
        text=True,
        capture_output=True,
        cwd=scratch,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {answer["name"]: answer for answer in map(json.loads, done.stdout.splitlines())}


def check_words(case: Case, path: Path, message: str) -> None:
    """Check that what is said is for the user: it names the file and what is wrong, and advises nothing unsafe."""
    said = message.replace(path.name, "")
    assert all(word.lower() in said.lower() for word in case.words), message
    assert message.isprintable()
    assert len(message) < 600
    assert not any(word in message for word in UNSAFE), message
    if case.verdict == "refused":
        assert path.name[:60] in message
        assert message.endswith((".", "…"))
