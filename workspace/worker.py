"""The worker: takes runs from the queue and has its children do them. One for a workspace; no torch here.

    python -m workspace.worker --workspace DIR [--device auto|cpu|cuda:0]

It may be killed and started again at any moment: what it was doing goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from probes.errors import ProbeError
from workspace import admission, process, queue, runs
from workspace.jobs import HEARTBEAT
from workspace.lane import Lane
from workspace.store import Store, open_store

ALREADY_RUNNING = 3  # exit status
HEARTBEAT_EVERY = 1.0  # seconds
MEND_EVERY = 2.0
POLL_EVERY = 0.25
GIVEN_UP = "The queue gave this run up without a result, which is a mistake of ours; see the worker's log and retry."

_log = logging.getLogger("theodolite.worker")


class Worker:
    """Serve the lanes of one workspace, on one device."""

    def __init__(self, store: Store, device: str, tasks: str) -> None:
        self.store = store
        self.device = device
        self.started = time.time()
        visible = process.visible_devices(device, os.environ)
        settings = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        device_lane = Lane("device", store.root, tasks, settings | visible)
        bench_lane = Lane("bench", store.root, tasks, settings | {"CUDA_VISIBLE_DEVICES": ""})
        self.lanes = {lane.name: lane for lane in (device_lane, bench_lane)}

    async def drive(self, id: str, round: int) -> None:
        """Bring one round of a run to its end: every attempt is counted before it begins."""
        try:
            while await asyncio.to_thread(runs.begin, self.store, id, round):
                if await self._attempt(id, round):
                    return
        except asyncio.CancelledError:  # somebody cancelled the workflow, not the run
            runs.end(self.store, id, round, "cancelled")
            raise

    async def _attempt(self, id: str, round: int) -> bool:
        row = runs.get(self.store, id)
        if row is None:
            return True
        names = {"id": id, "task": row["task"], "title": row["title"], "attempt": row["attempts"]}
        order = names | {"payload": json.loads(row["payload"]), "round": round}
        ending = await self.lanes[row["lane"]].run(order, lambda: runs.is_current(self.store, id, round))
        if runs.is_whole(self.store.folder(id)):
            await asyncio.to_thread(runs.end, self.store, id, round, "done")
        elif ending.state == "crashed":
            await asyncio.to_thread(runs.crashed, self.store, id, round)
            return False
        elif ending.state == "failed":
            await asyncio.to_thread(runs.end, self.store, id, round, "failed", ending.error)
        return True

    def stop(self) -> None:
        """End in good order: what runs waits again, its children are killed, and so is this process."""
        try:
            for lane in self.lanes.values():
                if lane.order is not None:
                    runs.put_back(self.store, lane.order["id"], lane.order["round"])
        finally:
            self._leave(0)

    def _leave(self, status: int) -> None:
        for lane in self.lanes.values():
            lane.kill()
        (self.store.root / HEARTBEAT).unlink(missing_ok=True)
        os._exit(status)  # as sudden as a kill, which it has to stand anyway

    async def beat(self) -> None:
        """Give a sign of life every second, for `Jobs.worker_alive` and for people."""
        path = self.store.root / HEARTBEAT
        temporary = path.with_name(f".{HEARTBEAT}.tmp")
        while True:
            lanes = {lane.name: {"pid": lane.pid, "run": (lane.order or {}).get("id")} for lane in self.lanes.values()}
            about = {"pid": os.getpid(), "device": self.device, "started": self.started, "lanes": lanes}
            try:
                temporary.write_text(json.dumps(about))
                temporary.replace(path)
            except OSError:  # a full disk shows as silence; it must not end what runs
                _log.exception("Could not give a sign of life")
            await asyncio.sleep(HEARTBEAT_EVERY)

    async def mend(self) -> None:
        """Bring rows and queue together again, whenever a process was killed between the one and the other."""
        engine = queue.Queue(self.store.root)
        while True:
            try:
                await asyncio.to_thread(_mend, self.store, engine)
            except Exception:  # noqa: BLE001 (logged; the next round tries again)
                _log.exception("Could not compare the runs with the queue")
            await asyncio.sleep(MEND_EVERY)

    async def serve(self) -> None:
        """Work until a signal says stop."""
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self.stop)
        try:
            for lane in self.lanes.values():
                lane.warm()
            await _launch(self)
            print(f"The worker serves {self.store.root}, device {self.device}, process {os.getpid()}", flush=True)
            await asyncio.gather(self.beat(), self.mend())
        except Exception:  # noqa: BLE001 (logged; whoever supervises the worker starts it again)
            _log.exception("The worker has to end")
            self._leave(1)


async def _launch(worker: Worker) -> None:
    async def drive(id: str, round: int) -> None:
        await worker.drive(id, round)

    async def run(id: str, round: int) -> None:
        await step(id, round)

    step = DBOS.step(name="drive", preemptible=True)(drive)
    DBOS.workflow(name=queue.WORKFLOW, max_recovery_attempts=None)(run)  # attempts are counted by us, run by run
    queue.prepare(worker.store.root)
    config: DBOSConfig = {
        "name": queue.APPLICATION,
        "system_database_url": queue.url(worker.store.root),
        "application_version": queue.VERSION,
        "executor_id": queue.EXECUTOR,
        "serializer": DBOSPortableJSONSerializer(),
        "log_level": "WARNING",
    }
    DBOS(config=config)
    DBOS.launch()  # here, so that workflows run in this thread's loop, with whose end the children end
    for name in queue.QUEUES:
        await DBOS.register_queue_async(
            name, worker_concurrency=1, polling_interval_sec=POLL_EVERY, on_conflict="always_update"
        )


def _mend(store: Store, engine: queue.Queue) -> None:
    rows = runs.unfinished(store)
    states = engine.states([runs.workflow_id(row) for row in rows])
    for row in rows:
        state = states.get(runs.workflow_id(row))
        if state is None:
            engine.put(row)
        elif state == "CANCELLED":
            runs.end(store, row["id"], row["round"], "cancelled")
        elif state not in queue.OPEN:
            whole = runs.is_whole(store.folder(row["id"]))
            runs.end(store, row["id"], row["round"], "done" if whole else "failed", None if whole else GIVEN_UP)


def main(arguments: list[str] | None = None) -> int:
    """Serve a workspace; return 3 when another worker already does."""
    given = _arguments(arguments)
    process.die_with_starter()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    try:
        store = open_store(given.workspace)
        if process.lock(store.root / "locks" / "worker.lock") is None:
            print(
                f"Another worker already serves {store.root}; one is enough. Stop it first, or name another folder "
                "with --workspace.",
                file=sys.stderr,
            )
            return ALREADY_RUNNING
        process.kill_marked(process.mark_of(store.root))  # what a worker before this one may have left
        runs.resume(store)
        store.sweep()
        admission.sweep(store)
        worker = Worker(store, given.device, given.tasks)
    except (ProbeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    asyncio.run(worker.serve())
    return 0


def _arguments(arguments: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m workspace.worker", description="Serve a workspace's queue.")
    parser.add_argument("--workspace", type=Path, help="its folder (else THEODOLITE_WORKSPACE, else ./workspace-data)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--tasks", default="workspace.tasks", help="the module that has TASKS")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
