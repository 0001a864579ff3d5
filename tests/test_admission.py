"""The way in: what a throw-away process finds, what it may do to us when a reader fails, and what is left behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from probes.admitted import read_provenance
from probes.errors import DataError, RefusedCheckpoint
from workspace import admission, examination, landlock
from workspace.admission import admit, examine
from workspace.isolation import ALL
from workspace.store import Store
from workspace.uploads import Limits, UploadError, Uploads

ROOT = Path(__file__).resolve().parents[1]
LINUX = sys.platform == "linux"
confined = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "workspace")


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"0.weight": torch.randn(5, 4), "0.bias": torch.randn(5)}


@pytest.fixture
def stored(store: Store, state: dict[str, torch.Tensor], tmp_path: Path) -> str:
    torch.save({"model": state, "ema": {key: each / 2 for key, each in state.items()}, "epoch": 4}, tmp_path / "c.pt")
    return store.add_file(tmp_path / "c.pt", "c.pt").sha256


def strangers(store: Store) -> list[Path]:
    """List what should not be there after an admission, be it done or refused."""
    return [*(store.root / "admitted").glob(".*")]


def test_a_file_is_described_without_being_opened_here(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"model": state, "epoch": 4, "best_acc": 91.5}, tmp_path / "c.pt")
    said: list[float] = []
    found = examine(tmp_path / "c.pt", "mine.pt", tick=lambda share, _: said.append(share))
    assert found["name"] == "mine.pt" and found["epoch"] == 4 and found["metrics"] == {"best_acc": 91.5}
    assert found["shapes"] == [["0.weight", [5, 4], "float32"], ["0.bias", [5], "float32"]]
    assert found["checked"] == "full" and len(found["sha256"]) == 64 and found["parameters"] == 25
    assert set(found["isolation"]) | set(found["not_isolated"]) == set(ALL)
    assert "rlimits" in found["isolation"] or not LINUX
    assert said and found["peak_bytes"] < 300 * 2**20


def test_only_the_structure_is_read_where_that_is_asked(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    state["0.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "c.pt")
    assert examine(tmp_path / "c.pt", "c.pt", full=False)["doubts"] == []
    assert examine(tmp_path / "c.pt", "c.pt", full=False)["sha256"] is None
    assert "not a number (0.weight)" in examine(tmp_path / "c.pt", "c.pt")["doubts"][0]


def test_admission_makes_a_copy_that_is_read_alone(store: Store, stored: str, state: dict[str, torch.Tensor]) -> None:
    folder = admit(store, stored)
    assert folder == store.root / "admitted" / stored and strangers(store) == []
    store.path_of(stored).unlink()  # nobody opens the upload again
    checkpoint = admission.read(store, stored)
    assert checkpoint.name == "c.pt" and checkpoint.sha256 == stored and checkpoint.facts["epoch"] == 4
    assert all(torch.equal(each, state[key]) for key, each in checkpoint.load().items())
    halved = admission.read(store, stored, "ema")
    assert torch.equal(halved.load()["0.bias"], state["0.bias"] / 2) and halved.name == "c.pt (ema)"
    about = read_provenance(folder)
    assert about["sha256"] == stored and about["bounds"]["memory"] > 0 and about["limits"]["tensors"] == 200_000
    assert {each.stat().st_mode & 0o777 for each in folder.iterdir()} == {0o444}


def test_once_is_enough(store: Store, stored: str) -> None:
    stamp = (admit(store, stored) / "provenance.json").stat()
    again = (admit(store, stored) / "provenance.json").stat()
    assert (stamp.st_ino, stamp.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)


def test_two_at_once_are_harmless(store: Store, stored: str, state: dict[str, torch.Tensor]) -> None:
    code = (
        "import sys; from pathlib import Path; from workspace.admission import admit; from workspace.store import Store"
    )
    code += f"; admit(Store(Path({str(store.root)!r})), {stored!r})"
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(4)]
    assert [each.wait(120) for each in running] == [0] * 4
    assert strangers(store) == [] and [each.name for each in (store.root / "admitted").iterdir()] == [stored]
    assert torch.equal(admission.read(store, stored).load()["0.bias"], state["0.bias"])


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "provenance", "version"])
def test_a_rotten_copy_is_made_anew(store: Store, stored: str, state: dict[str, torch.Tensor], damage: str) -> None:
    folder = admit(store, stored)
    file = folder / ("weights.safetensors" if damage in ("flip", "cut", "gone") else "provenance.json")
    content = bytearray(file.read_bytes())
    file.chmod(0o644)
    if damage == "gone":
        file.unlink()
    elif damage == "version":
        file.write_bytes(content.replace(b'"version": 1', b'"version": 0'))
    else:
        content[-6] ^= 1
        file.write_bytes(content if damage == "flip" else content[:-3])
    loaded = admission.read(store, stored).load()
    assert all(torch.equal(each, state[key]) for key, each in loaded.items()) and strangers(store) == []


def test_a_rotten_upload_is_refused(store: Store, stored: str) -> None:
    path = store.path_of(stored)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the comment of the zip
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(RefusedCheckpoint, match=r"c\.pt"):
        admit(store, stored)
    with pytest.raises(DataError, match="no longer in the workspace"):
        admit(store, "0" * 64)
    with pytest.raises(ValueError, match="no sha256"):
        admit(store, "../../etc/passwd")
    assert list((store.root / "admitted").iterdir()) == []


def test_what_is_no_checkpoint_is_refused_in_words(store: Store, tmp_path: Path) -> None:
    sha256 = store.add_bytes(b"hello", "n\x1b[31m.pt").sha256
    with pytest.raises(RefusedCheckpoint) as caught:
        admit(store, sha256)
    assert "\x1b" not in str(caught.value) and "no checkpoint" in str(caught.value) and strangers(store) == []
    with pytest.raises(RefusedCheckpoint, match=r"gone\.pt does not exist"):
        examine(tmp_path / "gone.pt", "gone.pt")


# What a reader might do that has a hole

SENTENCES = {
    "loop": "longer than 2 s",
    "sleep": "longer than 2 s",
    "allocate": "more than the 2.0 GiB of memory",
    "segfault": "crashed the process that read it (SIGSEGV)",
    "abort": "crashed the process that read it (SIGABRT)",
    "killed": "when memory runs out",
    "leave": "ended without an answer (status 7)",
    "nonsense": "spoke nonsense",
    "mistake": "a mistake of ours (KeyError)",
    "deep": "nested too deeply",
    "connect": "what it may not do",
    "execute": "what it may not do",
    "write_outside": "what it may not do",
    "read_outside": "what it may not do",
    "kill_parent": "what it may not do",
    "flood": "spoke nonsense",
    "fill": "unfolds to more bytes",
}


@confined
@pytest.mark.parametrize("act", SENTENCES)
def test_a_reader_with_a_hole_does_no_harm(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, act: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    monkeypatch.setenv("THEODOLITE_MAX_PORT", str(listener.getsockname()[1]))
    monkeypatch.setenv("THEODOLITE_MAX_CANARY", str(tmp_path / "canary"))
    monkeypatch.setenv("THEODOLITE_MAX_SECONDS", "2" if act in ("loop", "sleep") else "30")
    monkeypatch.setattr(examination, "MODULE", "tests.bad_reader")
    monkeypatch.setattr(examination, "ANSWER_BYTES", 2**24)
    monkeypatch.setattr(examination, "MOST_WRITTEN", 2**24)
    sha256 = store.add_bytes(act.encode(), "bad.pt").sha256
    with pytest.raises(RefusedCheckpoint) as caught:
        admit(store, sha256)
    assert SENTENCES[act] in str(caught.value) and "Traceback" not in str(caught.value)
    assert "bad.pt" in str(caught.value)
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()
    assert not (tmp_path / "canary").exists()
    assert list((store.root / "admitted").iterdir()) == [] and strangers(store) == []
    assert children() == []


def children() -> list[str]:
    done = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "comm="], capture_output=True, text=True)
    return [each for each in done.stdout.split() if each != "ps"]


def start_slow_admission(store: Store, home: Path) -> subprocess.Popen[bytes]:
    """Begin an admission that never ends, in a process of its own, and wait until its throw-away process runs."""
    sha256 = store.add_bytes(b"sleep", "slow.pt").sha256
    code = "import sys; from pathlib import Path; from workspace import admission, examination; "
    code += "from workspace.store import Store; examination.MODULE = 'tests.bad_reader'; "
    code += f"admission.admit(Store(Path({str(store.root)!r})), {sha256!r})"
    running = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while time.monotonic() < end and not readers(running.pid):
        time.sleep(0.05)
    return running


def readers(parent: int) -> list[int]:
    done = subprocess.run(["ps", "--ppid", str(parent), "-o", "pid="], capture_output=True, text=True)
    return [int(each) for each in done.stdout.split()]


@pytest.mark.skipif(not LINUX, reason="the kernel's signal at a parent's death is Linux's")
def test_nothing_outlives_a_killed_parent(store: Store, tmp_path: Path) -> None:
    running = start_slow_admission(store, tmp_path)
    (reader,) = readers(running.pid)
    time.sleep(0.7)  # until it sleeps
    running.send_signal(signal.SIGKILL)
    running.wait()
    end = time.monotonic() + 10
    while time.monotonic() < end and Path(f"/proc/{reader}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{reader}").exists()
    assert len(strangers(store)) == 2  # a folder and its lock: for the next start to sweep
    assert admission.sweep(store) == 1 and strangers(store) == []


def test_a_sweep_leaves_alone_what_is_under_way(store: Store, tmp_path: Path) -> None:
    running = start_slow_admission(store, tmp_path)
    try:
        assert admission.sweep(store) == 0 and len(strangers(store)) == 2
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(30)
    assert strangers(store) == []


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = "import sys, workspace.examiner; print([each for each in ('torch', 'transformers', 'pandas', 'sqlalchemy') "
    code += "if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_no_secret_of_the_environment_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "x")
    monkeypatch.setenv("THEODOLITE_MAX_TENSORS", "5")
    passed = examination._environment()
    assert "SECRET_KEY" not in passed and passed["THEODOLITE_MAX_TENSORS"] == "5"


def test_limits_reach_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({f"{index}.weight": torch.ones(2) for index in range(9)}, tmp_path / "c.pt")
    monkeypatch.setenv("THEODOLITE_MAX_TENSORS", "5")
    with pytest.raises(RefusedCheckpoint, match="at most 5"):
        examine(tmp_path / "c.pt", "c.pt")


def test_bounds_grow_with_the_file_up_to_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    small, seconds = examination.bounds_for(1000, reads_all=True)
    large, longer = examination.bounds_for(10**10, reads_all=True)
    assert small.memory < 2.1 * 2**30 and seconds == 60 and longer == 60 + 1000
    assert small.memory < large.memory <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert examination.bounds_for(10**10, reads_all=False)[1] == 60
    monkeypatch.setenv("THEODOLITE_MAX_MEMORY", "1000000")
    monkeypatch.setenv("THEODOLITE_MAX_SECONDS", "7")
    bounds, seconds = examination.bounds_for(10**10, reads_all=True)
    assert (bounds.memory, bounds.seconds, seconds) == (1_000_000, 7, 7)


def test_copies_count_towards_what_the_workspace_may_take(store: Store, stored: str) -> None:
    kept = store.file(stored)
    assert kept is not None
    uploads = Uploads(store, Limits(file=10**6, total=kept.bytes + 1000))
    about = {"name": "next.pt", "bytes": 900, "mark": "x"}
    token = uploads.token("bench")
    assert asyncio.run(uploads.begin(token, about))["offset"] == 0
    admit(store, stored)
    with pytest.raises(UploadError, match="0 bytes are left"):
        asyncio.run(Uploads(store, uploads.limits).begin(token, {**about, "name": "other.pt"}))


def test_a_hugging_face_folder_is_examined_and_admitted(store: Store, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = tmp_path / "hf"
    folder.mkdir()
    save_file({"lm_head.weight": np.ones((4, 3), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}')
    assert examine(folder, "hf")["tensors"] == 1
    admission.admit_file(folder, "hf", tmp_path / "copy")
    assert (tmp_path / "copy" / "config.json").exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy", "hf", "workspace"]
