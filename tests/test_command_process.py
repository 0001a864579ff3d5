"""The command line as a process of its own, on real files; and what needs no bench."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from analyzers import catalogue
from probes.errors import ModelError
from workspace import command_model, command_run
from workspace.command_line import main

ROOT = Path(__file__).resolve().parents[1]


def test_arguments_of_a_named_model_are_checked():
    known = {"heads": 2, "tied": True, "activation": "gelu", "names": ["a"]}
    assert command_model._told("heads=4,tied=false,activation=relu", known) == {
        "heads": 4,
        "tied": False,
        "activation": "relu",
    }
    for text, message in (("heads=two", "whole number"), ("tied=3", "true or false"), ("names=b", "no argument")):
        with pytest.raises(ModelError, match=message):
            command_model._told(text, known)


def test_list_names_every_analyzer_and_option(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["analyzer"] for each in rows] == list(catalogue())
    for name, analyzer in catalogue().items():
        assert f"{name}: {analyzer.title}" in said
        assert all(f"    {each.name}=" in said for each in analyzer.options())


def test_a_line_of_progress_in_a_terminal_is_cleared(capsys):
    with command_run.Progress(terminal=True) as progress:
        progress(0.5, "halfway", 61.0)
    said = capsys.readouterr().err
    assert said.startswith("\r 50 %  halfway  (1 min 01 s left)") and said.endswith("\r")
    assert command_run.duration(7265) == "2 h 01 min"


def command(*parts, cwd=ROOT):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "workspace", *map(str, parts)]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_list_is_quick_because_it_imports_no_torch():
    code = "import sys; from workspace.command_line import main; main(['list']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_the_real_mnist_cnn_gives_a_spectrum(real, tmp_path):
    done = command(
        "run", "hessian_spectrum", "--checkpoint", real / "mnist-cnn/run1/epoch-200.pt",
        "--data", real / "mnist/t10k-labels-idx1-ubyte.gz", "--data", real / "mnist/t10k-images-idx3-ubyte.gz",
        "--model", "Sequential(Conv2d(1,32,3), ReLU(), MaxPool2d(2), Conv2d(32,64,3), ReLU(), MaxPool2d(2), "
        "Flatten(), Linear(1600,10))", "--examples", "200", "--device", "cpu", "--out", tmp_path / "out",
        "--set", "top=3", "--set", "bottom=0", "--set", "probes=1", "--set", "steps=4", "--set", "trace_probes=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    values = result["values"]
    assert values["accuracy"] >= 0.98 and values["examples"] == 200
    assert values["eigenvalues"] == sorted(values["eigenvalues"], reverse=True) and values["eigenvalues"][0] > 0
    assert len(values["eigenvalue_residuals"]) >= len(values["eigenvalues"])
    assert len(values["eigenvalues"]) == 3 and max(values["eigenvalue_residuals"]) < 1e-3 * values["eigenvalues"][0]
    for name in ("eigenvalues_min", "trace", "trace_stderr", "frobenius_norm", "loss"):
        assert name in values
    assert list((tmp_path / "out" / "figures").glob("*.html")) and list((tmp_path / "out" / "tables").glob("*.csv"))


def test_the_real_resnet_is_recognised_and_gives_a_spectrum(real, tmp_path):
    folder = real / "cifar10-resnet20"
    done = command(
        "run", "hessian_spectrum", "--checkpoint", folder / "resnet20-12fca82f.th", "--model", "resnet20",
        "--data", folder / "cifar10-train-1000.npz", "--mean", "0.485", "0.456", "0.406",
        "--std", "0.229", "0.224", "0.225", "--examples", "24", "--shuffle", "1", "--out", tmp_path / "out",
        "--set", "top=1", "--set", "bottom=0", "--set", "probes=1", "--set", "steps=2", "--set", "trace_probes=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["card"]["parameters"] == 269_722
    assert result["values"]["accuracy"] == 1 and result["values"]["examples"] == 24
    assert len(result["values"]["eigenvalues"]) == 1 and result["values"]["eigenvalues"][0] > 0


def test_the_example_is_queued_once(tmp_path):
    from workspace.jobs import Jobs
    from workspace.store import Store

    for _ in range(2):
        assert main(["example", "--workspace", str(tmp_path / "w")]) == 0
    jobs = Jobs(Store(tmp_path / "w")).list()
    assert [(job.task, job.state) for job in jobs] == [("example", "waiting")]
