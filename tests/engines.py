"""An engine with real processes, to be started, killed and looked at: shared by the tests of the engine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_tasks import LANES
from workspace import process
from workspace.jobs import Job, Jobs, JobSpec
from workspace.store import Store, open_store

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 30.0  # seconds, on a busy machine


def until(condition: Callable[[], Any], seconds: float = PATIENCE, what: str = "it") -> Any:
    """Wait until a condition holds and return its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s in vain for {what}")


def is_alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


class Engine:
    """A workspace, the app's port to it, and its worker."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.jobs = Jobs(store, LANES)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.asked = 0

    def start(self) -> subprocess.Popen[bytes]:
        arguments = ["--workspace", str(self.store.root), "--device", "cpu", "--tasks", "tests.engine_tasks"]
        with (self.store.root / "worker.log").open("ab") as log:
            worker = subprocess.Popen([sys.executable, "-m", "workspace.worker", *arguments], cwd=ROOT, stderr=log)
        self.workers.append(worker)
        until(lambda: self.beat().get("pid") == worker.pid or worker.poll() is not None, what="the worker")
        return worker

    def kill_worker(self) -> None:
        self.workers[-1].kill()
        self.workers[-1].wait()

    def end(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        process.kill_marked(process.mark_of(self.store.root))

    def ask(self, task: str, **payload: Any) -> str:
        """Ask what has not been asked before."""
        self.asked += 1
        return self.jobs.enqueue(JobSpec(task, {**payload, "asked": self.asked}, task)).id

    def status(self, id: str) -> Job:
        job = self.jobs.status(id)
        assert job is not None
        return job

    def wait(self, id: str, state: str = "done", seconds: float = PATIENCE) -> Job:
        until(lambda: not self.status(id).is_open, seconds, f"the end of {self.status(id)}")
        job = self.status(id)
        assert job.state == state, (job, self.jobs.log(id))
        return job

    def result(self, id: str) -> dict[str, Any]:
        return json.loads((self.store.folder(id) / "result.json").read_text())

    def trace(self, id: str) -> list[str]:
        path = self.store.folder(id) / "trace.txt"
        return path.read_text().splitlines() if path.exists() else []

    def beat(self) -> dict[str, Any]:
        try:
            return json.loads((self.store.root / "worker.json").read_text())
        except FileNotFoundError:
            return {}

    def ask_and_hold(self, *holds: int) -> str:
        """Ask for a run that counts to 8, saving each step, and hangs at some of them until it is killed."""
        return self.ask("count", steps=8, seconds=0.01, holds=holds)

    def wait_until_held(self, id: str, step: int) -> None:
        until(lambda: f"holds at {step}" in self.trace(id), what=f"step {step}")

    def begun(self, id: str) -> list[int]:
        """Return the step at which each attempt began."""
        return [int(line.split()[2]) for line in self.trace(id) if line.startswith("begun at")]


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Engine]:
    """An engine whose worker does not run yet."""
    store = open_store(tmp_path / "workspace")
    engine = Engine(store)
    try:
        yield engine
    finally:
        engine.end()
        store.close()


@pytest.fixture
def engine(idle: Engine) -> Engine:
    """An engine of one's own, to kill."""
    idle.start()
    return idle


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    store = open_store(tmp_path_factory.mktemp("engine") / "workspace")
    engine = Engine(store)
    try:
        engine.start()
        yield engine
    finally:
        engine.end()
        store.close()


@pytest.fixture
def shared(lasting: Engine) -> Iterator[Engine]:
    """An engine for tests that leave its worker alone: starting one takes longer than most of them."""
    assert lasting.workers[0].poll() is None
    yield lasting
    for job in lasting.jobs.list():
        lasting.jobs.cancel(job.id)
