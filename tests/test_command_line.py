"""The command line: in process where a fake analyzer will do, as a process of its own on the real files."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from analyzers._base import Analyzer, Result, option
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


def test_a_set_of_weights_is_run_from_a_copy_that_goes(fake, bench, monkeypatch):
    folder, module, x, y = bench
    average = {key: each / 2 for key, each in module.state_dict().items()}
    torch.save({"model": module.state_dict(), "ema": average}, folder / "c.pt")
    (folder / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    assert main(arguments(folder, "--weights", "ema")) == 0
    module.load_state_dict(average)
    expected = nn.functional.cross_entropy(module(x), y).detach()
    assert result_of(folder)["values"]["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert result_of(folder)["card"]["names"] == ["c.pt (ema)"] and list((folder / "tmp").iterdir()) == []
    assert main(arguments(folder, "--weights", "gone")) == 2 and list((folder / "tmp").iterdir()) == []


def test_an_adapter_is_run_on_its_base(fake, bench):
    folder, module, x, y = bench
    lora = {"0.lora_A.weight": torch.ones(2, 4), "0.lora_B.weight": torch.ones(5, 2)}
    (folder / "lora").mkdir()
    named = {f"base_model.model.{key}": each for key, each in lora.items()}
    save_file(named, folder / "lora" / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["0"]}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(about))
    base = arguments(folder, "--base", str(folder / "c.pt"))
    base[3] = str(folder / "lora")
    assert main(base) == 0
    with torch.no_grad():
        module[0].weight += 3 * lora["0.lora_B.weight"] @ lora["0.lora_A.weight"]
    expected = nn.functional.cross_entropy(module(x), y).detach()
    assert result_of(folder)["values"]["loss"] == pytest.approx(float(expected), rel=1e-5)


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


def test_numbers_are_printed_and_tables_are_left_to_files() -> None:
    from workspace.command_run import lines

    values = {"loss": 0.5, "rotation": {"conv\n1": [0.0, 0.25]}, "names": ["a", "b"], "none": None, "empty": []}
    rows = {"examples": [{"id": "1"}], "verdict": "x"}
    assert list(lines(values | rows)) == ["loss: 0.5", "rotation conv\n1: 0, 0.25", "names: a, b"]
