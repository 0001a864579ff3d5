"""The port to the engine without an engine: what is asked is kept, once, and its states change by the rules."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from workspace import runs
from workspace.jobs import HEARTBEAT, LANES, Job, Jobs, JobSpec
from workspace.queue import Queue
from workspace.store import open_store


@pytest.fixture
def jobs(tmp_path: Path):
    store = open_store(tmp_path / "workspace")
    yield Jobs(store)
    store.close()


def _spec(n: int = 0, task: str = "analysis", title: str = "Spectrum") -> JobSpec:
    return JobSpec(task, {"n": n}, title)


def _status(jobs: Jobs, id: str) -> Job:
    job = jobs.status(id)
    assert job is not None
    return job


def _finish(jobs: Jobs, id: str) -> None:
    folder = jobs.store.folder(id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text("{}")


def test_the_id_is_a_hash_of_the_question_only() -> None:
    spec = JobSpec("analysis", {"a": 1, "b": [2]}, "one title")
    assert spec.id == JobSpec("analysis", {"b": [2], "a": 1}, "another").id
    assert len(spec.id) == 24
    others = [JobSpec("analysis", {"a": 1, "b": [3]}, ""), JobSpec("gate", {"a": 1, "b": [2]}, "")]
    assert spec.id not in {each.id for each in others}


def test_a_new_run_waits(jobs: Jobs) -> None:
    job = jobs.enqueue(_spec(title="Spectrum of digits"))
    assert (job.state, job.position, job.share, job.attempts) == ("waiting", 1, 0.0, 0)
    assert (job.title, job.lane, job.payload, job.error) == ("Spectrum of digits", "device", {"n": 0}, None)
    assert job.started is None
    assert abs(job.created - time.time()) < 5


def test_asking_twice_is_asking_once(jobs: Jobs) -> None:
    first, second = jobs.enqueue(_spec()), jobs.enqueue(_spec(title="another title"))
    assert first == second
    assert len(jobs.list()) == 1


def test_asking_at_once_from_many_threads_is_asking_once(jobs: Jobs) -> None:
    ports = [jobs, Jobs(jobs.store)]
    answers: list[Job] = []
    threads = [threading.Thread(target=lambda k=k: answers.append(ports[k % 2].enqueue(_spec()))) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert len({each.id for each in answers}) == 1
    assert len(jobs.list()) == 1


def test_an_unknown_task_is_our_mistake(jobs: Jobs) -> None:
    with pytest.raises(ValueError, match="no task 'analyse'"):
        jobs.enqueue(JobSpec("analyse", {}, ""))
    assert jobs.list() == []


def test_what_is_unknown_is_none(jobs: Jobs) -> None:
    assert jobs.status("a" * 24) is None
    assert jobs.log("a" * 24) == ""
    jobs.cancel("a" * 24)
    with pytest.raises(ValueError, match="no run"):
        jobs.retry("a" * 24)


def test_positions_count_in_each_lane_and_the_gate_goes_first(jobs: Jobs) -> None:
    first, second = jobs.enqueue(_spec(1)), jobs.enqueue(_spec(2))
    bench = jobs.enqueue(_spec(1, "inspect"))
    gate = jobs.enqueue(_spec(1, "gate"))
    places = {each.id: _status(jobs, each.id).position for each in (first, second, bench, gate)}
    assert places == {gate.id: 1, first.id: 2, second.id: 3, bench.id: 1}
    runs.begin(jobs.store, gate.id, 1)
    assert _status(jobs, gate.id).position is None
    assert _status(jobs, second.id).position == 2


def test_the_newest_are_listed_first(jobs: Jobs) -> None:
    ids = [jobs.enqueue(_spec(n)).id for n in range(5)]
    assert [each.id for each in jobs.list(3)] == ids[:1:-1]


def test_a_finished_run_is_answered_from_the_store(jobs: Jobs) -> None:
    id = jobs.enqueue(_spec()).id
    assert runs.begin(jobs.store, id, 1)
    _finish(jobs, id)
    assert _status(jobs, id).state == "done"  # before the worker has said so
    assert jobs.enqueue(_spec()).share == 1.0
    jobs.cancel(id)
    assert _status(jobs, id).state == "done"


def test_a_result_is_found_though_the_database_was_lost(jobs: Jobs) -> None:
    _finish(jobs, _spec().id)
    assert jobs.enqueue(_spec()).state == "done"


def test_a_waiting_run_is_cancelled_at_once_and_retried(jobs: Jobs) -> None:
    id = jobs.enqueue(_spec()).id
    jobs.cancel(id)
    job = jobs.enqueue(_spec())
    assert (job.state, job.position, job.is_open, job.can_retry) == ("cancelled", None, False, True)
    assert not runs.begin(jobs.store, id, 1)
    job = jobs.retry(id)
    assert (job.state, job.position) == ("waiting", 1)
    assert not runs.begin(jobs.store, id, 1)  # the old round stays ended
    assert runs.begin(jobs.store, id, 2)


def test_a_run_that_reached_no_queue_is_cancelled_all_the_same(jobs: Jobs) -> None:
    spec = _spec()
    runs.add(jobs.store, id=spec.id, payload=spec.payload, task="analysis", title="t", lane="device", priority=5)
    jobs.cancel(spec.id)
    assert _status(jobs, spec.id).state == "cancelled"


def test_a_queue_that_cannot_be_written_costs_no_run(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OperationalError("INSERT", {}, Exception("disk I/O error"))

    monkeypatch.setattr(Queue, "put", broken)
    monkeypatch.setattr(Queue, "cancel", broken)
    id = jobs.enqueue(_spec()).id
    assert _status(jobs, id).state == "waiting"
    jobs.cancel(id)
    assert jobs.retry(id).state == "waiting"


def test_only_what_ended_without_a_result_is_retried(jobs: Jobs) -> None:
    id = jobs.enqueue(_spec()).id
    assert jobs.retry(id).state == "waiting"
    assert runs.begin(jobs.store, id, 1)
    assert jobs.retry(id).state == "running"
    assert runs.is_current(jobs.store, id, 1)


def test_three_crashes_park_a_run_and_a_retry_counts_anew(jobs: Jobs) -> None:
    id = jobs.enqueue(_spec()).id
    for attempt in range(3):
        assert runs.begin(jobs.store, id, 1)
        assert _status(jobs, id).attempts == attempt + 1
        runs.crashed(jobs.store, id, 1)
    assert not runs.begin(jobs.store, id, 1)
    job = _status(jobs, id)
    assert (job.state, job.attempts) == ("parked", 3)
    assert job.error is not None
    assert "died 3 times" in job.error
    assert (jobs.retry(id).state, _status(jobs, id).attempts) == ("waiting", 0)
    assert runs.begin(jobs.store, id, 2)


def test_deaths_of_the_worker_interrupt_a_run_in_the_end(jobs: Jobs) -> None:
    id = jobs.enqueue(_spec()).id
    for _ in range(5):
        assert runs.begin(jobs.store, id, 1)
    assert not runs.begin(jobs.store, id, 1)
    job = _status(jobs, id)
    assert (job.state, job.can_retry) == ("interrupted", True)
    assert job.error is not None
    assert "worker ended 5 times" in job.error


def test_a_worker_that_stops_in_good_order_costs_no_attempt(jobs: Jobs) -> None:
    id = jobs.enqueue(_spec()).id
    for _ in range(12):
        assert runs.begin(jobs.store, id, 1)
        runs.put_back(jobs.store, id, 1)
    assert (_status(jobs, id).state, _status(jobs, id).attempts) == ("waiting", 0)


def test_what_a_dead_worker_left_waits_in_its_old_place(jobs: Jobs) -> None:
    first, second = jobs.enqueue(_spec(1)).id, jobs.enqueue(_spec(2)).id
    runs.begin(jobs.store, first, 1)
    assert runs.resume(jobs.store) == 1
    assert [_status(jobs, id).position for id in (first, second)] == [1, 2]
    assert _status(jobs, first).attempts == 1  # it may have been this run that killed the worker
    assert runs.begin(jobs.store, first, 1)
    assert _status(jobs, first).attempts == 2


def test_a_result_wins_over_a_cancellation_of_the_same_moment(jobs: Jobs) -> None:
    id = jobs.enqueue(_spec()).id
    runs.begin(jobs.store, id, 1)
    jobs.cancel(id)
    runs.end(jobs.store, id, 1, "failed", "too late")
    assert _status(jobs, id).state == "cancelled"
    runs.end(jobs.store, id, 1, "done")
    assert _status(jobs, id).state == "done"


def test_progress_is_read_and_the_time_left_goes_down(jobs: Jobs) -> None:
    id = jobs.enqueue(_spec()).id
    runs.begin(jobs.store, id, 1)
    assert _status(jobs, id).doing == "Starting"
    folder = jobs.store.folder(id)
    folder.mkdir(parents=True)
    at = time.time() - 4
    (folder / "progress.json").write_text(f'{{"share": 0.5, "doing": "Lanczos", "seconds_left": 10, "at": {at}}}')
    job = _status(jobs, id)
    assert (job.share, job.doing) == (0.5, "Lanczos")
    assert job.seconds_left == pytest.approx(6, abs=1)


def test_the_log_is_its_end(jobs: Jobs) -> None:
    id = jobs.enqueue(_spec()).id
    folder = jobs.store.folder(id)
    folder.mkdir(parents=True)
    (folder / "log.txt").write_bytes(b"\xff" + b"x" * 400_000 + b"\nlast")
    assert jobs.log(id).endswith("x\nlast")
    assert len(jobs.log(id)) == 1 << 18


def test_a_worker_lives_while_it_gives_signs(jobs: Jobs) -> None:
    assert not jobs.worker_alive()
    heartbeat = jobs.store.root / HEARTBEAT
    heartbeat.write_text("{}")
    assert jobs.worker_alive()
    os.utime(heartbeat, (0, time.time() - 6))
    assert not jobs.worker_alive()


def test_looking_costs_little_at_a_hundred_runs(jobs: Jobs) -> None:
    ids = [jobs.enqueue(_spec(n)).id for n in range(100)]

    def best(call) -> float:
        took = []
        for _ in range(7):
            began = time.perf_counter()
            call()
            took.append(time.perf_counter() - began)
        return min(took)

    assert best(lambda: jobs.list(100)) < 0.010
    assert best(lambda: jobs.status(ids[-1])) < 0.010


def test_every_lane_is_one_of_two() -> None:
    assert set(LANES.values()) == {"device", "bench"}
