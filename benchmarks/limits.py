"""Memory and time at the limits: a large upload through Chromium, the inspection and the admission of large files.

    python benchmarks/limits.py [--upload BYTES] [--inspect BYTES] [--admit BYTES] [--repeats N]

Each part is left out where 0 bytes are given. The upload goes from a sparse file through a real browser to a real
server; the resident memory of the server's process is sampled every 50 ms. An inspection is `probes.checkpoint.inspect`
in a fresh process, on files that torch and safetensors lay out; it counts the time inside of the call and, as peak, the
kernel's own VmHWM. An admission is that of a file of random numbers, with the peak of its throw-away process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MB = 10**6
FRESH = """
import sys, time
from pathlib import Path
from probes.checkpoint import inspect
start = time.perf_counter()
found = inspect(sys.argv[1])
count = len(list(found))
seconds = time.perf_counter() - start
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
print(count, seconds, int(status["VmHWM"].split()[0]) * 1024)
"""


def main() -> None:
    """Measure what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upload", type=int, default=2 * 10**9, metavar="BYTES")
    parser.add_argument("--inspect", type=int, default=5 * 10**9, metavar="BYTES")
    parser.add_argument("--admit", type=int, default=10**9, metavar="BYTES")
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        if chosen.inspect:
            inspections(Path(home), chosen.inspect, chosen.repeats)
        if chosen.admit:
            admission(Path(home), chosen.admit)
        if chosen.upload:
            upload(Path(home), chosen.upload)


def inspections(home: Path, size: int, repeats: int) -> None:
    """Inspect a safetensors file and a torch zip of so many bytes, each time in a fresh process."""
    for path in (sparse_safetensors(home, size), sparse_zip(home, size)):
        rows = [one_inspection(path) for _ in range(repeats)]
        seconds, peaks = [each[1] for each in rows], [each[2] for each in rows]
        print(
            f"inspect {path.name}: {path.stat().st_size / 1e9:.1f} GB, {rows[0][0]:.0f} tensors: "
            f"{statistics.median(seconds):.3f} s (at most {max(seconds):.3f}), peak {max(peaks) / MB:.0f} MB"
        )


def one_inspection(path: Path) -> list[float]:
    """Return the number of tensors, the seconds and the peak in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [float(each) for each in done.stdout.split()]


def sparse_safetensors(home: Path, size: int, tensors: int = 300) -> Path:
    """Lay out a file whose tensors are holes."""
    each = size // tensors // 4096 * 4096
    spans = [(index * each, index * each + each) for index in range(tensors)]
    about = {"dtype": "F32", "shape": [each // 4096, 1024]}
    entries = {f"layers.{index}.weight": {**about, "data_offsets": span} for index, span in enumerate(spans)}
    header = json.dumps(entries).encode()
    path = home / "large.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + tensors * each)
    return path


def sparse_zip(home: Path, size: int, tensors: int = 300) -> Path:
    """Let torch lay out a checkpoint without writing the numbers."""
    import torch

    each = size // tensors // 4096
    state = {f"layers.{index}.weight": torch.empty(each, 1024) for index in range(tensors)}  # memory never touched
    path = home / "large.pt"
    with torch.serialization.skip_data():
        torch.save({"model": state, "epoch": 3}, path)
    return path


def admission(home: Path, size: int) -> None:
    """Admit a file of random numbers."""
    import torch

    from workspace.admission import admit_file
    from workspace.examination import Order, carry_out

    torch.save({f"{index}.weight": torch.randn(size // 40 // 1024, 256) for index in range(40)}, home / "r.pt")
    start = time.perf_counter()
    admit_file(home / "r.pt", "r.pt", home / "copy")
    seconds = time.perf_counter() - start
    (home / "again").mkdir()
    answer = carry_out(Order(home / "r.pt", "r.pt", home / "again", admit=True), size, lambda *_: None)
    print(f"admit {size / 1e9:.1f} GB: {seconds:.1f} s, peak {answer['peak_bytes'] / MB:.0f} MB, {answer['isolation']}")


def upload(home: Path, size: int) -> None:
    """Upload a sparse file through Chromium and watch the server's memory."""
    from tests import server, ui

    workspace = home / "workspace"
    workspace.mkdir()
    with (home / "upload.pt").open("wb") as file:
        file.truncate(size)
    for app in server.serve(workspace):
        with ui.browser() as browser:
            page = browser.new_page()
            ui.open_page(page, f"{app.url}/?bench=large")
            time.sleep(3)
            before = resident(app.process.pid)
            with watched(app.process.pid) as seen:
                start = time.perf_counter()
                ui.upload(page, "checkpoint", home / "upload.pt")
                while not any(each.stat().st_size == size for each in (workspace / "objects").glob("*/*")):
                    time.sleep(0.1)
                seconds = time.perf_counter() - start
                time.sleep(5)  # the page draws itself anew
            after = resident(app.process.pid)
        figures = [each / MB for each in (before, max(seen), after)]
        print(
            f"upload {size / 1e9:.1f} GB: {seconds:.0f} s; the app's process had "
            f"{figures[0]:.0f} MB before, {figures[1]:.0f} MB at most, {figures[2]:.0f} MB after"
        )


@contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """Sample the resident memory of a process every 50 ms."""
    seen, over = [resident(pid)], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            seen.append(resident(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def resident(pid: int) -> int:
    """Return the bytes of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
