"""Layer rotation of 20 checkpoints of 25 M parameters: ours against merely reading the bytes, and against torch.load.

    python benchmarks/layer_rotation.py [--small] [--cold] [--folder FOLDER]

The checkpoints are those of a language model with the state of AdamW beside the weights, as `torch.save` writes them
(two thirds of a file are no weights), and their admitted copies, which are what every analysis reads. The methods take
turns in one process, and the medians count; "merely reading" takes the bytes of the weights into one buffer of 8 MiB,
over and over, and does nothing with them; "into memory of its own" reads each file's weights into a new array. The
memory is that of a process of its own: its peak while it works, above what it holds after its imports. --cold drops the
files from the page cache before each turn (as far as the kernel grants it). --small is for trying it out. The files are
made in --folder (12 GB; by default a temporary one) and stay there if it is given.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from analyzers._base import Quiet
from analyzers.layer_rotation import LayerRotation
from probes import admitted
from probes.admitted import read_admitted, write
from probes.checkpoint import Checkpoint, read_checkpoint
from probes.formats.contents import Limits
from probes.formats.files import open_contents

BUFFER = 8 << 20
WIDTH, BLOCKS, VOCABULARY = 512, 6, 12_000


def shapes(small: bool) -> dict[str, tuple[int, ...]]:
    """Name the tensors of a model of 25 M parameters, or of 0.5 M."""
    width, blocks, vocabulary = (96, 3, 1500) if small else (WIDTH, BLOCKS, VOCABULARY)
    found: dict[str, tuple[int, ...]] = {"wte.weight": (vocabulary, width)}
    for index in range(blocks):
        home = f"h.{index}"
        found |= {f"{home}.ln_1.weight": (width,), f"{home}.ln_1.bias": (width,)}
        found |= {f"{home}.attn.qkv.weight": (3 * width, width), f"{home}.attn.proj.weight": (width, width)}
        found |= {f"{home}.mlp.up.weight": (4 * width, width), f"{home}.mlp.down.weight": (width, 4 * width)}
    return found


def make(home: Path, count: int, small: bool) -> None:
    """Write so many checkpoints with their optimizer's state, and the admitted copy of each."""
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes(small).items()}
    for index in range(count):
        path, copy = home / f"epoch-{index:03d}.pt", home / "admitted" / f"epoch-{index:03d}"
        if not copy.exists():
            moments = {
                place: {"step": torch.tensor(1.0), "exp_avg": each * 0.1, "exp_avg_sq": each * each}
                for place, each in enumerate(state.values())
            }
            groups = [{"lr": 1e-3, "params": list(range(len(state)))}]
            torch.save({"model": state, "optimizer": {"state": moments, "param_groups": groups}, "epoch": index}, path)
            copy.mkdir(parents=True)
            contents = open_contents(path, path.name)
            silent = lambda _share, _doing: None
            write(contents, path.name, copy, sha256=f"{index:064d}", about={}, limits=Limits(), tick=silent)
        for each in state.values():
            each += 0.002 * torch.randn(each.shape, generator=generator)


def files(home: Path) -> list[Path]:
    """List the files with the optimizer's state."""
    return sorted(home.glob("*.pt"))


def copies(home: Path) -> list[Path]:
    """List the admitted copies."""
    return sorted((home / "admitted").iterdir())


def open_copies(home: Path) -> tuple[Checkpoint, ...]:
    """Open the admitted copies; the first time in a process each is hashed."""
    return tuple(read_admitted(folder) for folder in copies(home))


def rotate(checkpoints: tuple[Checkpoint, ...]) -> dict[str, list[float]]:
    """Ask what the page asks."""
    found: dict[str, list[float]] = LayerRotation().run(None, checkpoints, Quiet()).values["rotation"]
    return found


def ours_on_copies(home: Path) -> dict[str, list[float]]:
    """Follow the layers through copies that are open."""
    if str(home) not in OPENED:
        OPENED[str(home)] = open_copies(home)
    return rotate(OPENED[str(home)])


OPENED: dict[str, tuple[Checkpoint, ...]] = {}


def ours_with_opening(home: Path) -> dict[str, list[float]]:
    """Open the copies as a new process does, each with its checksum, then follow the layers."""
    admitted._verified.clear()
    return rotate(open_copies(home))


def ours_on_files(home: Path) -> dict[str, list[float]]:
    """Follow the layers through the files themselves; each record of weights is compared with its checksum first."""
    return rotate(tuple(read_checkpoint(path, sha256=path.name) for path in files(home)))


def keep_everything(home: Path) -> dict[str, list[float]]:
    """Load every file whole, keep all weights, then compare: what a script of ten lines does."""
    states = [torch.load(path, weights_only=True, mmap=False)["model"] for path in files(home)]  # noqa: TID251
    names = [name for name, each in states[0].items() if each.ndim > 1]
    start = {name: states[0][name].flatten() for name in names}
    cosine = torch.nn.functional.cosine_similarity
    found = {}
    for name in names:
        found[name] = [float(1 - cosine(start[name], state[name].flatten(), dim=0)) for state in states]
    return found


def read_copies(home: Path) -> None:
    """Read the bytes of the weights of the copies."""
    buffer = bytearray(BUFFER)
    for folder in copies(home):
        with (folder / "weights.safetensors").open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def read_anew(home: Path) -> None:
    """Read the bytes of the weights of the copies, each file's into new memory."""
    for folder in copies(home):
        path = folder / "weights.safetensors"
        array = np.empty(path.stat().st_size, np.uint8)
        with path.open("rb", buffering=0) as file:
            file.readinto(array.data)


def read_files(home: Path) -> None:
    """Read the bytes of the weights out of the files: their records come first."""
    buffer = bytearray(BUFFER)
    for path in files(home):
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename.rpartition("/data/")[2]: info for info in archive.infolist()}
        with path.open("rb", buffering=0) as file:
            for index in range(len(RECORDS)):
                info = infos[str(index)]
                file.seek(info.header_offset + 30 + len(info.filename) + 64)  # to within the padding
                left = info.file_size
                while left > 0:
                    left -= file.readinto(memoryview(buffer)[: min(left, BUFFER)]) or left


RECORDS: list[str] = []

METHODS: dict[str, Callable[[Path], object]] = {
    "merely reading the weights (admitted copies)": read_copies,
    "merely reading them, each into memory of its own": read_anew,
    "Theodolite, admitted copies": ours_on_copies,
    "Theodolite, admitted copies opened anew with their checksums": ours_with_opening,
    "merely reading the weights (files with optimizer state)": read_files,
    "Theodolite, files with optimizer state, checksums of the weights included": ours_on_files,
    "torch.load(weights_only=True, mmap=False) of the files, everything kept": keep_everything,
}
PEAK = """
import sys
from pathlib import Path
import benchmarks.layer_rotation as it
home, name, small = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
it.RECORDS.extend(it.shapes(small))
held = lambda key: int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(key)))
import torch
torch.dot(torch.ones(9), torch.ones(9))
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = held("VmRSS")
it.METHODS[name](home)
print(held("VmHWM") - before)
"""


def peak(home: Path, name: str, small: bool) -> float:
    """Return the peak memory, in MB, of a process of its own above what it holds after its imports."""
    root = Path(__file__).resolve().parents[1]
    line = [sys.executable, "-c", PEAK, str(home), name, str(small)]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024 / 1e6


def forget(home: Path) -> None:
    """Ask the kernel to drop the files from its cache."""
    for path in (each for each in home.rglob("*") if each.is_file()):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def measured(home: Path, turns: int, cold: bool) -> dict[str, list[float]]:
    """Let the methods take turns; the first turn of each does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for turn in range(turns + 1):
        for name, method in METHODS.items():
            if cold:
                forget(home)
            started = time.perf_counter()
            method(home)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def agreement(home: Path) -> float:
    """Return the largest difference to torch's cosines, which are in float32."""
    one, two = ours_on_copies(home), keep_everything(home)
    return max(abs(a - b) for name in two for a, b in zip(one[name], two[name], strict=True))


def main() -> None:
    """Make the files, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    RECORDS.extend(shapes(chosen.small))
    with tempfile.TemporaryDirectory() as scratch:
        home = chosen.folder or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        count = 5 if chosen.small else 20
        make(home, count, chosen.small)
        seconds = measured(home, chosen.turns, chosen.cold)
        middle = {name: statistics.median(each) for name, each in seconds.items()}
        total = sum(torch.Size(each).numel() for each in shapes(chosen.small).values())
        print(f"{count} checkpoints of {total / 1e6:.1f} M parameters, largest difference {agreement(home):.1e}.\n")
        print("| method | seconds | quickest | times merely reading | memory, MB |\n|---|---|---|---|---|")
        for name, value in middle.items():
            base = middle[
                next(
                    each for each in middle if "reading the weights" in each and ("files" in each) == ("files" in name)
                )
            ]
            memory = peak(home, name, chosen.small)
            print(f"| {name} | {value:.3f} | {min(seconds[name]):.3f} | {value / base:.2f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
