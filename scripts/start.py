#!/usr/bin/env python3
"""Install everything into .venv, start the worker and the app, and open the browser. Standard library only.

    python3 scripts/start.py [--no-browser] [--port 8501] [--workspace DIR] [--no-example] [--check]

Ctrl-C ends all that it started. A worker or an app that dies is started again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from environment import ROOT, ensure, python

HEALTHY_WITHIN_SECONDS = 120
EXAMPLE_WITHIN_SECONDS = 600
SERVED_BY_ANOTHER = 3  # exit status of the worker


def main() -> int:
    """Run until Ctrl-C, or with --check until the example is done; return the exit status."""
    options = parse()
    refuse_taken_port(options.port)
    ensure("requirements.txt")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, lambda *_: sys.exit(0))
    with services(options) as running:
        try:
            return serve(options, running)
        except KeyboardInterrupt:
            print("\nStopping ...", flush=True)
            return 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Install and start Theodolite.")
    parser.add_argument("--no-browser", action="store_true", help="do not open the browser")
    parser.add_argument("--port", type=int, default=8501, help="port of the app on 127.0.0.1 (default 8501)")
    folder = ROOT / "workspace-data"
    parser.add_argument("--workspace", type=Path, default=folder, help=f"where all is kept (default {folder})")
    parser.add_argument("--no-example", action="store_true", help="do not train the example on the first start")
    parser.add_argument("--check", action="store_true", help="wait until one example run is done, then exit 0")
    return parser.parse_args()


def refuse_taken_port(port: int) -> None:
    """Exit with a sentence when something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            sys.exit(f"Port {port} is taken, perhaps by another Theodolite. Choose another with --port.")


@dataclass
class Service:
    """One process that is started again when it dies, at most five times a minute."""

    name: str
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    starts: list[float] = field(default_factory=list)

    def keep_alive(self) -> None:
        """Start the process if it does not run; exit when it keeps dying."""
        if self.process and self.process.poll() is None:
            return
        if self.process and self.process.returncode == SERVED_BY_ANOTHER:
            sys.exit("Another Theodolite serves this workspace already: use that one, or name another --workspace.")
        if self.process:
            print(f"The {self.name} ended (status {self.process.returncode}); starting it again.", flush=True)
        now = time.monotonic()
        self.starts = [each for each in self.starts if now - each < 60] + [now]
        if len(self.starts) > 5:
            sys.exit(f"The {self.name} died five times within a minute; its message is above.")
        with undisturbed():
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, start_new_session=True, stdin=subprocess.DEVNULL
            )

    def stop(self, seconds: float = 8) -> None:
        """Ask the process to end, then end its whole group."""
        if not self.process:
            return
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let signals wait while a process is started: one that nobody knows yet would not be ended."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    heard = {number: handler for number, handler in before.items() if callable(handler)}
    for number in heard:
        signal.signal(number, lambda signum, _: came.append(signum))
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)
        for each in came:
            signal.raise_signal(each)


@contextlib.contextmanager
def services(options: argparse.Namespace) -> Iterator[list[Service]]:
    """Start worker and app, and end both however this block is left."""
    workspace = options.workspace.resolve()
    environment = {
        **os.environ,
        "THEODOLITE_WORKSPACE": str(workspace),
        "THEODOLITE_PARENT": str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }
    worker = [str(python()), "-m", "workspace.worker", "--workspace", str(workspace)]
    app = [str(python()), "-m", "streamlit", "run", "app.py", "--server.port", str(options.port)]
    app += ["--server.address", "127.0.0.1", "--server.headless", "true"]
    running = [Service("worker", worker, environment), Service("app", app, environment)]
    try:
        for each in running:
            each.keep_alive()
        yield running
    finally:
        for each in reversed(running):
            each.stop()


def serve(options: argparse.Namespace, running: list[Service]) -> int:
    """Wait for the app, open the browser, then watch over the services."""
    address = f"http://127.0.0.1:{options.port}"
    wait_until_healthy(address, running)
    if not options.no_example:
        ask_for_example(running[0].environment)
    print(f"Theodolite is open at {address}   (Ctrl-C ends it)", flush=True)
    if options.check:
        return wait_for_example(options.workspace.resolve(), running)
    if not options.no_browser:
        webbrowser.open(address)
    while True:
        for each in running:
            each.keep_alive()
        time.sleep(1)


def wait_until_healthy(address: str, running: list[Service]) -> None:
    """Return when the app answers; exit with a sentence when it does not in time."""
    end = time.monotonic() + HEALTHY_WITHIN_SECONDS
    while time.monotonic() < end:
        for each in running:
            each.keep_alive()
        if answers(f"{address}/_stcore/health"):
            return
        time.sleep(0.3)
    sys.exit(f"The app did not answer on {address} within {HEALTHY_WITHIN_SECONDS} s; its messages are above.")


def answers(address: str) -> bool:
    """Tell whether an HTTP server answers with success."""
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def ask_for_example(environment: dict[str, str]) -> None:
    """Put the example into the queue; asking again changes nothing."""
    done = subprocess.run([str(python()), "-m", "workspace", "example"], cwd=ROOT, env=environment)
    if done.returncode:
        print("The example could not be queued; its message is above.", flush=True)


def wait_for_example(workspace: Path, running: list[Service]) -> int:
    """Return 0 when a Hessian spectrum is done, 1 when none is in time."""
    end = time.monotonic() + EXAMPLE_WITHIN_SECONDS
    while time.monotonic() < end:
        for each in running:
            each.keep_alive()
        for result in workspace.glob("runs/*/result.json"):
            found = json.loads(result.read_text())
            if found.get("analyzer") == "hessian_spectrum":
                print(f"The example is done: top eigenvalue {found['values']['eigenvalues'][0]:.4g}", flush=True)
                return 0
        time.sleep(0.5)
    print(
        f"No example run was done within {EXAMPLE_WITHIN_SECONDS} s; see {workspace / 'runs'}.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
