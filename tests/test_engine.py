"""The engine with real processes, started, killed and looked at; the tasks are those of engine_tasks.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_tasks import LANES
from workspace import process, queue, runs
from workspace.jobs import Job, Jobs, JobSpec
from workspace.store import Store, open_store

pytestmark = pytest.mark.engine

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
def _lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    store = open_store(tmp_path_factory.mktemp("engine") / "workspace")
    engine = Engine(store)
    try:
        engine.start()
        yield engine
    finally:
        engine.end()
        store.close()


@pytest.fixture
def shared(_lasting: Engine) -> Iterator[Engine]:
    """An engine for tests that leave its worker alone: starting one takes longer than most of them."""
    assert _lasting.workers[0].poll() is None
    yield _lasting
    for job in _lasting.jobs.list():
        _lasting.jobs.cancel(job.id)


def test_a_warm_child_does_one_job_after_another(shared: Engine) -> None:
    assert shared.jobs.worker_alive()
    pids = [shared.result(shared.wait(shared.ask("quick", n=n)).id)["pid"] for n in range(3)]
    assert len(set(pids)) == 1
    until(lambda: shared.beat()["lanes"]["device"]["pid"] == pids[0])
    bench = shared.ask("bench_quick", n=0)
    shared.wait(bench)
    assert shared.result(bench)["pid"] != pids[0]
    assert shared.result(bench)["cuda"] == ""
    job = shared.status(bench)
    assert job.attempts == 1
    assert job.started is not None
    assert job.ended is not None
    assert job.created <= job.started <= job.ended
    log = until(lambda: "ends after" in (text := shared.jobs.log(bench)) and text)  # comes just after the result
    assert "begins: bench_quick, attempt 1" in log
    assert "a word on standard output\na word from a program\n" in log
    assert "ends after 0.0 s: done" in log
    assert "torch 2." in log
    assert json.loads((shared.store.folder(bench) / "spec.json").read_text())["task"] == "bench_quick"


def test_the_worker_itself_has_no_torch(shared: Engine) -> None:
    shared.wait(shared.ask("quick"))
    maps = Path(f"/proc/{shared.workers[0].pid}/maps").read_text()
    assert "sqlite" in maps
    assert "torch" not in maps


def test_a_killed_child_is_replaced_and_the_run_goes_on_from_what_it_saved(shared: Engine) -> None:
    id = shared.ask_and_hold(5)
    shared.wait_until_held(id, 5)
    child = int(shared.trace(id)[0].split()[-1])
    os.kill(child, signal.SIGKILL)
    assert shared.wait(id).attempts == 2
    assert shared.begun(id) == [0, 5]
    assert shared.result(id)["pid"] != child
    assert "its process died (signal 9)" in shared.jobs.log(id)


def test_a_killed_worker_takes_its_child_along_and_the_next_one_goes_on(engine: Engine) -> None:
    id = engine.ask_and_hold(5)
    engine.wait_until_held(id, 5)
    child = int(engine.trace(id)[0].split()[-1])
    engine.kill_worker()
    until(lambda: not is_alive(child), 2, "the child to go with its worker")
    assert engine.status(id).state == "running"  # it has not ended, and will go on
    engine.start()
    assert engine.wait(id).attempts == 2
    assert engine.begun(id) == [0, 5]
    assert engine.status(id).error is None


def test_a_killed_worker_takes_along_a_child_that_is_stuck(engine: Engine) -> None:
    id = engine.ask("stuck")  # in C code and with the interpreter's lock: no thread of its own can look at anything
    pid = int(until(lambda: engine.trace(id))[0])
    engine.kill_worker()
    until(lambda: not is_alive(pid), 2, "the child to go with its worker")


def test_a_run_survives_its_worker_being_killed_again_and_again(engine: Engine) -> None:
    id = engine.ask_and_hold(2, 5)
    for step in (2, 5):
        engine.wait_until_held(id, step)
        engine.kill_worker()
        engine.start()
    assert engine.wait(id).attempts == 3
    assert engine.begun(id) == [0, 2, 5]


def test_a_worker_killed_between_the_result_and_its_end_does_not_run_it_again(engine: Engine) -> None:
    id = engine.ask("finish_then_wait", seconds=600)
    until(lambda: runs.is_whole(engine.store.folder(id)))
    engine.kill_worker()
    assert engine.status(id).state == "done"
    before = engine.result(id)
    engine.start()
    engine.wait(engine.ask("quick"))  # the lane is free again
    row = until(lambda: (found := runs.get(engine.store, id)) and found["state"] == "done" and found)
    assert row["attempts"] == 1
    assert engine.trace(id) == ["ran"]
    assert engine.result(id) == before


def test_a_child_killed_after_its_result_has_done_its_run(shared: Engine) -> None:
    id = shared.ask("finish_then_wait", seconds=600)
    until(lambda: runs.is_whole(shared.store.folder(id)))
    os.kill(shared.result(id)["pid"], signal.SIGKILL)
    shared.wait(shared.ask("quick"))
    assert shared.trace(id) == ["ran"]
    assert shared.wait(id).attempts == 1


APP = """
import sys, pathlib, os, signal
from tests.engine_tasks import LANES
from workspace.jobs import Jobs, JobSpec
from workspace.store import open_store
jobs = Jobs(open_store(pathlib.Path(sys.argv[1])), LANES)
print(jobs.enqueue(JobSpec("count", {"steps": 20, "seconds": 0.05}, "t")).id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_app_loses_nothing(engine: Engine) -> None:
    app = subprocess.run([sys.executable, "-c", APP, str(engine.store.root)], cwd=ROOT, capture_output=True, text=True)
    assert app.returncode == -signal.SIGKILL
    store = open_store(engine.store.root)
    again = Jobs(store, LANES)
    id = app.stdout.strip()
    until(lambda: (job := again.status(id)) and job.state == "done")
    assert again.enqueue(JobSpec("count", {"steps": 20, "seconds": 0.05}, "t")).state == "done"
    store.close()


def test_a_run_that_reached_no_queue_is_fetched_by_the_worker(shared: Engine) -> None:
    spec = JobSpec("quick", {"lost": True}, "t")
    runs.add(shared.store, id=spec.id, payload=spec.payload, task="quick", title="t", lane="device", priority=5)
    shared.wait(spec.id)


def test_what_was_asked_before_the_first_worker_is_done_by_it(idle: Engine) -> None:
    ids = [idle.ask("quick", n=n) for n in range(2)]
    assert [idle.status(id).position for id in ids] == [1, 2]
    assert not idle.jobs.worker_alive()
    idle.start()
    times = [idle.result(idle.wait(id).id)["at"] for id in ids]
    assert times == sorted(times)


def test_a_lost_queue_is_made_anew(idle: Engine) -> None:
    id = idle.ask("quick")
    for path in idle.store.root.glob("queue.db*"):
        path.unlink()
    idle.start()
    idle.wait(id)


@pytest.mark.parametrize("task", ["stuck", "spawn"])
def test_cancel_ends_the_process_and_its_kin_within_two_seconds(shared: Engine, task: str) -> None:
    id = shared.ask(task)
    pids = [int(each) for each in until(lambda: shared.trace(id), what="the task")[0].split()]
    assert all(is_alive(pid) for pid in pids)
    shared.jobs.cancel(id)
    until(lambda: not any(is_alive(pid) for pid in pids), 2, "the process to end")
    assert shared.status(id).state == "cancelled"
    after = shared.ask("quick")
    shared.wait(after)
    assert shared.result(after)["pid"] not in pids
    assert shared.status(id).state == "cancelled"
    assert shared.status(id).error is None
    assert "cancelled" in shared.jobs.log(id)


def test_a_waiting_run_is_cancelled_and_never_begun(shared: Engine) -> None:
    busy = shared.ask_and_hold(1)
    until(lambda: shared.status(busy).state == "running")
    first, second = shared.ask("quick"), shared.ask("quick")
    assert (shared.status(first).position, shared.status(second).position) == (1, 2)
    shared.jobs.cancel(first)
    assert shared.status(first).state == "cancelled"
    assert shared.status(second).position == 1
    shared.jobs.cancel(busy)
    shared.wait(second)
    assert shared.trace(first) == []
    shared.jobs.retry(first)
    shared.wait(first)


def test_a_cancelled_run_goes_on_from_what_it_saved_when_retried(shared: Engine) -> None:
    id = shared.ask_and_hold(5)
    shared.wait_until_held(id, 5)
    shared.jobs.cancel(id)
    shared.jobs.retry(id)  # at once, while the old process may still be there
    shared.wait(id)
    assert shared.begun(id) == [0, 5]


def test_a_workflow_that_the_operator_cancels_ends_its_run(shared: Engine) -> None:
    id = shared.ask("stuck")
    pid = int(until(lambda: shared.trace(id))[0])
    queue.Queue(shared.store.root).cancel(f"{id}.1")
    shared.wait(id, "cancelled")
    until(lambda: not is_alive(pid), 2)


def test_a_run_that_kills_its_process_every_time_is_parked_and_the_next_one_runs(shared: Engine) -> None:
    poison, after = shared.ask("crash"), shared.ask("quick")
    job = shared.wait(poison, "parked")
    assert job.attempts == 3
    assert job.error is not None
    assert "died 3 times" in job.error
    assert len(shared.trace(poison)) == 3
    shared.wait(after)
    shared.jobs.retry(poison)
    assert shared.wait(poison, "parked").attempts == 3
    assert len(shared.trace(poison)) == 6


def test_a_run_that_kills_its_process_once_is_done_the_second_time(shared: Engine) -> None:
    assert shared.wait(shared.ask("crash_once")).attempts == 2


def test_a_task_that_leaves_the_process_is_a_crash(shared: Engine) -> None:
    id = shared.ask("leave")
    shared.wait(id, "parked")
    assert "its process died (exit status 5)" in shared.jobs.log(id)


def test_a_refusal_is_shown_in_its_own_words_and_can_be_mended(shared: Engine) -> None:
    before = shared.ask("quick", n=1)
    shared.wait(before)
    id = shared.ask("refuse")
    job = shared.wait(id, "failed")
    assert job.error == "digits.csv has no column 'label' (found: a, b); name the column."
    assert job.attempts == 1
    assert "Traceback" in shared.jobs.log(id)
    assert shared.jobs.enqueue(JobSpec("refuse", job.payload, "t")).state == "failed"  # asking is not trying again
    after = shared.ask("quick", n=2)
    shared.wait(after)
    assert shared.result(after)["pid"] == shared.result(before)["pid"]  # a refusal does no harm to the process
    (shared.store.folder(id) / "fixed").touch()
    assert shared.jobs.retry(id).error is None
    assert shared.wait(id).error is None


@pytest.mark.parametrize(
    ("task", "error"),
    [
        ("break", "It stopped with an unexpected error (runtime error); see the log."),
        ("memory", "The memory of this machine did not suffice; choose fewer examples or a smaller micro-batch."),
        ("full", "The disk of the workspace is full; make room and retry."),
        ("silent", "It ended without a result, which is a mistake of ours; see the log."),
    ],
)
def test_every_other_failure_is_one_sentence_and_is_not_tried_again(shared: Engine, task: str, error: str) -> None:
    id = shared.ask(task)
    job = shared.wait(id, "failed")
    assert (job.error, job.attempts) == (error, 1)
    assert ("secret inner words" in shared.jobs.log(id)) == (task == "break")
    shared.wait(shared.ask("quick"))


def test_the_bench_lane_works_while_the_device_is_busy(shared: Engine) -> None:
    busy = shared.ask("stuck")
    until(lambda: shared.trace(busy))
    shared.wait(shared.ask("bench_quick"), seconds=10)
    assert shared.status(busy).state == "running"


def test_a_gate_goes_before_what_waits_longer(shared: Engine) -> None:
    busy = shared.ask_and_hold(1)
    until(lambda: shared.status(busy).state == "running")
    longer, gate = shared.ask("quick"), shared.ask("gate")
    assert (shared.status(gate).position, shared.status(longer).position) == (1, 2)
    shared.jobs.cancel(busy)
    assert shared.result(shared.wait(gate).id)["at"] < shared.result(shared.wait(longer).id)["at"]


def test_progress_is_seen_and_never_falls(shared: Engine) -> None:
    id = shared.ask("count", steps=40, seconds=0.04)
    seen: list[Job] = []
    until(lambda: seen.append(shared.status(id)) or not seen[-1].is_open)
    shares = [job.share for job in seen]
    assert shares == sorted(shares)
    assert len({share for share in shares if 0 < share < 1}) >= 3
    during = [job for job in seen if 0.3 < job.share < 0.9]
    assert all(job.doing.startswith("step ") for job in during)
    assert all(job.seconds_left is not None and 0 <= job.seconds_left < 20 for job in during)


def test_a_second_worker_says_that_there_is_one_and_ends(shared: Engine) -> None:
    id = shared.ask("count", steps=20, seconds=0.05)
    arguments = [sys.executable, "-m", "workspace.worker", "--workspace", str(shared.store.root)]
    second = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert second.returncode == 3
    assert second.stderr.startswith(f"Another worker already serves {shared.store.root}")
    assert len(second.stderr.splitlines()) == 1
    assert shared.wait(id).attempts == 1


def test_a_worker_that_is_told_to_stop_lets_its_run_wait(engine: Engine) -> None:
    id = engine.ask_and_hold(5)
    engine.wait_until_held(id, 5)
    until(lambda: engine.beat()["lanes"]["bench"]["pid"])
    children = [lane["pid"] for lane in engine.beat()["lanes"].values()]
    engine.workers[-1].send_signal(signal.SIGTERM)
    assert engine.workers[-1].wait(5) == 0
    until(lambda: not any(is_alive(pid) for pid in children), 2)
    assert not engine.jobs.worker_alive()
    assert (engine.status(id).state, engine.status(id).attempts) == ("waiting", 0)
    engine.start()
    assert engine.wait(id).attempts == 1
    assert engine.begun(id) == [0, 5]


def test_a_new_worker_ends_what_an_old_one_left_behind(idle: Engine) -> None:
    mark = process.mark_of(idle.store.root, "device")
    orphan = subprocess.Popen(["sleep", "600"], env={**os.environ, process.MARK: mark}, start_new_session=True)
    other = subprocess.Popen(["sleep", "600"], env={**os.environ, process.MARK: "/elsewhere:device"})
    try:
        idle.start()
        assert orphan.wait(5) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        orphan.kill()
        other.kill()
        orphan.wait()
        other.wait()


def test_a_child_that_cannot_start_is_said_at_once(idle: Engine) -> None:
    log = idle.store.root / "worker.log"
    arguments = ["--workspace", str(idle.store.root), "--tasks", "tests.no_such_tasks"]
    with log.open("ab") as file:
        command = [sys.executable, "-m", "workspace.worker", *arguments]
        idle.workers.append(subprocess.Popen(command, cwd=ROOT, stderr=file))
    id = idle.ask("quick")
    job = idle.wait(id, "failed")
    assert job.error == "The process for this cannot start (module not found error); see the worker's log."
    assert job.attempts == 1
    assert "no process could be started" in idle.jobs.log(id)
    assert "no_such_tasks" in log.read_text()


def test_the_worker_refuses_a_device_in_words(tmp_path: Path) -> None:
    arguments = ["--workspace", str(tmp_path), "--device", "tpu"]
    command = [sys.executable, "-m", "workspace.worker", *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (found.returncode, found.stderr) == (2, "the device is 'tpu'; give auto, cpu, cuda or cuda:0\n")


@pytest.mark.parametrize(
    ("device", "given", "visible"),
    [
        ("auto", "2", {}),
        ("cpu", "2", {"CUDA_VISIBLE_DEVICES": ""}),
        ("cuda", "", {"CUDA_VISIBLE_DEVICES": "0"}),
        ("cuda:1", "", {"CUDA_VISIBLE_DEVICES": "1"}),
        ("cuda:1", "5,7", {"CUDA_VISIBLE_DEVICES": "7"}),
    ],
)
def test_the_device_is_the_only_one_that_a_child_sees(device: str, given: str, visible: dict[str, str]) -> None:
    assert process.visible_devices(device, {"CUDA_VISIBLE_DEVICES": given}) == visible
