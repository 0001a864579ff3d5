"""The first command: quick the second time, clear when it cannot, and it ends all that it started."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
START = ROOT / "scripts" / "start.py"
STANDARD = {"argparse", "contextlib", "hashlib", "json", "os", "signal", "socket", "subprocess", "sys", "time", "venv"}
STANDARD |= {"urllib", "webbrowser", "collections", "dataclasses", "pathlib", "shutil", "__future__", "environment"}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    about = importlib.util.spec_from_file_location("environment_of_test", ROOT / "scripts" / "environment.py")
    module = importlib.util.module_from_spec(about)
    about.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    (tmp_path / "requirements.txt").write_text("some==1\n")
    return module


@pytest.fixture
def installs(environment, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(environment.subprocess, "run", run)
    return calls


def test_requirements_are_installed_once_and_again_when_they_change(environment, installs, tmp_path: Path) -> None:
    environment.ensure("requirements.txt")
    environment.ensure("requirements.txt")
    assert len(installs) == 1
    (tmp_path / "requirements.txt").write_text("some==2\n")
    environment.ensure("requirements.txt")
    assert len(installs) == 2


def test_a_failed_install_is_not_taken_for_a_finished_one(environment, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: failed)
    for _ in range(2):
        with pytest.raises(SystemExit, match="pip could not install"):
            environment.ensure("requirements.txt")


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 13, 0)])
def test_other_pythons_are_refused_in_words(environment, version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.sys, "version_info", version)
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or 3\.12"):
        environment.ensure("requirements.txt")


@pytest.mark.parametrize("name", ["start.py", "test.py", "environment.py"])
def test_the_commands_import_the_standard_library_only(name: str) -> None:
    import ast

    tree = ast.parse((ROOT / "scripts" / name).read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {each.split(".")[0] for each in found} <= STANDARD


def test_a_taken_port_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run([sys.executable, START, "--port", port], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert f"Port {port} is taken" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_during_a_start_waits_until_the_process_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else Ctrl-C at that moment would leave a process that nobody ends."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    start = importlib.import_module("start")
    popen = subprocess.Popen

    def interrupted(*arguments, **settings):
        process = popen(*arguments, **settings)
        signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(start.subprocess, "Popen", interrupted)
    service = start.Service("sleeper", ["sleep", "60"], dict(os.environ))
    with pytest.raises(KeyboardInterrupt):
        service.keep_alive()
    assert service.process.poll() is None
    service.stop()
    assert service.process.returncode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    port, workspace = free_port(), tmp_path / "workspace"
    command = [sys.executable, str(START), "--no-browser", "--no-example", "--port", str(port)]
    ignored = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what runs in the background
    process = subprocess.Popen(
        [*command, "--workspace", str(workspace)], cwd=ROOT, stdout=subprocess.PIPE, preexec_fn=ignored
    )
    try:
        wait(lambda: healthy(port), 60)
        yield process, port, workspace
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.mark.engine
def test_what_dies_is_started_again_and_ctrl_c_ends_all(started) -> None:
    process, port, workspace = started
    wait(lambda: find("workspace.worker", workspace), 30)
    (worker,) = find("workspace.worker", workspace)
    os.kill(worker, signal.SIGKILL)
    wait(lambda: find("workspace.worker", workspace) not in ([], [worker]), 30)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert not find("workspace.worker", workspace)
    assert not find("workspace.child", workspace)
    assert not healthy(port)


@pytest.mark.engine
def test_a_second_start_on_the_same_workspace_says_so(started) -> None:
    workspace = started[2]
    command = [sys.executable, START, "--no-browser", "--no-example", "--port", str(free_port())]
    second = [*map(str, command), "--workspace", str(workspace)]
    done = subprocess.run(second, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 1
    assert "Another Theodolite serves this workspace" in done.stderr
    assert healthy(started[1])


@pytest.mark.engine
def test_nothing_outlives_the_command_when_it_is_killed(started) -> None:
    process, port, workspace = started
    wait(lambda: find("workspace.worker", workspace), 30)
    process.kill()
    wait(lambda: not find("workspace.worker", workspace), 10)
    wait(lambda: not healthy(port), 10)


@pytest.mark.engine
def test_check_trains_the_example_and_measures_its_spectrum(tmp_path: Path) -> None:
    command = [sys.executable, str(START), "--check", "--no-browser", "--port", str(free_port())]
    done = subprocess.run(
        [*command, "--workspace", str(tmp_path)], capture_output=True, text=True, timeout=400, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The example is done: top eigenvalue" in done.stdout
    assert not find("workspace.worker", tmp_path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def find(module: str, workspace: Path) -> list[int]:
    """Return the processes that run a module on a workspace."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if module in words and any(str(workspace) in word for word in words):
            found.append(int(folder.name))
    return found


def wait(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
