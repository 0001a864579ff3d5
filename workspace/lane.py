"""A lane: one job at a time, in one warm child that is kept between jobs and replaced when it had to end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workspace import process

SECONDS_BETWEEN_LOOKS = 0.2  # whether the job has been cancelled
WARM_SECONDS = 300.0  # for a child to import what it needs, on a machine that is busy
GONE_SECONDS = 10.0  # for the kernel to clear away a killed process
REPORT_BYTES = 1 << 20  # at most, in one line
CANCELLED = "its process is ended: cancelled"

EndState = Literal["done", "failed", "cancelled", "crashed"]
Order = Mapping[str, Any]


@dataclass(frozen=True)
class Ending:
    """Say how a job ended in its lane; crashed: the child died under it."""

    state: EndState
    error: str | None = None


@dataclass
class Child:
    """A running child: its process, and the end of the pipe on which it reports."""

    process: asyncio.subprocess.Process
    reports: asyncio.StreamReader
    transport: asyncio.ReadTransport

    @property
    def is_alive(self) -> bool:
        return self.process.returncode is None

    def send(self, order: Order) -> None:
        """Give the child its next job."""
        if self.process.stdin is not None:
            self.process.stdin.write((json.dumps(dict(order)) + "\n").encode())

    async def report(self) -> Mapping[str, Any] | None:
        """Wait for the next report; None when the child died first."""
        line = asyncio.ensure_future(self.reports.readline())
        gone = asyncio.ensure_future(self.process.wait())
        try:
            await asyncio.wait({line, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not line.done():  # what it has said before it died is still in the pipe
                await asyncio.wait({line}, timeout=0.1)
            return json.loads(line.result()) if line.done() and line.result() else None
        finally:
            line.cancel()
            gone.cancel()


class Lane:
    """Run one job after another; use it from the event loop of the main thread, with whose end the children end."""

    def __init__(self, name: str, root: Path, tasks: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.order: Order | None = None  # what runs now
        self._root = root
        self._tasks = tasks
        self._mark = process.mark_of(root, name)
        self._environment = {**os.environ, **environment, process.MARK: self._mark}
        self._child: Child | None = None
        self._broken: str | None = None  # why the last child could not start, for the user
        self._busy = asyncio.Lock()
        self._warming: asyncio.Task[Child | None] | None = None

    @property
    def pid(self) -> int | None:
        """Return the id of the child, None when there is none."""
        return self._child.process.pid if self._child is not None and self._child.is_alive else None

    def warm(self) -> None:
        """Begin to start a child, so that the next job finds it ready."""
        if self._warming is None or self._warming.done():
            self._warming = asyncio.create_task(self._start())

    async def run(self, order: Order, go_on: Callable[[], bool]) -> Ending:
        """Run a job to its end; `go_on` is asked several times a second, and the child is killed when it says no."""
        async with self._busy:
            self.order = order
            try:
                ending, leaves = await self._run(order, go_on)
                if leaves:
                    if ending.state == "cancelled":
                        self._note(order, CANCELLED)
                    await self._end()
                return ending
            except asyncio.CancelledError:  # the workflow was cancelled, perhaps while the above was under way
                if self._child is not None:
                    self._note(order, CANCELLED)
                await self._end()
                raise
            finally:
                self.order = None
                if self.pid is None:
                    self.warm()

    def kill(self) -> None:
        """Kill the child and all that it started, without waiting for it."""
        if self._child is not None:
            process.kill_group(self._child.process.pid)
        process.kill_marked(self._mark)

    async def _run(self, order: Order, go_on: Callable[[], bool]) -> tuple[Ending, bool]:
        child = await self._ready(go_on)
        if not go_on():
            return Ending("cancelled"), False
        if child is None:
            self._note(order, "no process could be started for it; the worker's log says why")
            return Ending("failed", self._broken) if self._broken else Ending("crashed"), True
        child.send(order)
        report = asyncio.ensure_future(child.report())
        try:
            while not report.done():
                await asyncio.wait({report}, timeout=SECONDS_BETWEEN_LOOKS)
                if not report.done() and not go_on():
                    return Ending("cancelled"), True
            said = report.result()
        finally:
            report.cancel()
        if said is None:
            status = await self._end()
            self._note(order, f"its process died ({_in_words(status)})")
            return Ending("crashed"), True
        return Ending(said["state"], said["error"]), bool(said["leave"])

    async def _ready(self, go_on: Callable[[], bool]) -> Child | None:
        if self.pid is None or (self._warming is not None and not self._warming.done()):
            self.warm()
        while self._warming is not None and not self._warming.done():
            await asyncio.wait({self._warming}, timeout=SECONDS_BETWEEN_LOOKS)
            if not go_on():
                return None
        return self._child if self.pid is not None else None

    async def _start(self) -> Child | None:
        await self._end()
        read, write = os.pipe()
        try:
            module = ("-m", "workspace.child", "--workspace", str(self._root), "--lane", self.name)
            numbers = ("--tasks", self._tasks, "--report", str(write), "--parent", str(os.getpid()))
            running = await asyncio.create_subprocess_exec(
                sys.executable, *module, *numbers,
                stdin=asyncio.subprocess.PIPE, pass_fds=(write,), start_new_session=True, env=self._environment,
            )  # fmt: skip
        finally:
            os.close(write)
        reports = asyncio.StreamReader(limit=REPORT_BYTES)
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(reports)
        transport, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(read, "rb"))
        self._child = Child(running, reports, transport)
        try:
            said = await asyncio.wait_for(self._child.report(), WARM_SECONDS)
        except TimeoutError:
            said = None
        self._broken = None if said is None else said.get("broken")
        if said is None or self._broken:
            await self._end()
        return self._child

    async def _end(self) -> int | None:
        """Kill the child, wait until it has gone, and return its exit status."""
        child, self._child = self._child, None
        if child is None:
            return None
        process.kill_group(child.process.pid)
        process.kill_marked(self._mark)
        child.transport.close()
        try:
            await asyncio.wait_for(child.process.wait(), GONE_SECONDS)
        except TimeoutError:  # stuck in the kernel; the next child waits for its lock
            print(f"the process {child.process.pid} of the lane {self.name} does not end", file=sys.stderr)
        return child.process.returncode

    def _note(self, order: Order, text: str) -> None:
        path = self._root / "runs" / order["id"] / "log.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"[{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}] {text}\n")


def _in_words(status: int | None) -> str:
    if status is None:
        return "it does not end"
    return f"signal {-status}" if status < 0 else f"exit status {status}"
