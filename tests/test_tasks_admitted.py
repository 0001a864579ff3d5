"""Tasks on references: sets of weights, adapters and Hugging Face folders; of a checkpoint only the copy is read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from analyzers._base import Quiet
from probes.errors import ProbeError, RefusedCheckpoint
from probes.specs import DataSpec, ModelSpec
from workspace.folders import zip_of
from workspace.opened import classes_of
from workspace.store import Store
from workspace.tasks import TASKS

TEXT = "Sequential(Linear(4, 5), Tanh(), Linear(5, 3))"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "workspace")


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.fixture
def trained(store: Store, module: nn.Module, tmp_path: Path) -> str:
    average = {key: each * 0.5 for key, each in module.state_dict().items()}
    torch.save({"model": module.state_dict(), "model_ema": average, "epoch": 7}, tmp_path / "c.pt")
    return store.add_file(tmp_path / "c.pt", "c.pt").sha256


@pytest.fixture
def data(store: Store, tmp_path: Path) -> DataSpec:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(30, 4)).astype(np.float32), generator.integers(0, 3, 30)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    return DataSpec((store.add_file(tmp_path / "d.npz", "d.npz").sha256,))


def ask(store: Store, task: str, **payload: Any) -> dict[str, Any]:
    folder = store.root / "asked"
    folder.mkdir(exist_ok=True)
    TASKS[task].run(json.loads(json.dumps(payload)), store, folder, Quiet())
    text = (folder / "result.json").read_text()
    assert str(store.root) not in text  # no path of this machine reaches the page
    return dict(json.loads(text))


def gate(store: Store, text: str, model: ModelSpec, data: DataSpec, loss: str = "cross_entropy") -> dict[str, Any]:
    return ask(store, "gate", checkpoint=text, model=model.to_json(), data=data.to_json(), loss=loss)


def test_a_set_of_weights_is_what_is_analysed(store: Store, trained: str, module: nn.Module, data: DataSpec) -> None:
    found = ask(store, "inspect", file=trained)
    assert found["name"] == "c.pt" and found["weights"] == "model" and found["sets"] == ["model", "model_ema"]
    assert found["verdict"] == "warning" and "rlimits" in found["isolation"] and found["epoch"] == 7
    average = ask(store, "inspect", file=f"{trained}:model_ema")
    assert average["name"] == "c.pt (model_ema)" and average["shapes"] == found["shapes"]
    with np.load(store.path_of(data.files[0])) as held:
        x, y = torch.from_numpy(held["x"]), torch.from_numpy(held["y"])
    for text, scale in ((trained, 1.0), (f"{trained}:model_ema", 0.5)):
        with torch.no_grad():
            outputs = torch.tanh(x @ module[0].weight.T * scale + module[0].bias * scale)
            outputs = outputs @ module[2].weight.T * scale + module[2].bias * scale
        expected = nn.functional.cross_entropy(outputs, y)
        assert gate(store, text, ModelSpec("text", text=TEXT), data)["loss"] == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(RefusedCheckpoint, match="no weights called gone"):
        ask(store, "inspect", file=f"{trained}:gone")


def test_the_upload_is_not_opened_again(store: Store, trained: str, data: DataSpec) -> None:
    ask(store, "inspect", file=trained)
    path = store.path_of(trained)
    path.chmod(0o644)
    path.write_bytes(b"something else by now")
    assert gate(store, trained, ModelSpec("text", text=TEXT), data)["examples"] == 30
    assert ask(store, "compare", file=trained, model=ModelSpec("text", text=TEXT).to_json())["exact"]


class Canary:
    """Touches a file when it is unpickled by anything that executes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_hostile_file_is_refused_by_every_task(store: Store, tmp_path: Path, data: DataSpec) -> None:
    content = pickle.dumps({"weight": torch.ones(2), "x": Canary(tmp_path / "canary")})
    sha256 = store.add_bytes(content, "<b>evil\n.pt").sha256
    model = ModelSpec("text", text=TEXT)
    for refused in (
        lambda: ask(store, "inspect", file=sha256),
        lambda: ask(store, "compare", file=sha256, model=model.to_json()),
        lambda: gate(store, sha256, model, data),
        lambda: gate(store, sha256, ModelSpec("hugging_face", folder=sha256), data),
    ):
        with pytest.raises(RefusedCheckpoint, match="evil"):
            refused()
    assert not (tmp_path / "canary").exists() and list((store.root / "admitted").iterdir()) == []


@pytest.fixture
def gpt(store: Store, tmp_path: Path) -> tuple[str, Any, Path]:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=30, n_positions=8, bos_token_id=1, eos_token_id=1)
    model = hf.GPT2LMHeadModel(config).eval()
    folder = tmp_path / "gpt"
    model.save_pretrained(folder)
    _tokenizer(folder / "tokenizer.json")
    zip_of(folder, tmp_path / "gpt.zip")
    return store.add_file(tmp_path / "gpt.zip", "gpt.zip").sha256, model, folder


def _tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: index for index, word in enumerate(["[UNK]", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))


def test_a_folder_is_recognised_built_and_given_its_own_tokenizer(store: Store, gpt: tuple[str, Any, Path]) -> None:
    sha256, model, _ = gpt
    found = ask(store, "inspect", file=sha256)["recognition"]
    assert found["spec"] == ModelSpec("hugging_face", folder=sha256).to_json()
    assert ask(store, "compare", file=sha256, model=found["spec"])["exact"]
    text = store.add_bytes(b"c b d a e f c b", "t.txt").sha256
    judged = gate(store, sha256, ModelSpec.from_json(found["spec"]), DataSpec((text,), format="text"), "causal_lm")
    tokens = torch.tensor([[3, 2, 4, 1, 5, 6, 3, 2]])
    with torch.no_grad():
        expected = float(model(tokens, labels=tokens).loss)
    assert judged["loss"] == pytest.approx(expected, rel=1e-4)
    shown = ask(
        store, "preview", data=DataSpec((text,), format="text").to_json(), checkpoint=sha256, model=found["spec"]
    )
    assert shown["examples"] >= 1 and store.admitted(sha256).joinpath("tokenizer.json").exists()


def test_a_model_by_a_path_is_refused(store: Store, trained: str, data: DataSpec, gpt: tuple[str, Any, Path]) -> None:
    for folder in (str(gpt[2]), "../..", "/etc"):
        with pytest.raises(ProbeError, match="not in the workspace"):
            gate(store, trained, ModelSpec("hugging_face", folder=folder), data)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_is_merged_with_its_base(store: Store, gpt: tuple[str, Any, Path], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    sha256, model, _ = gpt
    wrapped = get_peft_model(
        model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    )
    for name, each in wrapped.named_parameters():
        each.data = torch.randn_like(each) if "lora_B" in name else each.data
    wrapped.save_pretrained(tmp_path / "lora")
    zip_of(tmp_path / "lora", tmp_path / "lora.zip")
    adapter = store.add_file(tmp_path / "lora.zip", "lora.zip").sha256
    found = ask(store, "inspect", file=f"{adapter}+{sha256}")
    assert found["name"] == "gpt.zip + lora.zip"
    assert found["recognition"]["spec"] == ModelSpec("hugging_face", folder=sha256).to_json()
    text = store.add_bytes(b"c b d a e f c b", "t.txt").sha256
    spec = ModelSpec("hugging_face", folder=sha256)
    judged = gate(store, f"{adapter}+{sha256}", spec, DataSpec((text,), format="text"), "causal_lm")
    tokens = torch.tensor([[3, 2, 4, 1, 5, 6, 3, 2]])
    with torch.no_grad():
        expected = float(wrapped(tokens, labels=tokens).loss)
    assert judged["loss"] == pytest.approx(expected, rel=1e-4)
    assert "base" in " ".join(ask(store, "inspect", file=adapter)["doubts"])


def test_classes_are_read_where_somebody_named_them() -> None:
    assert classes_of(b'{"id2label": {"1": "dog", "0": "cat"}}') == ("cat", "dog")
    for config in (
        b"{}",
        b"[]",
        b"{",
        b'{"id2label": {"0": "LABEL_0"}}',
        b'{"id2label": {"1": "dog"}}',
        b'{"id2label": 3}',
    ):
        assert classes_of(config) == ()
