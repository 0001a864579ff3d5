"""Folders give the logits that transformers itself gives, and nothing outside the folder is ever touched."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from probes.checkpoint import read_checkpoint
from probes.errors import RefusedCheckpoint, ModelError, ProbeError
from probes.hugging_face import build_folder, checkpoint_of_folder
from probes.hugging_face_files import folder_of, read_config, unpack
from probes.models import Recognition, compare, load_model, recognise
from probes.specs import ModelSpec

KINDS = ("gpt2", "llama", "bert", "vit")


def oracle(kind: str) -> tuple[Any, Tensor]:
    """Make a tiny model of this kind, and inputs."""
    import transformers as hf

    hf.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    tokens = torch.randint(1, 13, (2, 6))
    if kind == "gpt2":
        config = hf.GPT2Config(
            n_layer=2, n_head=2, n_embd=8, vocab_size=13, n_positions=8, bos_token_id=1, eos_token_id=1
        )
        return hf.GPT2LMHeadModel(config).eval(), tokens
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**small, vocab_size=13)).eval(), tokens
    if kind == "bert":
        config = hf.BertConfig(**small, vocab_size=13, max_position_embeddings=9, num_labels=3, pad_token_id=0)
        return hf.BertForSequenceClassification(config).eval(), tokens
    config = hf.ViTConfig(**small, image_size=8, patch_size=4, num_labels=3)
    return hf.ViTForImageClassification(config).eval(), torch.randn(2, 3, 8, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model, _ = oracle("gpt2")
    model.save_pretrained(tmp_path / "gpt")
    return tmp_path / "gpt"


def found(path: Path) -> Recognition:
    return recognise(read_checkpoint(path))


def rewrite(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"{folder.name}/{path.name}")
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model, x = oracle(kind)
    model.save_pretrained(tmp_path / kind)
    checkpoint = read_checkpoint(tmp_path / kind)
    spec = recognise(checkpoint).spec
    assert spec is not None
    module = load_model(spec, checkpoint)
    again = type(model).from_pretrained(tmp_path / kind).eval()
    with torch.no_grad():
        assert torch.allclose(module(x), again(x).logits, atol=1e-6)
    assert checkpoint.parameters == sum(each.numel() for each in model.parameters())
    assert {name for name, _ in module.named_parameters()} == {name for name, _ in model.named_parameters()}


def test_padding_is_masked_in_sequence_classification(tmp_path: Path) -> None:
    model, _ = oracle("bert")
    model.save_pretrained(tmp_path / "bert")
    module = load_model(found(tmp_path / "bert").spec, read_checkpoint(tmp_path / "bert"))
    with torch.no_grad():
        short = module(torch.tensor([[3, 4, 5]]))
        assert torch.allclose(module(torch.tensor([[3, 4, 5, 0, 0]])), short, atol=1e-6)


def test_second_derivatives_exist_under_the_math_kernel(folder: Path) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    module = load_model(found(folder).spec, read_checkpoint(folder))
    theta = {name: each.detach().requires_grad_() for name, each in module.named_parameters()}
    with sdpa_kernel(SDPBackend.MATH):
        logits = torch.func.functional_call(module, theta, (torch.randint(13, (2, 5)),))
        first = torch.autograd.grad(logits.square().mean(), list(theta.values()), create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), list(theta.values()))
    assert all(bool(each.isfinite().all()) for each in second)


@pytest.mark.parametrize("form", ["shards", "bin", "zip", "old names"])
def test_every_way_to_store_a_folder_gives_the_same_tensors(form: str, folder: Path, tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    expected = GPT2LMHeadModel.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    path = folder
    if form == "shards":
        shutil.rmtree(folder)
        expected.save_pretrained(folder, max_shard_size="2KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    elif form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(dict(expected.state_dict()), folder / "pytorch_model.bin")
    elif form == "zip":
        path = zipped(folder, tmp_path / "gpt.zip")
    else:  # as OpenAI's own files: no prefix, masks as buffers
        old = {name.removeprefix("transformer."): each for name, each in tensors.items()}
        save_file({**old, "h.0.attn.bias": torch.ones(1, 1, 8, 8)}, folder / "model.safetensors")
    checkpoint = read_checkpoint(path)
    module = load_model(recognise(checkpoint).spec, checkpoint)
    x = torch.randint(13, (2, 6))
    with torch.no_grad():
        assert torch.allclose(module(x), expected(x).logits, atol=1e-6)
    assert len(checkpoint.sha256) == 64
    assert json.dumps(checkpoint.describe(), allow_nan=False)


def test_the_hash_of_a_folder_is_that_of_its_content(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert checkpoint_of_folder(folder).sha256 == checkpoint_of_folder(tmp_path / "copy").sha256
    rewrite(folder, activation_function="relu")
    assert checkpoint_of_folder(folder).sha256 != checkpoint_of_folder(tmp_path / "copy").sha256


def test_a_stored_zip_is_named_by_its_hash(folder: Path, tmp_path: Path) -> None:
    from probes.checkpoint import hash_file

    path = zipped(folder, tmp_path / "gpt.zip")
    sha256 = hash_file(path)
    stored = path.rename(tmp_path / sha256)
    assert recognise(read_checkpoint(stored, name="gpt.zip", sha256=sha256)).spec.folder == sha256


def test_what_the_trainer_wrote_down_is_found(folder: Path) -> None:
    rows = [{"eval_loss": 0.9, "eval_accuracy": 0.5}, {"loss": 0.1}, {"eval_loss": 0.4, "eval_accuracy": 0.8}, {}]
    rows[2] |= {"eval_runtime": 3.0, "eval_note": "text"}
    state = {"epoch": 3.0, "global_step": 120, "log_history": rows}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    said = read_checkpoint(folder).describe()
    assert said["epoch"] == 3
    assert said["metrics"] == {"eval_loss": 0.4, "eval_accuracy": 0.8}


# Exactness


def test_missing_weights_are_never_filled_with_random_numbers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors")
    recognition = found(folder)
    assert recognition.spec is None
    assert recognition.mismatch.missing == ("transformer.h.1.mlp.c_fc.weight",)
    with pytest.raises(ModelError, match="missing"):
        load_model(ModelSpec("hugging_face", folder=str(folder)), read_checkpoint(folder))


def test_other_shapes_are_listed(folder: Path) -> None:
    rewrite(folder, vocab_size=14)
    mismatch = compare(ModelSpec("hugging_face", folder=str(folder)), read_checkpoint(folder))
    assert ("transformer.wte.weight", (14, 8), (13, 8)) in mismatch.shapes


# What a hostile folder may try


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


def test_code_and_kernels_named_by_the_config_are_dropped(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('run')")
    hostile = {
        "auto_map": {"AutoModelForCausalLM": "evil.Model"}, "_attn_implementation": "hub/evil",
        "attn_implementation": "hub/evil", "_attn_implementation_internal": "hub/evil",
        "vocab_file": "/etc/passwd", "_name_or_path": "someone/else",
    }  # fmt: skip
    rewrite(folder, **hostile)
    assert not set(hostile) & set(read_config(folder))
    assert found(folder).spec is not None
    assert build_folder(folder).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_layer": 10**9}, "n_layer is 1,000,000,000"),
        ({"n_embd": 2**40}, "n_embd"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"architectures": ["EvilModel"]}, "EvilModel"),
        ({"architectures": None}, "no architecture"),
        ({"model_type": "unheard_of"}, "cannot build"),
        ({"n_head": 3}, "cannot build"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"use_timm_backbone": True}, "timm"),
    ],
)
def test_configs_that_cannot_or_must_not_be_built_are_refused(changes: Any, words: str, folder: Path) -> None:
    rewrite(folder, **changes)
    with pytest.raises(ProbeError) as caught:
        read_checkpoint(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "[1]", "{" * 10, '{"a":' * 200 + "1" + "}" * 200, '{"a": "' + "x" * 2**21 + '"}', "[" * 100_000]
)
def test_a_config_that_is_no_bounded_object_is_refused(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(RefusedCheckpoint, match=r"config\.json"):
        read_checkpoint(folder)


def test_folders_without_weights_or_config_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(RefusedCheckpoint, match="no weights"):
        read_checkpoint(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RefusedCheckpoint):
        read_checkpoint(tmp_path / "empty")


def hostile_zip(path: Path, entries: list[tuple[str, bytes]], *, link: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (stat.S_IFLNK | 0o777) << 16 if link and name != "config.json" else 0
            archive.writestr(info, content)
    return path


@pytest.mark.parametrize("name", ["../model.safetensors", "/model.safetensors", "a/../../model.safetensors", "..\\x"])
def test_a_zip_cannot_write_outside(name: str, tmp_path: Path) -> None:
    path = hostile_zip(tmp_path / "x.zip", [("config.json", b"{}"), (name, b"data")])
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    with pytest.raises(RefusedCheckpoint, match="outside"):
        unpack(path, target)
    assert {each.name for each in tmp_path.rglob("*")} == {"x.zip", "deep", "target"}


def test_links_twins_and_bombs_in_a_zip_are_refused(tmp_path: Path) -> None:
    link = hostile_zip(tmp_path / "a", [("config.json", b"{}"), ("model.safetensors", b"/etc/passwd")], link=True)
    twins = hostile_zip(tmp_path / "b", [("config.json", b"{}"), ("CONFIG.json", b"{}")])
    bomb = hostile_zip(tmp_path / "c", [("config.json", b"{}"), ("model.safetensors", bytes(80 * 2**20))])
    for path, words in ((link, "links"), (twins, "twice"), (bomb, "far more")):
        with pytest.raises(RefusedCheckpoint, match=words):
            read_checkpoint(path)


def test_only_what_is_needed_is_unpacked_and_once(folder: Path, tmp_path: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"\x80\x02cos\nsystem\n.")
    (folder / "evil.py").write_text("1/0")
    path = zipped(folder, tmp_path / "gpt.zip")
    target = folder_of(path)
    assert {each.name for each in target.iterdir()} == {"config.json", "model.safetensors"}
    assert folder_of(path) == target
