"""Attribution on the command line: real digits, one checkpoint and a run of them, values by their promised names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from captum.attr import Saliency
from torch import nn

from tests.test_command_process import command
from workspace.command_line import main

PROMISED = ("method", "target", "prediction", "completeness_error", "insertion_auc", "deletion_auc", "infidelity",
            "sensitivity_max")  # fmt: skip


def asked(real: Path, out: Path, *settings: str, checkpoints: tuple[str, ...] = ("epoch-200",)) -> list[str]:
    mnist = [real / "mnist" / f"t10k-{each}-ubyte.gz" for each in ("images-idx3", "labels-idx1")]
    parts = ["run", "attribution", "--examples", "60", "--device", "cpu", "--out", out]
    parts += [part for file in mnist for part in ("--data", file)]
    parts += [part for each in checkpoints for part in ("--checkpoint", real / "mnist-cnn" / "run1" / f"{each}.pt")]
    parts += [part for each in settings for part in ("--set", each)]
    return list(map(str, parts))


def test_one_map_of_the_real_cnn(real: Path, tmp_path: Path) -> None:
    done = command(*asked(real, tmp_path / "out", "examples=7", "methods=integrated_gradients", "tolerance=0.001"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    values = result["values"]
    assert all(not isinstance(values[name], list) for name in PROMISED)
    assert values["method"] == "integrated_gradients" and values["completeness_error"] <= 1e-3
    assert values["target"] == values["prediction"] == values["cases"][0]["label"] == 9  # the eighth test digit
    about = values["maps"][0]
    assert about["insertion_auc"] > about["random_insertion_auc"] + 2 * about["random_insertion_auc_stderr"]
    assert about["deletion_auc"] < about["random_deletion_auc"] - 2 * about["random_deletion_auc_stderr"]
    for name in ("maps", "curves", "scoreboard"):
        assert (tmp_path / "out" / "figures" / f"{name}.html").is_file()
        assert (tmp_path / "out" / "tables" / f"{name}.csv").is_file()
    assert result["card"]["mode"].startswith("eval") and "insertion_auc: " in done.stdout


def test_a_run_of_checkpoints_in_process_is_captum_s(real: Path, tmp_path: Path) -> None:
    over = ("epoch-000", "epoch-100", "epoch-200")
    lines = asked(real, tmp_path / "out", "examples=0,3", "methods=saliency", "judge=false", checkpoints=over)
    assert main(lines) == 0
    values = json.loads((tmp_path / "out" / "result.json").read_text())["values"]
    assert values["method"] == ["saliency"] * 6 and values["insertion_auc"] == [None] * 6
    assert [each["checkpoint"] for each in values["cases"][::2]] == [f"{each}.pt" for each in over]
    assert values["times"] == [0, 100, 200] and values["unit"] == "epoch"
    assert (tmp_path / "out" / "figures" / "run.html").is_file()
    net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(),
                        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1600, 10))  # fmt: skip
    state = torch.load(real / "mnist-cnn" / "run1" / "epoch-100.pt", weights_only=True, map_location="cpu")
    net.load_state_dict(state["model_state"])
    from probes.data import read_batches
    from probes.specs import DataSpec

    files = tuple(str(real / "mnist" / f"t10k-{each}-ubyte.gz") for each in ("images-idx3", "labels-idx1"))
    image = read_batches(DataSpec(files, examples=60)).inputs[3:4].requires_grad_()
    expected = Saliency(net).attribute(image, target=values["cases"][3]["target"])[0]
    found = np.load(tmp_path / "out" / "arrays.npz")["map_3"]
    assert np.allclose(found, expected.detach().numpy(), atol=1e-5)


def test_what_is_wrong_is_said_in_a_line(real: Path, tmp_path: Path, capsys) -> None:
    assert main(asked(real, tmp_path / "out", "methods=integrated")) == 2
    assert "There is no method 'integrated'" in capsys.readouterr().err
    assert main(asked(real, tmp_path / "out", "examples=99")) == 2
    assert "There is no example 99; the data has 60" in capsys.readouterr().err
