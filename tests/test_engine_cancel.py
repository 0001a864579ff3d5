"""Cancelling with real processes: what runs ends with its kin, what waits never begins, and a retry goes on."""

# ruff: noqa: F811

from __future__ import annotations

import pytest

from tests.engines import Engine, is_alive, lasting, shared, until  # noqa: F401
from workspace import queue

pytestmark = pytest.mark.engine


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
