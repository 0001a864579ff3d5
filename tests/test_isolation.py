"""What a confined process cannot do: each attempt is made in a process of its own, whatever reader might make it."""

import json
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workspace import isolation, landlock, seccomp

ROOT = Path(__file__).resolve().parents[1]
LINUX = sys.platform == "linux"
BEGIN = """
import ctypes, json, os, resource, signal, socket, subprocess, sys
from pathlib import Path
import numpy as np
from workspace.isolation import Bounds, confine
folder = Path(sys.argv[1])
took = confine(Bounds(2 * 10**8 + {spare}, 10**10, {seconds}, 10**6), [folder / "in.bin"], [folder / "out"])
def attempt():
{body}
try:
    said = attempt()
except BaseException as error:
    said = type(error).__name__ + " " + str(getattr(error, "errno", ""))
print(json.dumps([took, str(said)]))
"""
needs = {
    name: pytest.mark.skipif(not found, reason=f"this machine has no {name}")
    for name, found in {
        "seccomp": LINUX and platform.machine() in ("x86_64", "aarch64"),
        "landlock": landlock.abi() > 0,
        "linux": LINUX,
    }.items()
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in.bin").write_bytes(b"input")
    (tmp_path / "secret.bin").write_bytes(b"secret")
    (tmp_path / "out").mkdir()
    return tmp_path


def run(folder: Path, body: str, *, seconds: int = 20, spare: int = 0) -> subprocess.CompletedProcess[str]:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    code = BEGIN.format(body=lines, seconds=seconds, spare=spare)
    environment = {"PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def said(folder: Path, body: str, **bounds: int) -> str:
    done = run(folder, body, **bounds)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)[1]


def test_every_measure_that_this_machine_has_took(folder: Path) -> None:
    done = run(folder, "return 'free'")
    took, answer = json.loads(done.stdout)
    assert answer == "free"
    assert set(took) <= set(isolation.ALL)
    assert "rlimits" in took or not LINUX
    assert ("landlock" in took) == (landlock.abi() > 0)
    assert ("seccomp" in took) == (LINUX and platform.machine() in ("x86_64", "aarch64"))


def test_what_reading_needs_still_works(folder: Path) -> None:
    body = """
import decimal, wave  # not imported before
from probes.formats import contents
content = (folder / "in.bin").read_bytes()
mapped = np.memmap(folder / "in.bin", np.uint8, "r")
(folder / "out" / "a").mkdir()
(folder / "out" / "a" / "x.tmp").write_bytes(content)
(folder / "out" / "a" / "x.tmp").rename(folder / "out" / "a" / "x")
return float(mapped[0])
"""
    assert said(folder, body) == str(float(b"i"[0]))
    assert (folder / "out" / "a" / "x").read_bytes() == b"input"


@needs["seccomp"]
@pytest.mark.parametrize(
    "body",
    [
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socketpair()",
        "socket.create_connection(('127.0.0.1', 9), 1)",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "subprocess.run(['/bin/true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.kill(os.getppid(), 0)",
        "os.kill(os.getppid(), signal.SIGTERM)",
        "os.kill(-1, 0)",
        "os.setsid()",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
        "os.memfd_create('x')",
        "os.symlink('/etc/passwd', folder / 'out' / 'link')",
        "os.link(folder / 'in.bin', folder / 'out' / 'twin')",
        "os.mkfifo(folder / 'out' / 'pipe')",
    ],
)
def test_calls_that_reading_never_needs_are_denied(folder: Path, body: str) -> None:
    assert said(folder, body) == "PermissionError 1"
    assert list((folder / "out").iterdir()) == []


@needs["seccomp"]
@pytest.mark.parametrize("name", sorted(seccomp.DENIED))
def test_every_denied_call_fails_with_eperm(folder: Path, name: str) -> None:
    number = seccomp.DENIED[name][platform.machine() != "x86_64"]
    if number is None:
        pytest.skip("this architecture has no such call")
    body = f"""
library = ctypes.CDLL(None, use_errno=True)
result = library.syscall(ctypes.c_long({number}), *[ctypes.c_long(-1)] * 6)
return result, ctypes.get_errno()
"""
    assert said(folder, body) == "(-1, 1)"


@needs["seccomp"]
def test_the_numbers_are_those_of_the_kernels_headers() -> None:
    places = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h")
    if not all(Path(each).exists() for each in places):
        pytest.skip("the kernel's headers are not installed")
    found = [
        {
            name: int(number)
            for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(each).read_text())
        }
        for each in places
    ]
    rest = {**seccomp._OWN_ONLY, **seccomp._NONE_OR_OWN, "clone": seccomp._CLONE, "seccomp": seccomp._SECCOMP}
    for name, numbers in {**seccomp.DENIED, **rest}.items():
        assert numbers == (found[0].get(name), found[1].get(name)), name
    assert seccomp._CLONE3 == found[0]["clone3"] == found[1]["clone3"]
    assert (found[0]["capset"], found[1]["capset"]) == isolation._CAPSET
    assert [each["capget"] for each in found] == [number - 1 for number in isolation._CAPSET]


@needs["landlock"]
@pytest.mark.parametrize(
    "body",
    [
        "(folder / 'secret.bin').read_bytes()",
        "list(folder.iterdir())",
        "Path('/etc/passwd').read_bytes()",
        "Path('/proc/self/environ').read_bytes()",
        "(Path.cwd() / 'pyproject.toml').read_bytes()",
        "(folder / 'in.bin').open('r+b')",
        "(folder / 'in.bin').unlink()",
        "(folder / 'new').write_bytes(b'')",
        "(folder / 'new').mkdir()",
        "(folder / 'out').rename(folder / 'moved')",
        "open(sys.prefix + '/new', 'w')",
        "os.truncate(folder / 'in.bin', 0)",
    ],
)
def test_nothing_outside_is_read_or_written(folder: Path, body: str) -> None:
    assert said(folder, body) in ("PermissionError 13", "OSError 18")  # 18: no move across what is allowed
    assert (folder / "in.bin").read_bytes() == b"input"
    assert sorted(each.name for each in folder.iterdir()) == ["in.bin", "out", "secret.bin"]


@needs["linux"]
def test_memory_is_bounded(folder: Path) -> None:
    assert said(folder, "np.ones(10**9, np.uint8)") in ("MemoryError ", "_ArrayMemoryError ")
    assert said(folder, "return len(np.ones(10**9, np.uint8))", spare=2 * 10**9) == "1000000000"
    assert said(folder, "return len(b'x' * 10**9)") == "MemoryError "


@needs["linux"]
def test_a_file_can_be_mapped_that_is_larger_than_the_memory(folder: Path) -> None:
    with (folder / "in.bin").open("r+b") as file:
        file.truncate(3 * 10**9)
    assert said(folder, "return len(np.memmap(folder / 'in.bin', np.uint8, 'r'))") == str(3 * 10**9)


def test_a_loop_ends_by_the_processor_time(folder: Path) -> None:
    assert run(folder, "while True: pass", seconds=1).returncode == -signal.SIGXCPU


def test_a_written_file_is_bounded(folder: Path) -> None:
    body = "(folder / 'out' / 'x').write_bytes(b'0' * 2_000_000)"
    assert said(folder, body) == "OSError 27"
    assert (folder / "out" / "x").stat().st_size <= 10**6


def test_limits_cannot_be_raised_again(folder: Path) -> None:
    body = "resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, 10**9))"
    assert said(folder, body) in ("ValueError ", "PermissionError 1")


def test_abort_still_ends_the_process(folder: Path) -> None:
    assert run(folder, "os.abort()").returncode == -signal.SIGABRT
