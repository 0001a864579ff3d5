"""The command line: in process where a fake analyzer will do, as a process of its own on the real files."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from torch import nn

from analyzers import catalogue
from analyzers._base import Analyzer, Result, option
from probes.errors import ModelError
from probes.models import build
from probes.specs import ModelSpec
from workspace import command_line, command_run
from workspace.command_line import main

ROOT = Path(__file__).resolve().parents[1]


class Norms(Result):
    def figures(self) -> Mapping[str, go.Figure]:
        return {"norms": go.Figure(go.Bar(y=[self.values["loss"]]))}

    def tables(self) -> Mapping[str, pd.DataFrame]:
        return {"norms": pd.DataFrame({"layer": ["=cmd()", "b"], "norm": [1.0, 2.0]})}


@dataclass(frozen=True)
class Fake(Analyzer):
    name = "fake"
    title = "Fake"
    question = "How long is the gradient?"
    version = 1
    result = Norms
    times: int = option(2, "Times", "How often.", minimum=1, maximum=9)
    dtype: str = option("float32", "Number format", "Of the products.", choices=("float32", "float64"))

    def run(self, objective, checkpoints, tick):
        found = objective.evaluate(tick)
        tick(0.5, "half of it")
        values = {"loss": found.loss, "accuracy": found.accuracy, "examples": found.examples, "times": self.times}
        values["gradient"] = [float(objective.gradient().norm())]
        names = [each.name for each in checkpoints]
        return Norms("fake", {**objective.card(), "names": names}, values, {"a": np.arange(3)}, ("mind this.",))


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(command_run, "catalogue", lambda: {"fake": Fake})
    monkeypatch.setattr(command_line, "catalogue", lambda: {"fake": Fake})


@pytest.fixture
def bench(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    torch.save({"state_dict": module.state_dict(), "epoch": 7}, tmp_path / "c.pt")
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(30, 4)).astype(np.float32), generator.integers(0, 3, 30)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    (tmp_path / "m.txt").write_text(repr(module))
    return tmp_path, module, torch.from_numpy(x), torch.from_numpy(y)


def arguments(folder, *more, model="m.txt"):
    base = ["run", "fake", "--checkpoint", str(folder / "c.pt"), "--data", str(folder / "d.npz")]
    return [*base, "--model", str(folder / model), "--device", "cpu", "--out", str(folder / "out"), *more]


def result_of(folder):
    return json.loads((folder / "out" / "result.json").read_text())


def test_run_writes_everything_and_the_numbers_are_those_of_plain_torch(fake, bench, capsys):
    folder, module, x, y = bench
    chosen = ("--examples", "20", "--shuffle", "3", "--mean", "0.5", "--std", "2", "--set", "times=5")
    assert main(arguments(folder, *chosen)) == 0
    rows = np.random.default_rng(3).permutation(30)[:20]
    outputs = module((x[rows] - 0.5) / 2).detach()
    loss = nn.functional.cross_entropy(outputs, y[rows])
    result = result_of(folder)
    assert list(result) == ["analyzer", "card", "values", "caveats"]
    assert result["values"]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert result["values"]["accuracy"] == pytest.approx(float((outputs.argmax(1) == y[rows]).float().mean()))
    assert result["values"]["times"] == 5 and result["values"]["examples"] == 20
    assert result["card"]["normalisation"] == {"mean": [0.5], "std": [2.0]} and result["card"]["names"] == ["c.pt"]
    assert np.load(folder / "out" / "arrays.npz")["a"].tolist() == [0, 1, 2]
    assert (folder / "out" / "tables" / "norms.csv").read_text().splitlines()[1] == "'=cmd(),1.0"
    page = (folder / "out" / "figures" / "norms.html").read_text()
    assert len(page) > 1_000_000 and "<script src" not in page and "Plotly.newPlot" in page
    said = capsys.readouterr()
    assert "Loss: Cross-entropy (by the targets)." in said.err and "Gate: " in said.err
    assert "Caveat: mind this." in said.err and "loss: " in said.out and "%" in said.err


def test_an_untrained_model_is_in_the_caveats(fake, bench, capsys):
    folder, *_ = bench
    assert main(arguments(folder)) == 0
    assert any(each.startswith("Gate: at chance.") for each in result_of(folder)["caveats"])
    assert "mind this." in result_of(folder)["caveats"]


def test_the_folder_of_an_earlier_run_is_written_anew_but_no_other(fake, bench, capsys):
    folder, *_ = bench
    assert main(arguments(folder)) == 0
    (folder / "out" / "figures" / "old.html").write_text("old")
    assert main(arguments(folder, "--set", "times=9")) == 0
    assert result_of(folder)["values"]["times"] == 9 and not (folder / "out" / "figures" / "old.html").exists()
    (folder / "out" / "thesis.tex").write_text("mine")
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert main(arguments(folder)) == 2
    assert "holds 'thesis.tex', which is not of a run" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_several_checkpoints_and_micro_batches(fake, bench):
    folder, *_ = bench
    (folder / "second.pt").write_bytes((folder / "c.pt").read_bytes())
    assert main(arguments(folder)) == 0
    whole = result_of(folder)["values"]
    more = ("--checkpoint", str(folder / "second.pt"), "--micro-batch", "7", "--set", "dtype=float64")
    assert main(arguments(folder, *more)) == 0
    result = result_of(folder)
    assert command_run.analyzer_of("fake", [], 7).times == 2  # it has no option micro_batch
    assert result["card"]["names"] == ["c.pt", "second.pt"] and result["card"]["dtype"] == "float64"
    assert result["values"]["gradient"] == pytest.approx(whole["gradient"], rel=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--set", "times=99"), "times is 99; give a value from 1 to 9."),
        (("--set", "times=many"), "times is 'many'; give a int."),
        (("--set", "time=3"), "--set time=3: give OPTION=VALUE with an option of fake: times, dtype."),
        (("--set", "times"), "--set times: give OPTION=VALUE"),
        (("--examples", "-4"), "-4 examples"),
        (("--examples", "many"), "argument --examples: invalid int value: 'many'"),
        (("--mean", "red"), "--mean red: give numbers, one for each channel."),
        (("--mean", "0.5", "0.5"), "mean has 2 values, the inputs have 4 channels"),
        (("--std", "0"), "every value must be above 0"),
        (("--loss", "hinge"), "argument --loss: invalid choice: 'hinge'"),
        (("--micro-batch", "-2"), "--micro-batch -2"),
        (("--model", "Linear(4, 3)"), "c.pt"),
        (("--model", "resnet18"), "does not fit --model resnet18"),
        (("--model", "vgg"), "There is no model 'vgg'; the catalogue has "),
        (("--model", "gone/model.txt"), "'gone/model.txt' is no file, folder or name"),
        (("--model", "Sequential(__import__('os').system('x'))"), "__import__"),
        (("--data", "gone.npz"), "gone.npz does not exist"),
        (("--checkpoint", "gone.pt"), "gone.pt"),
        (("--loss", "bce_with_logits", "--data", "README"), "README"),
    ],
)
def test_refusals_are_one_sentence_and_status_2(fake, bench, capsys, more, message):
    folder, *_ = bench
    base = arguments(folder)
    if more[0] == "--data":
        del base[4:6]
    if more[0] == "--checkpoint":
        del base[2:4]
    try:
        status = main([*base, *more])
    except SystemExit as left:
        status = left.code
    said = capsys.readouterr()
    assert status == 2 and message in said.err, said.err
    assert "Traceback" not in said.err and said.out == "" and not (folder / "out").exists()
    assert len(said.err.strip().splitlines()[-1]) > 10


def test_the_micro_batch_reaches_an_analyzer_that_has_it():
    assert command_run.analyzer_of("hessian_spectrum", [], 7).micro_batch == 7
    assert command_run.analyzer_of("hessian_spectrum", ["micro_batch=3"], 7).micro_batch == 3
    assert command_run.analyzer_of("hessian_spectrum", []).micro_batch == 0


def test_an_unknown_analyzer_is_refused(fake, bench, capsys):
    folder, *_ = bench
    assert main(["run", "hessian", *arguments(folder)[2:]]) == 2
    assert capsys.readouterr().err == "There is no analyzer 'hessian'; there is fake.\n"


def test_a_gpu_that_is_not_there_is_refused(fake, bench, capsys, monkeypatch):
    folder, *_ = bench
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(arguments(folder, "--device", "cuda")) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err


def test_mistakes_of_ours_have_another_status_and_no_traceback(fake, bench, capsys, monkeypatch):
    folder, *_ = bench

    def broken(*_):
        raise KeyError("x")

    monkeypatch.setattr(Fake, "run", broken)
    assert main(arguments(folder)) == 1
    said = capsys.readouterr().err
    assert "A mistake of Theodolite's own: KeyError: 'x'." in said and "Traceback" not in said
    with pytest.raises(KeyError):
        main(["--traceback", *arguments(folder)])


def test_the_model_is_recognised_or_named_with_arguments(bench, fake, capsys):
    folder, *_ = bench
    base = arguments(folder)
    del base[6:8]
    assert main(base) == 0
    assert "Model: " in capsys.readouterr().err
    plain = result_of(folder)["values"]["loss"]
    assert main(arguments(folder)) == 0
    told = result_of(folder)["values"]["loss"]
    assert plain != told  # ReLU is assumed, tanh is true


def test_a_language_model_on_text(fake, tmp_path, capsys):
    sizes = {"vocabulary": 5, "context": 6, "layers": 1, "heads": 2, "width": 8}
    torch.manual_seed(0)
    module = build(ModelSpec("catalogue", "small_gpt", sizes))
    torch.save(module.state_dict(), tmp_path / "gpt.pt")
    (tmp_path / "t.txt").write_text("abacadaeabacad")  # 14 characters, 13 predictions
    base = ["run", "fake", "--checkpoint", str(tmp_path / "gpt.pt"), "--data", str(tmp_path / "t.txt")]
    base += ["--device", "cpu", "--out", str(tmp_path / "out"), "--model", "small_gpt:heads=2"]
    assert main(base) == 0
    tokens = torch.tensor(["abcde".index(each) for each in "abacadaeabacad"])
    losses = []
    for start in (0, 6, 12):
        piece = tokens[start : start + 7]
        with torch.no_grad():
            logits = module(piece[None, :-1])[0]
        losses += nn.functional.cross_entropy(logits, piece[1:], reduction="none").tolist()
    assert len(losses) == 13 and result_of(tmp_path)["values"]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert "Loss: Causal language model" in capsys.readouterr().err
    assert main([*base, "--context", "3", "--tokenizer", "bytes"]) == 2
    assert "token" in capsys.readouterr().err


def test_a_long_text_is_no_path(fake, bench):
    folder, *_ = bench
    text = "Sequential(Linear(4, 5), " + "Tanh(), " + "Identity(), " * 200 + "Linear(5, 3))"
    base = arguments(folder)
    base[7] = text
    torch.save({f"{key.replace('2.', '202.')}": value for key, value in bench[1].state_dict().items()}, folder / "c.pt")
    assert main(base) == 0


def test_arguments_of_a_named_model_are_checked():
    known = {"heads": 2, "tied": True, "activation": "gelu", "names": ["a"]}
    assert command_run._told("heads=4,tied=false,activation=relu", known) == {
        "heads": 4,
        "tied": False,
        "activation": "relu",
    }
    for text, message in (("heads=two", "whole number"), ("tied=3", "true or false"), ("names=b", "no argument")):
        with pytest.raises(ModelError, match=message):
            command_run._told(text, known)


def test_inspect_says_what_a_file_is(bench, capsys):
    folder, *_ = bench
    assert main(["inspect", str(folder / "c.pt")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("c.pt: ") and "4 tensors (4 float32), 43 parameters" in said and "epoch 7" in said
    assert main(["inspect", "--json", str(folder / "c.pt"), str(folder / "c.pt")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["parameters"] == 43 and "recognition" in json.loads(lines[1])


def test_inspect_refuses_each_bad_file_and_still_reads_the_good_one(bench, capsys):
    folder, *_ = bench
    (folder / "bad\x1b[2J.pt").write_bytes(b"hello")
    files = ["bad\x1b[2J.pt", "c.pt", "gone.pt"]
    assert main(["inspect", *(str(folder / each) for each in files)]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 2 and "\x1b" not in said.err and "\\x1b" in said.err
    assert "gone.pt" in said.err and said.out.startswith("c.pt: ")


def test_hostile_names_inside_a_file_are_shown_not_obeyed(tmp_path, capsys):
    torch.save({"0.weight\n\x1b[31m": torch.zeros(2, 2)}, tmp_path / "h.pt")
    main(["inspect", str(tmp_path / "h.pt")])
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err


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


def test_a_process_refuses_with_status_2(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    done = command("inspect", tmp_path / "x.pt")
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.strip().splitlines()) == 1
    assert "x.pt" in done.stderr
    assert command().returncode == 2


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
