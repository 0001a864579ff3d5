"""Folders that reach out of themselves or lack what they list are refused by name, and nothing outside is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from probes.checkpoint import read_checkpoint
from probes.errors import RefusedCheckpoint
from probes.formats.contents import Limits
from probes.formats.files import open_contents
from probes.formats.folders import read_folder

CONFIG = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_embd": 4, "vocab_size": 5}
NAMES = ("transformer.wte.weight", "transformer.h.0.ln_1.weight", "transformer.h.1.ln_1.weight")

SMALL = (
    "config.json", "adapter_config.json", "trainer_state.json", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json",
)  # fmt: skip
WORDS = (
    "weight_map", "architectures", "model_type", "n_layer", "auto_map", "peft_type", "lora_alpha", "alpha_pattern",
    "target_modules", "log_history", "epoch", "eval_loss", "global_step", "quantization_config", *NAMES,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Lay a folder of one weight file."""
    home = tmp_path / "gpt"
    home.mkdir()
    (home / "config.json").write_text(json.dumps(CONFIG))
    save_file({name: torch.full((5, 4), float(n)) for n, name in enumerate(NAMES)}, home / "model.safetensors")
    return home


@pytest.fixture
def shards(folder: Path) -> Path:
    """Lay a folder of three shards, one for each tensor."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"model-0000{n}-of-00003.safetensors" for n, name in enumerate(NAMES, 1)}
    for name, file in where.items():
        save_file({name: tensors[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(RefusedCheckpoint) as caught:
        open_contents(path, path.name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/hostname", "..", "a/b.safetensors", "x.txt", ""])
def test_an_index_cannot_point_out_of_the_folder(name: str, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(folder / "model.safetensors", other / "model.safetensors")
    index = {"weight_map": {"transformer.wte.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RefusedCheckpoint, match="plain file"):
        read_checkpoint(folder)


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "model.safetensors", tmp_path / "outside.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(RefusedCheckpoint, match="plain file"):
        read_checkpoint(folder)


def test_an_index_that_names_the_wrong_shard_is_refused(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    save_file({"transformer.other": torch.ones(1)}, folder / "second.safetensors")
    index = {"weight_map": {**dict.fromkeys(names, "model.safetensors"), names[0]: "second.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RefusedCheckpoint, match="index says"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "content", ["", "[1]", "{" * 10, '{"a":' * 200 + "1" + "}" * 200, '{"a": "' + "x" * 2**21 + '"}', "[" * 100_000]
)
def test_a_config_that_is_no_bounded_object_is_refused(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(RefusedCheckpoint, match=r"config\.json"):
        read_checkpoint(folder)


def _remove_tensor(folder: Path) -> str:
    first = sorted(folder.glob("*.safetensors"))[0]
    save_file({"other": torch.ones(1)}, first)
    return first.name


def _remove_shard(folder: Path) -> str:
    first = sorted(folder.glob("*.safetensors"))[0]
    key = next(iter(load_file(first)))
    first.unlink()
    return f"{first.name} is missing; it should hold {key}"


def _double_tensor(folder: Path) -> str:
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    key = next(iter(load_file(first)))
    save_file({**load_file(second), key: torch.ones(1)}, second)
    return f"{key} is in {first.name} and in {second.name}"


def _remove_shard_and_index(folder: Path) -> str:
    (folder / "model.safetensors.index.json").unlink()
    last = sorted(folder.glob("*.safetensors"))[-1]
    last.unlink()
    return last.name


@pytest.mark.parametrize("damage", [_remove_tensor, _remove_shard, _double_tensor, _remove_shard_and_index])
def test_damaged_sets_of_shards_are_refused_by_name(damage: Callable[[Path], str], shards: Path) -> None:
    assert len(read_checkpoint(shards).load()) == 3
    words = damage(shards)
    assert words in refusal(shards)


def test_limits_are_kept(folder: Path) -> None:
    for limits, words in ((Limits(bytes=100), "at most 100"), (Limits(members=1), "more than 1 files")):
        with pytest.raises(RefusedCheckpoint, match=words):
            read_folder(folder, "gpt", limits)


def test_a_config_of_other_weights_is_refused_before_anything_is_built(folder: Path) -> None:
    for changes in ({"n_layer": 10**9}, {"vocab_size": 10**9, "n_embd": 10**6}, {"n_layer": 200, "num_experts": 10**4}):
        (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
        assert "config.json" in refusal(folder)


def test_folders_without_weights_are_refused_with_what_they_hold(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights" in refusal(folder)
    assert "config.json" in refusal(folder)
    (tmp_path / "empty").mkdir()
    assert "it holds nothing" in refusal(tmp_path / "empty")


def test_folders_behind_links_are_not_searched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "inner").symlink_to(folder, target_is_directory=True)
    assert "no weights" in refusal(tmp_path / "outer")


def test_pickles_of_a_training_alone_are_no_checkpoint(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for file in ("optimizer.pt", "training_args.bin", "rng_state.pth", "scheduler.bin", "random_states_0.pkl"):
        (folder / file).write_bytes(b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.")
    assert "no weights" in refusal(folder)


def test_quantized_weights_are_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": {"bits": 4}}))
    assert "quantized" in refusal(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=8), inner),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(SMALL), value=JSON)
def test_any_json_is_read_or_refused(file: str, value: Any, folder: Path) -> None:
    (folder / file).write_text(json.dumps(value))
    plain, adapter = folder / "model.safetensors", folder / "adapter_model.safetensors"
    plain.rename(adapter) if file == "adapter_config.json" else None
    try:
        contents = open_contents(folder, "gpt")
        assert json.dumps(dict(contents.facts))
        assert all(json.loads(text) is not None for text in contents.texts.values())
    except RefusedCheckpoint as error:
        assert "\n" not in str(error)
    finally:
        (folder / file).write_text(json.dumps(CONFIG)) if file == "config.json" else (folder / file).unlink()
        adapter.rename(plain) if adapter.exists() else None
