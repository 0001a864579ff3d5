"""At the limits: what large files cost is bounded, and every limit that can be set is written down."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Limits
from workspace.admission import examine

ROOT = Path(__file__).resolve().parents[1]
GB, MB = 10**9, 10**6
FRESH = """
import sys
from pathlib import Path
from probes.checkpoint import inspect
found = inspect(sys.argv[1])
rows = [(name, list(shape), dtype) for name, shape, dtype in found]
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
print(len(rows), rows[0], int(status["VmHWM"].split()[0]) * 1024, found.full, "torch" in sys.modules, sep="|")
"""


def safetensors(path: Path) -> None:
    entries = {
        f"layers.{index}.weight": {
            "dtype": "F32",
            "shape": [4096, 1024],
            "data_offsets": [index << 24, (index + 1) << 24],
        }
        for index in range(300)
    }
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (300 << 24))


def torch_zip(path: Path) -> None:
    state = {f"layers.{index}.weight": torch.empty(4096, 1024) for index in range(300)}  # memory never touched
    with torch.serialization.skip_data():
        torch.save({"model": state, "epoch": 3}, path)


@pytest.mark.parametrize("write", [safetensors, torch_zip])
def test_five_gigabytes_are_inspected_in_300_megabytes(tmp_path: Path, write) -> None:
    path = tmp_path / "large"
    write(path)
    assert path.stat().st_size > 5 * GB
    done = subprocess.run([sys.executable, "-c", FRESH, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, first, peak, full, imported = done.stdout.strip().split("|")
    assert (count, first, full, imported) == ("300", "('layers.0.weight', [4096, 1024], 'float32')", "False", "False")
    assert int(peak) < 300 * MB
    found = examine(path, "large")
    assert found["tensors"] == 300 and found["parameters"] == 300 * 4096 * 1024 and found["checked"] == "structure"
    assert found["peak_bytes"] < 300 * MB


@pytest.mark.parametrize(
    ("name", "limit", "word"),
    [("BYTES", "1000", "1,000"), ("TENSORS", "2", "2"), ("NAME", "5", "5"), ("PARAMETERS", "10", "10")],
)
def test_a_limit_that_is_met_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: str, word: str
) -> None:
    torch.save({f"layer{index}.weight": torch.ones(20, 3) for index in range(4)}, tmp_path / "c.pt")
    assert examine(tmp_path / "c.pt", "c.pt")["tensors"] == 4
    monkeypatch.setenv(f"THEODOLITE_MAX_{name}", limit)
    with pytest.raises(RefusedCheckpoint, match=rf"c\.pt .*at most .*\b{word}\b"):
        examine(tmp_path / "c.pt", "c.pt")


def test_every_variable_is_written_down() -> None:
    sources = [path for folder in ("probes", "workspace", "ui") for path in (ROOT / folder).rglob("*.py")]
    used = {name for path in sources for name in re.findall(r"THEODOLITE_[A-Z_]+[A-Z]", path.read_text())}
    used |= {f"THEODOLITE_MAX_{each.name.upper()}" for each in fields(Limits)}
    used -= {"THEODOLITE_CHILD", "THEODOLITE_PARENT", "THEODOLITE_MAX"}  # set by ourselves
    written = "".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert sorted(each for each in used if each not in written) == []


def test_the_defaults_are_those_in_the_document() -> None:
    text = (ROOT / "docs" / "limits.md").read_text()
    words = {200 * GB: "200 GB", 200_000: "200 000", 512: "512", 32 << 20: "32 MiB", 16: "16", 300_000: "300 000"}
    for each in fields(Limits):
        row = re.search(rf"\| `THEODOLITE_MAX_{each.name.upper()}` \| ([^|]+) \|", text)
        assert row, each.name
        expected = "200 000 000 000" if each.name == "parameters" else words[getattr(Limits(), each.name)]
        assert row[1] == expected
