"""Hugging Face folders -> checkpoint and module, through transformers' own classes, without remote code.

transformers only ever sees a cleaned configuration: its loaders follow paths out of the folder and fill missing
weights with random numbers, so the weights are read, compared and copied by us.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probes.checkpoint import Checkpoint, TensorInfo, hash_file, read_checkpoint
from probes.errors import RefusedCheckpoint, ModelError
from probes.hugging_face_files import folder_of, read_config, read_history, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

_KINDS: Mapping[str, str] = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
}
_OLD_BUFFERS = re.compile(r"(\.attn\.bias|masked_bias|position_ids|rotary_emb\.inv_freq|token_type_ids)$")
_REPEATED = re.compile(r"(layer|depth|block|stage)s?(_|$)|^n_layer|experts|num_labels")
_LARGEST = 2**31
_MOST_REPEATED = 10_000


def checkpoint_of_folder(path: Path, *, name: str | None = None, sha256: str | None = None) -> Checkpoint:
    """Read the weights of a folder (or a zip of one), all its shards, as one checkpoint; raise RefusedCheckpoint.

    sha256: for a folder, over the names and hashes of config.json and its weight files.
    """
    name = name or path.name
    folder = folder_of(path)
    files, index = weight_files(folder)
    if not files:
        raise RefusedCheckpoint(f"{name} has config.json but no weights (model.safetensors or pytorch_model.bin).")
    shards = [read_checkpoint(file) for file in files]
    _check_index(shards, index, name)
    config = read_config(folder)
    names, doubts = _names(folder, shards)
    tied = {key: twin for shard in shards for key, twin in shard.facts.get("tied", {}).items()}
    about = {"architecture": _architecture(config, name), "model_type": str(config.get("model_type", ""))}
    return Checkpoint(
        path=path,
        name=name,
        sha256=sha256 or (hash_file(path) if path.is_file() else _hash(folder, shards)),
        bytes=sum(shard.bytes for shard in shards),
        format=f"Hugging Face {'folder' if path.is_dir() else 'zip'}, {shards[0].format}",
        tensors=_tensors(shards, names),
        facts={"hugging_face": about, **read_history(folder), **_tied(tied, names)},
        doubts=(*doubts, *(doubt for shard in shards for doubt in shard.doubts)),
        stream=lambda: _stream(shards, names),
    )


def build_folder(path: Path) -> nn.Module:
    """Build the module that config.json describes, with untrained weights; it maps inputs to logits.

    Raises ModelError when the architecture is not supported or its sizes are absurd beside the weights.
    """
    folder = folder_of(path)
    config = read_config(folder)
    _check_sizes(config, _tensor_count(folder), folder.name)
    return _as_logits(_from_config(config, folder.name))


def title_of_folder(path: Path) -> str:
    """Name the model as its config.json does."""
    folder = folder_of(path)
    return _architecture(read_config(folder), folder.name)


def _architecture(config: Mapping[str, Any], name: str) -> str:
    listed = config.get("architectures")
    found = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else ""
    if not any(found.endswith(kind) for kind in _KINDS):
        raise RefusedCheckpoint(
            f"{name}: config.json names {found[:80] or 'no architecture'}; this reads causal language models and "
            "sequence or image classifiers."
        )
    return found


def _from_config(config: Mapping[str, Any], name: str) -> PreTrainedModel:
    import transformers

    transformers.logging.set_verbosity_error()
    architecture = _architecture(config, name)
    kind = next(kind for kind in _KINDS if architecture.endswith(kind))
    auto = getattr(transformers, _KINDS[kind])
    rest = {key: value for key, value in config.items() if key != "model_type"}
    try:
        made = transformers.AutoConfig.for_model(config["model_type"], **rest)
        return _made(auto, made)
    except Exception as error:  # noqa: BLE001  hundreds of model classes, each with its own way to fail
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{name}: transformers cannot build {architecture} from its config.json ({reason}).") from None


def _made(auto: Any, config: Any) -> PreTrainedModel:
    try:
        return auto.from_config(config, trust_remote_code=False, attn_implementation="sdpa")  # type: ignore[no-any-return]
    except (ValueError, ImportError):  # no such attention in this architecture
        return auto.from_config(config, trust_remote_code=False, attn_implementation="eager")  # type: ignore[no-any-return]


def _as_logits(model: PreTrainedModel) -> nn.Module:
    """Make the model map one tensor to its logits, in place, so that its parameters keep their names."""
    kind = type(model)
    main = kind.main_input_name
    padding = (
        model.config.get_text_config().pad_token_id if kind.__name__.endswith("ForSequenceClassification") else None
    )

    def forward(self: nn.Module, x: Tensor) -> Tensor:  # noqa: ARG001
        more: dict[str, Any] = {} if padding is None else {"attention_mask": (x != padding).long()}
        if kind.__name__.endswith(("ForCausalLM", "LMHeadModel")):
            more["use_cache"] = False
        return original(**{main: x}, return_dict=True, **more).logits  # type: ignore[no-any-return]

    original: Callable[..., Any] = kind.forward.__get__(model)
    model.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    module: nn.Module = model.eval()
    return module


def _check_sizes(config: Mapping[str, Any], tensors: int, name: str) -> None:
    """Refuse counts that no folder with so many tensors can have, before any class loops over them."""
    for key, value in _numbers(config):
        limit = min(max(tensors, 64), _MOST_REPEATED) if _REPEATED.search(key) else _LARGEST
        if abs(value) > limit:
            raise ModelError(f"{name}/config.json: {key} is {value:,}, but the weights are {tensors:,} tensors.")


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for each, inner in value.items():
            yield from _numbers(inner, str(each))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, key)
    elif type(value) is int:
        yield key, value


@lru_cache(maxsize=16)
def _tensor_count(folder: Path) -> int:
    files, _ = weight_files(folder)
    return sum(len(read_checkpoint(file, sha256="-").tensors) for file in files)


def _check_index(shards: list[Checkpoint], index: Mapping[str, str] | None, name: str) -> None:
    seen: dict[str, str] = {}
    for shard in shards:
        for key in shard.tensors:
            if key in seen:
                raise RefusedCheckpoint(f"{name}: {key} is in {seen[key]} and in {shard.name}. Copy the folder again.")
            seen[key] = shard.name
    wrong = [key for key, file in (index or {}).items() if seen.get(key) != file]
    if wrong:
        raise RefusedCheckpoint(
            f"{name}: {wrong[0][:80]} is not in the shard that the index says. Copy the folder again."
        )


def _names(folder: Path, shards: list[Checkpoint]) -> tuple[dict[str, str], list[str]]:
    """Map stored names to the model's, and leave the mask buffers of older files out."""
    stored = [key for shard in shards for key in shard.tensors]
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = build_folder(folder)
    own = model.state_dict()
    renamed = _renamer(model, own)
    names, left = {}, []
    for key in stored:
        found = key if key in own else renamed(key)
        if found not in own and _OLD_BUFFERS.search(key):
            left.append(key)
        else:
            names[key] = found if found in own else key
    if len(set(names.values())) != len(names):
        names = {key: key for key in names}
    doubts = [f"{len(left)} buffers of older versions were left out ({left[0]})."] if left else []
    return names, doubts


def _renamer(model: nn.Module, own: Mapping[str, Tensor]) -> Callable[[str], str]:
    """Return transformers' own renaming of names in older or other files (vit.encoder.layer -> vit.layers, …)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    known = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    prefix = getattr(model, "base_model_prefix", "")
    return lambda key: str(rename_source_key(key, known, [], prefix, own)[0])


def _tensors(shards: list[Checkpoint], names: Mapping[str, str]) -> dict[str, TensorInfo]:
    return {names[key]: info for shard in shards for key, info in shard.tensors.items() if key in names}


def _tied(tied: Mapping[str, str], names: Mapping[str, str]) -> dict[str, Any]:
    known = {names[key]: names[twin] for key, twin in tied.items() if key in names and twin in names}
    return {"tied": known} if known else {}


def _stream(shards: list[Checkpoint], names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    for shard in shards:
        for key, tensor in shard.stream():
            if key in names:
                yield names[key], tensor


def _hash(folder: Path, shards: list[Checkpoint]) -> str:
    rows = [["config.json", hash_file(folder / "config.json")], *([shard.name, shard.sha256] for shard in shards)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
