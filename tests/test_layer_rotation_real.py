"""Layer rotation of the two real runs: the figures measured elsewhere, the wrong seed, and no model anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analyzers._base import Quiet
from analyzers.layer_rotation import LayerRotation
from probes.checkpoint import read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = (0, 50, 100, 150, 200)
FIGURES = {"run1": (0.553, 0.892, 0.977), "run2": (0.550, 0.896, 0.974)}


def files(real: Path, run: str, epochs: tuple[int, ...] = EPOCHS) -> list[Path]:
    return [real / "mnist-cnn" / run / f"epoch-{epoch:03d}.pt" for epoch in epochs]


def values(paths: list[Path], **options: Any) -> dict[str, Any]:
    nothing: Any = None
    return dict(LayerRotation(**options).run(nothing, tuple(map(read_checkpoint, paths)), Quiet()).values)


@pytest.mark.parametrize("run", FIGURES)
def test_the_figures_measured_elsewhere(real: Path, run: str) -> None:
    found = values(files(real, run)[::-1])  # in any order
    assert found["times"] == list(EPOCHS)
    assert found["checkpoints"][0] == "epoch-000.pt"
    assert tuple(round(row[-1], 3) for row in found["rotation"].values()) == FIGURES[run]
    assert [row[0] for row in found["rotation"].values()] == pytest.approx([0, 0, 0], abs=1e-12)
    assert found["seed_match"]["verdict"] == "plausible"


def test_norms_grow_as_measured_elsewhere(real: Path) -> None:
    ratios = [row[-1] for row in values(files(real, "run1"))["norm_ratio"].values()]
    assert ratios == pytest.approx([3.3, 0.61, 2.82], rel=0.01)


def test_another_seed_is_not_taken_for_the_initialisation(real: Path) -> None:
    found = values([*files(real, "run2", (0,)), *files(real, "run1", (50, 200))])
    match = found["seed_match"]
    assert match["verdict"] == "unlikely" and match["layers_within"] == match["layers"] == 3
    assert "probably not" in match["sentence"]


def test_the_command_needs_neither_model_nor_data(real: Path, tmp_path: Path) -> None:
    """From the initialisation to the end no module can be made here, and no GPU be touched."""
    code = (
        "import sys; from torch import cuda, nn; from workspace import command_line, command_run; "
        "command_run.model_of = command_run.build_objective = nn.Module.__init__ = cuda._lazy_init = None; "
        "sys.exit(command_line.main(sys.argv[1:]))"
    )
    parts = [part for path in files(real, "run1", (0, 200)) for part in ("--checkpoint", str(path))]
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "layer_rotation", *parts, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out" / "result.json").read_text())["values"]
    assert tuple(round(row[-1], 3) for row in found["rotation"].values()) == FIGURES["run1"]
    assert (tmp_path / "out" / "figures" / "rotation.html").exists()
    assert (tmp_path / "out" / "tables" / "rotation.csv").exists()
