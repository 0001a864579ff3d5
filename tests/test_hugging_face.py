"""Folders give the logits that transformers itself gives, and nothing outside the folder is ever touched."""

from __future__ import annotations

import copy
import json
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from probes.checkpoint import read_checkpoint
from probes.errors import ModelError, ProbeError, RefusedCheckpoint
from probes.formats.contents import Limits
from probes.formats.files import open_contents
from probes.hugging_face import build_folder, fit_names
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


def test_a_copy_runs_its_own_weights(tmp_path: Path) -> None:
    model, x = oracle("gpt2")
    model.save_pretrained(tmp_path / "gpt2")
    checkpoint = read_checkpoint(tmp_path / "gpt2")
    spec = recognise(checkpoint).spec
    assert spec is not None
    module = load_model(spec, checkpoint)
    other = copy.deepcopy(module)
    with torch.no_grad():
        before = module(x)
        for each in other.parameters():
            each.zero_()
        assert torch.equal(module(x), before)
        assert not other(x).any()


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


def test_a_stored_zip_is_named_by_its_hash(folder: Path, tmp_path: Path) -> None:
    from probes.checkpoint import hash_file

    path = zipped(folder, tmp_path / "gpt.zip")
    sha256 = hash_file(path)
    stored = path.rename(tmp_path / sha256)
    assert recognise(read_checkpoint(stored, name="gpt.zip", sha256=sha256)).spec.folder == sha256


def test_heads_without_a_loss_are_named_but_not_built(tmp_path: Path) -> None:
    import transformers as hf

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    hf.BertForMaskedLM(hf.BertConfig(**small, vocab_size=13)).save_pretrained(tmp_path / "bert")
    recognition = found(tmp_path / "bert")
    assert recognition.spec is None
    assert recognition.title == "BertForMaskedLM"
    with pytest.raises(ModelError, match="names BertForMaskedLM"):
        build_folder(tmp_path / "bert")


def test_the_copy_in_the_store_gives_the_same_logits(folder: Path, tmp_path: Path) -> None:
    from probes.admitted import read_admitted, write

    expected = load_model(found(folder).spec, read_checkpoint(folder))
    old = {name.removeprefix("transformer."): each for name, each in load_file(folder / "model.safetensors").items()}
    save_file({**old, "h.0.attn.bias": torch.ones(1, 1, 8, 8)}, folder / "model.safetensors")
    home = tmp_path / ("0" * 64)
    home.mkdir()
    contents = open_contents(folder, "gpt")
    write(contents, "gpt", home, sha256=home.name, about={}, limits=Limits(), tick=lambda *_: None)
    shutil.rmtree(folder)
    checkpoint = read_admitted(home)
    spec = recognise(checkpoint).spec
    assert spec is not None
    assert spec.folder == home.name
    x = torch.randint(13, (2, 6))
    for place in (home, checkpoint.path):
        module = load_model(ModelSpec("hugging_face", folder=str(place)), checkpoint)
        with torch.no_grad():
            assert torch.equal(module(x), expected(x))


def test_fitted_names_keep_ties_and_moments(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    old = replace(
        checkpoint,
        tensors={name.removeprefix("transformer."): info for name, info in checkpoint.tensors.items()},
        stream=lambda: ((name.removeprefix("transformer."), each) for name, each in checkpoint.stream()),
        stream_moments=lambda kind: iter([("wte.weight", torch.ones(13, 8))]),
    )
    fitted = fit_names(old, folder)
    assert fitted.tensors.keys() == checkpoint.tensors.keys() == fitted.load().keys()
    assert fitted.facts["ties"] == {"lm_head.weight": "transformer.wte.weight"}
    assert [name for name, _ in fitted.stream_moments("exp_avg")] == ["transformer.wte.weight"]
    assert fit_names(fitted, folder).tensors == fitted.tensors


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


# What a hostile config may try


def test_code_and_kernels_named_by_the_config_are_dropped(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('run')")
    hostile = {
        "auto_map": {"AutoModelForCausalLM": "evil.Model"}, "_attn_implementation": "hub/evil",
        "attn_implementation": "hub/evil", "_attn_implementation_internal": "hub/evil",
        "vocab_file": "/etc/passwd", "_name_or_path": "someone/else",
    }  # fmt: skip
    rewrite(folder, **hostile)
    assert not set(hostile) & set(json.loads(open_contents(folder, "gpt").texts["config.json"]))
    assert found(folder).spec is not None
    assert build_folder(folder).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_layer": 10**9}, "n_layer is 1,000,000,000"),
        ({"n_layer": -1}, "n_layer is -1"),
        ({"n_embd": 2**40}, "n_embd"),
        ({"n_positions": 2**30}, "1,073,741,824 positions"),
        ({"vocab_size": 10**9, "n_embd": 10**5}, "1,000,000,000 words"),
        ({"layer_types": ["full"] * 10**4}, "layer_types has 10,000 entries"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
    ],
)
def test_configs_of_other_weights_are_refused_unread(changes: Any, words: str, folder: Path) -> None:
    rewrite(folder, **changes)
    with pytest.raises(RefusedCheckpoint) as caught:
        read_checkpoint(folder)
    assert words in str(caught.value)
    with pytest.raises(ProbeError, match=re.escape(words)):
        build_folder(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["EvilModel"]}, "EvilModel"),
        ({"architectures": None}, "no architecture"),
        ({"model_type": "unheard_of"}, "cannot build"),
        ({"n_head": 3}, "cannot build"),
        ({"use_timm_backbone": True}, "timm"),
        ({"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"]}, "timm"),
        ({"inner": {"backbone": "../other"}}, "backbone"),
    ],
)
def test_models_that_cannot_or_must_not_be_built_are_refused(changes: Any, words: str, folder: Path) -> None:
    rewrite(folder, **changes)
    with pytest.raises(ModelError, match=words):
        build_folder(folder)
    recognition = found(folder)
    assert recognition.spec is None
    assert words in " ".join(recognition.reasons)


def test_tables_of_masks_and_positions_are_bounded(folder: Path, tmp_path: Path) -> None:
    import transformers as hf

    small = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 13, "rotary_dim": 4}
    hf.GPTJForCausalLM(hf.GPTJConfig(**small, n_positions=8)).save_pretrained(tmp_path / "gptj")
    assert found(tmp_path / "gptj").spec is not None
    rewrite(tmp_path / "gptj", n_positions=2**28)  # gptj makes a table of them, which no file holds
    with pytest.raises(ModelError, match="numbers in buffers"):
        build_folder(tmp_path / "gptj")
