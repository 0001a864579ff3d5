"""The port to the engine in processes of its own: it never imports torch, and several may ask at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from workspace.jobs import Jobs
from workspace.store import open_store

ROOT = Path(__file__).resolve().parents[1]


def test_the_app_side_never_imports_torch(tmp_path: Path) -> None:
    code = """
import sys, pathlib
from workspace.jobs import Jobs, JobSpec
from workspace.store import open_store
jobs = Jobs(open_store(pathlib.Path(sys.argv[1])))
job = jobs.enqueue(JobSpec("analysis", {}, "t")); jobs.cancel(job.id); jobs.retry(job.id); jobs.list(); jobs.log(job.id)
assert "dbos" in sys.modules
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, timeout=60).returncode == 0


ASKER = """
import sys, pathlib
from workspace.jobs import Jobs, JobSpec
from workspace.store import open_store
jobs = Jobs(open_store(pathlib.Path(sys.argv[1])))
for n in range(30):
    job = jobs.enqueue(JobSpec("analysis", {"n": n}, "t"))
    jobs.list()
    if n % 3 == int(sys.argv[2]):
        jobs.cancel(job.id)
"""


def test_several_processes_ask_at_once(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", ASKER, str(tmp_path)]
    running = [subprocess.Popen([*arguments, str(k)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for k in range(3)]
    failures = [process.communicate(timeout=60)[1] for process in running]
    assert failures == [""] * 3
    store = open_store(tmp_path)
    states = [each.state for each in Jobs(store).list()]
    assert states == ["cancelled"] * 30
    store.close()
