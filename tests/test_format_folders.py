"""Folders of transformers, its Trainer, accelerate and peft are read bit for bit; the rest is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from probes.checkpoint import read_checkpoint
from probes.errors import RefusedCheckpoint
from probes.formats.contents import Stored
from probes.formats.files import open_contents


def tiny(**more: Any) -> Any:
    """Make a GPT-2 of two layers."""
    import transformers as hf

    hf.utils.logging.disable_progress_bar()
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 13, "n_positions": 8, **more}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path / "gpt")
    return tmp_path / "gpt"


def same(path: Path, state: dict[str, Tensor]) -> bool:
    """Compare every tensor with the library's, bit for bit."""
    found = read_checkpoint(path).load()
    return found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


def saved(model: Any) -> dict[str, Tensor]:
    """Return what the library writes of a model: a tied tensor once."""
    return {key: each for key, each in model.state_dict().items() if key != "lm_head.weight"}


# What the libraries write


@pytest.mark.parametrize("form", ["single", "shards", "bin", "bin shards", "shards without index"])
def test_every_way_to_store_a_folder_gives_its_tensors(form: str, tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "gpt"
    model.save_pretrained(path, max_shard_size="2KB" if "shards" in form and "bin" not in form else "1GB")
    if "without index" in form:
        (path / "model.safetensors.index.json").unlink()
    if "bin" in form:  # as transformers 4 wrote them
        (path / "model.safetensors").unlink()
        state = saved(model)
        half = dict(list(state.items())[:9])
        parts = {"pytorch_model.bin": state}
        if "shards" in form:
            rest = {key: each for key, each in state.items() if key not in half}
            parts = {"pytorch_model-00001-of-00002.bin": half, "pytorch_model-00002-of-00002.bin": rest}
            where = {key: file for file, part in parts.items() for key in part}
            (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        for file, part in parts.items():
            torch.save(part, path / file)
    assert len(list(path.glob("*.safetensors"))) == {"single": 1, "bin": 0, "bin shards": 0}.get(form, 5)
    assert same(path, saved(model))
    contents = open_contents(path, "gpt")
    assert contents.format == f"Hugging Face folder, {'torch zip' if 'bin' in form else 'safetensors'}"
    assert contents.facts["hugging_face"] == {"architecture": "GPT2LMHeadModel", "model_type": "gpt2"}
    assert json.loads(contents.texts["config.json"])["n_layer"] == 2


def test_a_checkpoint_of_the_trainer_is_read_and_its_pickles_stay_shut(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    data = [{"input_ids": torch.arange(6) + n, "labels": torch.arange(6) + n} for n in range(6)]
    options = TrainingArguments(
        str(tmp_path), max_steps=4, save_steps=4, eval_strategy="steps", eval_steps=2, report_to="none", use_cpu=True,
        per_device_train_batch_size=2, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(tiny(), options, train_dataset=data, eval_dataset=data)
    trainer.train()
    path = tmp_path / "checkpoint-4"
    assert same(path, saved(trainer.model))
    contents = open_contents(path, "checkpoint-4")
    metrics = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert contents.facts["step"] == 4
    assert contents.facts["metrics"] == {"eval_loss": metrics[-1]["eval_loss"]}
    shut = " ".join(contents.left)
    for file in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"):
        assert (path / file).is_file()
        assert file in shut
    assert same(tmp_path, saved(trainer.model)), "the only checkpoint below a folder is that of the folder"


def test_what_accelerate_saves_is_read_without_a_config(tmp_path: Path) -> None:
    from accelerate import Accelerator

    model, accelerator = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 3)), Accelerator(cpu=True)
    prepared, _ = accelerator.prepare(model, torch.optim.Adam(model.parameters()))
    accelerator.save_model(prepared, tmp_path / "model")
    accelerator.save_model(prepared, tmp_path / "shards", max_shard_size="0.15KB")
    accelerator.save_state(str(tmp_path / "state"))
    accelerator.save_state(str(tmp_path / "bin"), safe_serialization=False)
    for name, form in (("model", "safetensors"), ("shards", "safetensors"), ("state", "safetensors"), ("bin", "torch")):
        assert same(tmp_path / name, model.state_dict()), name
        contents = open_contents(tmp_path / name, name)
        assert contents.format.startswith(f"folder, {form}")
        assert "hugging_face" not in contents.facts
    assert "optimizer.bin" in " ".join(open_contents(tmp_path / "state", "state").left)


def test_two_models_of_accelerate_are_two_sets_of_weights(tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    first, second = accelerator.prepare(nn.Linear(3, 2), nn.Linear(5, 2))
    accelerator.save_state(str(tmp_path / "two"))
    for weights, model in (("model", first), ("model_1", second)):
        found = read_checkpoint(tmp_path / "two", weights=weights).load()
        assert torch.equal(found["weight"], model.weight)


@pytest.mark.filterwarnings("ignore")  # peft's own
def test_an_adapter_says_what_it_needs(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    model = get_peft_model(
        tiny(), LoraConfig(r=2, lora_alpha=6, target_modules=["c_attn"], use_rslora=True, fan_in_fan_out=True)
    )
    model.peft_config["default"].base_model_name_or_path = "someone/gpt\x1b[31m"
    model.save_pretrained(tmp_path / "adapter")
    assert same(tmp_path / "adapter", get_peft_model_state_dict(model))
    contents = open_contents(tmp_path / "adapter", "adapter")
    lora = contents.facts["lora"]
    assert contents.format == "PEFT folder, safetensors"
    assert (lora["kind"], lora["r"], lora["alpha"], lora["targets"]) == ("LORA", 2, 6, ["c_attn"])
    assert (lora["use_rslora"], lora["use_dora"], lora["fan_in_fan_out"]) == (True, False, True)
    assert lora["base"] == "someone/gpt?[31m"
    assert "base" in " ".join(read_checkpoint(tmp_path / "adapter").doubts)
    assert json.dumps(lora)


def test_a_folder_with_one_checkpoint_is_that_checkpoint(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    home = tmp_path / "run" / "lightning_logs" / "version_0"
    home.mkdir(parents=True)
    torch.save({"state_dict": model.state_dict(), "epoch": 7}, home / "epoch=7-step=40.ckpt")
    (tmp_path / "run" / "notes.txt").write_text("good")
    checkpoint = read_checkpoint(tmp_path / "run")
    assert torch.equal(checkpoint.load()["weight"], model.weight)
    assert checkpoint.facts["epoch"] == 7
    assert checkpoint.format == "folder, torch zip"
    torch.save(model.state_dict(), home / "last.pt")
    with pytest.raises(RefusedCheckpoint, match=r"epoch=7-step=40\.ckpt, last\.pt"):
        open_contents(tmp_path / "run", "run")


def test_several_folders_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "gpt-2")
    with pytest.raises(RefusedCheckpoint, match="gpt, gpt-2"):
        open_contents(tmp_path, "both")


def test_heads_that_no_loss_fits_still_open(tmp_path: Path) -> None:
    import transformers as hf

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    model = hf.BertForMaskedLM(hf.BertConfig(**small, vocab_size=13, max_position_embeddings=9))
    model.save_pretrained(tmp_path / "bert")
    checkpoint = read_checkpoint(tmp_path / "bert")
    assert checkpoint.facts["hugging_face"]["architecture"] == "BertForMaskedLM"
    assert checkpoint.load().keys() == load_file(tmp_path / "bert" / "model.safetensors").keys()


# Small files


def test_the_tokenizer_comes_along_without_templates_and_code(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "chat_template": 1}, unk_token="a")).save(str(folder / "tokenizer.json"))
    config = {"chat_template": "{{ x }}", "auto_map": {"AutoTokenizer": "evil.T"}, "model_max_length": 8}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "vocab.json").write_text('{"chat_template": 3}')
    (folder / "merges.txt").write_text("#version: 0.2\né a\n", encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(b"\n\x0e")
    contents = open_contents(folder, "gpt")
    assert Tokenizer.from_str(contents.texts["tokenizer.json"].decode()).encode("chat_template").ids == [1]
    assert json.loads(contents.texts["tokenizer_config.json"]) == {"model_max_length": 8}
    assert json.loads(contents.texts["vocab.json"]) == {"chat_template": 3}
    assert contents.texts["merges.txt"].decode() == "#version: 0.2\né a\n"
    assert "tokenizer.model" in " ".join(contents.left)
    assert not contents.doubts


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"\x80\x04c\x00posix\nsystem\n.", b"\xff\xfe", b"version https://git-lfs"])
def test_a_broken_tokenizer_is_left_out_with_a_doubt(file: str, content: bytes, folder: Path) -> None:
    (folder / file).write_bytes(content)
    contents = open_contents(folder, "gpt")
    assert file not in contents.texts
    assert any(file in doubt for doubt in contents.doubts)


def test_code_files_and_templates_of_the_config_are_dropped_at_any_depth(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    inner = {"auto_map": {"AutoModel": "evil.M"}, "_attn_implementation": "hub/evil", "kept": [1]}
    outer = {"chat_template": "{{x}}", "vocab_file": "/etc/passwd", "experts_implementation": "hub/evil", "text": inner}
    (folder / "config.json").write_text(json.dumps({**config, **outer, "rows": [inner]}))
    found = json.loads(open_contents(folder, "gpt").texts["config.json"])
    assert found["text"] == {"kept": [1]}
    assert found["rows"] == [{"kept": [1]}]
    assert not {"chat_template", "vocab_file", "experts_implementation"} & found.keys()


def test_only_what_is_asked_for_is_read(folder: Path) -> None:
    value: dict[str, Stored] = open_contents(folder, "gpt").value
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(RefusedCheckpoint):
        value["transformer.wte.weight"].read()


def test_shards_with_equal_storages_are_not_taken_for_tied(tmp_path: Path) -> None:
    parts = {"pytorch_model-00001-of-00002.bin": "a", "pytorch_model-00002-of-00002.bin": "b"}
    for number, (file, key) in enumerate(parts.items()):
        torch.save({key: torch.full((4,), float(number))}, tmp_path / file)
    checkpoint = read_checkpoint(tmp_path)
    assert "tied" not in checkpoint.facts
    assert checkpoint.load()["b"].tolist() == [1.0] * 4


def test_values_are_those_of_numpy_too(folder: Path) -> None:
    from safetensors.numpy import load_file as load_numpy

    value = open_contents(folder, "gpt").value
    for key, expected in load_numpy(folder / "model.safetensors").items():
        assert np.array_equal(value[key].read().view(expected.dtype).reshape(expected.shape), expected)
