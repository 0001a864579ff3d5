"""The engine with real processes: its workers and their children, lanes, places and progress."""

# ruff: noqa: F811

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines import ROOT, Engine, engine, idle, is_alive, lasting, shared, until  # noqa: F401
from workspace import process, runs
from workspace.jobs import Job, JobSpec

pytestmark = pytest.mark.engine


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
    assert re.search(r"ends after \d+\.\d s: done", log)
    assert "torch 2." in log
    assert json.loads((shared.store.folder(bench) / "spec.json").read_text())["task"] == "bench_quick"


def test_the_worker_itself_has_no_torch(shared: Engine) -> None:
    shared.wait(shared.ask("quick"))
    maps = Path(f"/proc/{shared.workers[0].pid}/maps").read_text()
    assert "sqlite" in maps
    assert "torch" not in maps


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
