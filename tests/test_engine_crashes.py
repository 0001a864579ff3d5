"""The engine when its processes are killed and its tasks crash or fail: what goes on, is parked, or says why."""

# ruff: noqa: F811

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.engine_tasks import LANES
from tests.engines import ROOT, Engine, engine, idle, is_alive, lasting, shared, until  # noqa: F401
from workspace import runs
from workspace.jobs import Jobs, JobSpec
from workspace.store import open_store

pytestmark = pytest.mark.engine


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
