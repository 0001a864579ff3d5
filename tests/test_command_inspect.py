"""`inspect`: in process for what it says, as a process of its own for what it costs and leaves behind."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from workspace.command_line import main

ROOT = Path(__file__).resolve().parents[1]
KEYS = ("format", "verdict", "reason", "sha256", "tensors", "parameters", "dtypes", "architecture", "epoch", "metrics")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    average = {key: each / 2 for key, each in module.state_dict().items()}
    torch.save({"model": module.state_dict(), "ema": average, "epoch": 7, "best_acc": 91.5}, tmp_path / "c.pt")
    torch.save(module.state_dict(), tmp_path / "plain.pt")
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    status = main(["inspect", "--json", *map(str, arguments)])
    said = capsys.readouterr()
    return status, [json.loads(line) for line in said.out.splitlines()], said.err


def command(*parts: object, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "workspace", *map(str, parts)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(line, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300)


def test_a_file_in_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder / "c.pt")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("c.pt: torch zip") and "4 tensors (4 float32), 43 parameters" in said and "epoch 7" in said
    assert "weights: model of model, ema" in said and "best_acc 91.5" in said


def test_the_runner_up_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torchvision

    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "s.pt")
    assert main(["inspect", str(tmp_path / "s.pt")]) == 0
    assert "runner-up: torchvision squeezenet1_0, 1,000 classes. " in capsys.readouterr().out


def test_every_verdict_has_every_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.pt").write_bytes(b"hello")
    (folder / "a.csv").write_text("x,y\n" + "1,0\n2,1\n" * 3)
    names = ("plain.pt", "c.pt", "bad.pt", "gone.pt", "a.csv")
    status, found, said = asked(capsys, *(folder / each for each in names))
    assert status == 2 and [each["verdict"] for each in found] == ["ok", "warning", "refused", "refused", "warning"]
    assert all(set(KEYS) <= set(each) for each in found) and [each["name"] for each in found] == list(names)
    assert [bool(each["reason"]) for each in found] == [False, True, True, True, True]
    assert [each["kind"] for each in found] == ["checkpoint", "checkpoint", None, None, "data"]
    assert len(said.splitlines()) == 2 and "bad.pt" in said and "gone.pt does not exist" in said
    for each, name in zip(found, names, strict=True):
        expected = command_sha256(folder / name)
        assert each["sha256"] == expected
    plain, trained = found[:2]
    assert plain["parameters"] == 43 and plain["dtypes"] == {"float32": 4} and plain["checked"] == "full"
    assert (
        plain["recognition"]["spec"]["source"] == "catalogue" and plain["architecture"] == plain["recognition"]["title"]
    )
    assert trained["epoch"] == 7 and trained["metrics"] == {"best_acc": 91.5} and trained["sets"] == ["model", "ema"]
    assert found[2]["tensors"] is None and found[2]["architecture"] is None and found[4]["examples"] == 6


def command_sha256(path: Path) -> str | None:
    done = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True)
    return done.stdout.split()[0] if done.returncode == 0 else None


def test_a_set_of_weights_is_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, (found,), _ = asked(capsys, "--weights", "ema", folder / "c.pt")
    assert status == 0 and found["weights"] == "ema"
    status, (found,), said = asked(capsys, "--weights", "gone", folder / "c.pt")
    assert (
        status == 2
        and found["verdict"] == "refused"
        and "it has model, ema" in found["reason"]
        and found["reason"] in said
    )


def test_each_bad_file_is_refused_and_the_good_one_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad\x1b[2J.pt").write_bytes(b"hello")
    assert main(["inspect", *(str(folder / each) for each in ("bad\x1b[2J.pt", "c.pt", "gone\x1b.pt"))]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 2 and "\x1b" not in said.err
    assert "gone?.pt" in said.err and said.out.startswith("c.pt: ")


def test_hostile_names_inside_a_file_are_shown_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"0.weight\n\x1b[31m": torch.zeros(2, 2)}, tmp_path / "h.pt")
    main(["inspect", str(tmp_path / "h.pt")])
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["evil.pt", "evil.bin", "evil.txt", "evil.npz", "evil.csv", "evil"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_that_execute_are_refused_whatever_they_are_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, protocol: int
) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"w": Canary(tmp_path / "canary")}, protocol))
    status, (found,), _ = asked(capsys, tmp_path / name)
    assert not (tmp_path / "canary").exists()
    assert (status, found["verdict"]) == (2, "refused") or (found["kind"] == "data" and name.endswith((".txt", ".csv")))


def test_arrays_are_data_or_weights_by_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(6, 2)), y=np.arange(6) % 2)
    np.savez(tmp_path / "w.npz", **{"a.weight": np.ones((3, 2), np.float32), "a.bias": np.ones(3, np.float32)})
    _, (data, weights), _ = asked(capsys, tmp_path / "d.npz", tmp_path / "w.npz")
    assert data["kind"] == "data" and data["examples"] == 6
    assert weights["kind"] == "checkpoint" and weights["tensors"] == 2


def test_folders_of_images_and_of_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import transformers as hf
    from PIL import Image

    for name, value in (("cat", 10), ("dog", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / "images" / name / "1.png")
    config = hf.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=30, n_positions=8)
    hf.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    (tmp_path / "empty").mkdir()
    status, (images, gpt, empty), _ = asked(capsys, *(tmp_path / each for each in ("images", "gpt", "empty")))
    assert images["kind"] == "data" and images["examples"] == 2
    assert gpt["architecture"] == "GPT2LMHeadModel" and gpt["recognition"]["spec"]["folder"] == str(tmp_path / "gpt")
    assert status == 2 and empty["verdict"] == "refused"
    assert str(tmp_path) not in json.dumps({**gpt, "recognition": None})


def test_an_adapter_with_its_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    save_file({"0.weight": torch.ones(5, 4), "0.bias": torch.ones(5)}, tmp_path / "base.safetensors")
    adapter = tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["0"]}'
    )
    low = {"base_model.model.0.lora_A.weight": torch.ones(2, 4), "base_model.model.0.lora_B.weight": torch.ones(5, 2)}
    save_file(low, adapter / "adapter_model.safetensors")
    _, (alone,), _ = asked(capsys, adapter)
    _, (merged,), _ = asked(capsys, "--base", tmp_path / "base.safetensors", adapter)
    assert alone["verdict"] == "warning" and "base" in alone["reason"]
    assert sorted(merged["shapes"]) == [["0.bias", [5], "float32"], ["0.weight", [5, 4], "float32"]]
    assert merged["name"] == "base.safetensors + lora" and merged["parameters"] == 25
    torch.save({"other.weight": torch.ones(3, 3)}, tmp_path / "other.pt")
    status, (wrong,), _ = asked(capsys, "--base", tmp_path / "other.pt", adapter)
    assert status == 2 and wrong["verdict"] == "refused"


def test_of_a_large_file_the_structure_is_read_and_no_torch(tmp_path: Path) -> None:
    rows = 300_000_000
    header = json.dumps({"w": {"dtype": "F32", "shape": [rows], "data_offsets": [0, 4 * rows]}}).encode()
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * rows)
    code = "import sys; from workspace.command_line import main; "
    code += "main(sys.argv[1:]); sys.exit('torch' in sys.modules or 'plotly' in sys.modules)"
    line = [sys.executable, "-c", code, "inspect", "--json", str(tmp_path / "large.safetensors")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert found["checked"] == "structure" and found["sha256"] is None and found["parameters"] == rows
    assert found["verdict"] == "ok" and found["architecture"] is None


def test_a_process_refuses_with_status_2_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    (tmp_path / "tmp").mkdir()
    done = command("inspect", tmp_path / "x.pt", TMPDIR=str(tmp_path / "tmp"))
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.strip().splitlines()) == 1
    assert "x.pt" in done.stderr and list((tmp_path / "tmp").iterdir()) == []
    assert command().returncode == 2
