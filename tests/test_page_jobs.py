"""The queue on the pages, every page without a worker, and that no page imports torch."""

# ruff: noqa: F811

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.laid_pages import ROOT, page, store, wait  # noqa: F401
from workspace import runs
from workspace.jobs import HEARTBEAT, Jobs, JobSpec
from workspace.store import Store

PAGES = sorted(path.name for path in (ROOT / "pages").glob("*.py") if path.name != "__init__.py")


def test_the_queue_shows_places_and_cancels(store: Store) -> None:
    first = wait(store, JobSpec("analysis", {"analyzer": "hessian_spectrum", "n": 1}, "First"))
    wait(store, JobSpec("analysis", {"analyzer": "hessian_spectrum", "n": 2}, "Second"))
    test = page("jobs.py")
    next(each for each in test.button if each.key == f"cancel-{first}").click().run()
    assert not test.exception
    job = Jobs(store).status(first)
    assert job and job.state == "cancelled"
    states = dict(test.dataframe[0].value[["Job", "State"]].values)
    assert states == {"First": "Cancelled"}


def test_an_ended_job_has_its_log_and_a_retry(store: Store) -> None:
    spec = JobSpec("analysis", {"analyzer": "hessian_spectrum"}, "Doomed")
    wait(store, spec)
    runs.begin(store, spec.id, 1)
    runs.end(store, spec.id, 1, "failed", "The loss is not finite.")
    store.folder(spec.id).mkdir(parents=True)
    (store.folder(spec.id) / "log.txt").write_text("Traceback <b>\n")
    test = page("jobs.py", job=spec.id)
    assert any("The loss is not finite" in each.value for each in test.error)
    assert any("Traceback <b>" in each.value for each in test.code)
    next(each for each in test.button if each.label == "Retry").click().run()
    job = Jobs(store).status(spec.id)
    assert job and job.state == "waiting"


@pytest.mark.parametrize("name", PAGES)
def test_every_page_says_when_no_worker_runs(store: Store, name: str) -> None:
    os.utime(store.root / HEARTBEAT, (1, 1))
    test = page(name)
    assert any("The worker is not running" in each.value for each in test.warning)
    assert any("workspace.worker" in each.value for each in test.code)


def test_the_browser_side_never_imports_torch(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "import app\n"
        "from streamlit.testing.v1 import AppTest\n"
        f"for page in {PAGES!r}:\n"
        f"    test = AppTest.from_file({str(ROOT / 'app.py')!r}, default_timeout=60).run()\n"
        "    test.switch_page(f'pages/{page}').run()\n"
        "    assert not test.exception, test.exception\n"
        "print([name for name in ('torch', 'transformers', 'sklearn', 'pyhessian') if name in sys.modules])\n"
    )
    file = tmp_path / "script.py"
    file.write_text(script)
    environment = {**os.environ, "THEODOLITE_WORKSPACE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stdout + done.stderr
