"""Hugging Face folders -> module, through transformers' own classes, without remote code.

transformers only ever sees a cleaned configuration: its loaders follow paths out of the folder and fill missing
weights with random numbers, so the weights are read, compared and copied by us.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probes.checkpoint import Checkpoint
from probes.clip import CLIP, as_scorer
from probes.errors import ModelError
from probes.formats.archives import files_of_archive
from probes.formats.contents import Limits, printable
from probes.formats.files import open_contents
from probes.formats.folder_files import Files
from probes.formats.folder_plans import plan_of
from probes.formats.folders import open_folder, stored_in
from probes.formats.hub_files import config_facts, read_config, read_json
from probes.formats.hub_sizes import too_large

if TYPE_CHECKING:
    from transformers import PreTrainedModel

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

PROVENANCE = "provenance.json"  # in folders of the store, which hold the same config.json and count their tensors
_PROVENANCE_BYTES = 2**30
_KINDS: Mapping[str, str] = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
}
_OLD_BUFFERS = re.compile(r"(\.attn\.bias|masked_bias|position_ids|rotary_emb\.inv_freq|token_type_ids)$")
_MOST_BUFFERS = 2**29


def build_folder(path: Path) -> nn.Module:
    """Build the module that config.json describes, with untrained weights; it maps inputs to logits.

    That of CLIP maps images and captions to cosines, see `probes.clip`.

    path: a folder, a zip or tar of one, or a checkpoint's folder in the store (or the weights in it). Raises ModelError
    when the architecture is not supported or its sizes are absurd beside the weights.
    """
    files = _files(path)
    config = read_config(files)
    wrong = too_large(config, *_amounts(files))
    if wrong:
        raise ModelError(f"{files.name}/config.json: {wrong}. It is not the configuration of these weights.")
    _refuse_others(config, files.name)
    if torch.get_default_device().type != "meta":
        _check_buffers(config, files.name)
    model = _from_config(config, files.name)
    return as_scorer(model) if type(model).__name__ == CLIP else _as_logits(model)


def title_of_folder(path: Path) -> str:
    """Name the model as its config.json does."""
    about = config_facts(read_config(_files(path))).get("hugging_face", {})
    return about.get("architecture") or about.get("model_type") or "no architecture"


def fit_names(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Give the tensors of a folder the names that its model has, and leave the mask buffers of older files out.

    The tensors stay where they are until they are asked for; fitting twice changes nothing. The fact "ties" maps names
    of the model that the file leaves out to the tensor that they share. Raises ModelError like `build_folder`.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = build_folder(folder)
    names, left = _names(model, checkpoint.tensors)
    tied = checkpoint.facts.get("tied", {})
    own = {names[key]: key for key in checkpoint.tensors if key in names}
    known = {names[key]: names[twin] for key, twin in tied.items() if key in names and twin in names}
    facts = {**checkpoint.facts, "tied": known, "ties": _ties(model, set(names.values()))}
    doubts = [f"{len(left)} buffers of older versions were left out ({left[0]})."] if left else []
    return replace(
        checkpoint,
        tensors={names[key]: info for key, info in checkpoint.tensors.items() if key in names},
        facts={key: each for key, each in facts.items() if each or key not in ("tied", "ties")},
        doubts=tuple(dict.fromkeys((*checkpoint.doubts, *doubts))),
        stream=lambda: _renamed(checkpoint.stream(), names),
        stream_moments=lambda kind: _renamed(checkpoint.stream_moments(kind), names),
        fetch=lambda name: checkpoint.read(own[name]),
        parts=lambda name: checkpoint.parts(own[name]),
    )


def _files(path: Path) -> Files:
    limits = Limits.from_environment()
    if path.is_file() and (path.parent / PROVENANCE).is_file():
        path = path.parent
    if path.is_dir():
        return open_folder(path, path.name, limits)
    if not path.is_file():
        raise ModelError(f"{path.name} is neither a folder with config.json nor a zip of one.")
    return files_of_archive(path, path.name, limits, lambda file, name: open_contents(file, name, limits))


def _amounts(files: Files) -> tuple[int, int]:
    """Count the tensors and the numbers in them."""
    if PROVENANCE in files.sizes:
        about = read_json(files, PROVENANCE, _PROVENANCE_BYTES)
        return int(about["tensors"]), max((int(each["parameters"]) for each in about["sets"]), default=0)
    tensors = [each for file in plan_of(files).files for each in stored_in(files.open(file).value)]
    return len(tensors), sum(each.numel for each in tensors)


def _refuse_others(config: Mapping[str, Any], name: str) -> None:
    """Refuse what would load parts from elsewhere: a backbone by its name, or one of timm."""
    for key, value in _settings(config):
        timm = (key == "use_timm_backbone" and value) or (key == "model_type" and "timm" in str(value))
        if timm:
            raise ModelError(f"{name}: it takes its backbone from another library, timm, which is not used here.")
        if key == "backbone" and isinstance(value, str):
            raise ModelError(f"{name}: it takes its backbone from {printable(value, 60)}; only one folder is read.")


def _settings(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _settings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _settings(inner)


def _check_buffers(config: Mapping[str, Any], name: str) -> None:
    """Refuse tables that are no weights (of masks, of positions) before memory is taken for them."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = _from_config(config, name)
    total = sum(buffer.numel() for buffer in model.buffers())
    if total > _MOST_BUFFERS:
        raise ModelError(
            f"{name}/config.json asks for {total:,} numbers in buffers; at most {_MOST_BUFFERS:,} are made."
        )


def _from_config(config: Mapping[str, Any], name: str) -> PreTrainedModel:
    import transformers

    transformers.logging.set_verbosity_error()
    architecture = config_facts(config).get("hugging_face", {}).get("architecture", "")
    kind = next((_KINDS[kind] for kind in _KINDS if architecture.endswith(kind)), None)
    kind = "AutoModel" if architecture == CLIP and config.get("model_type") == "clip" else kind
    if kind is None:
        raise ModelError(
            f"{name}: config.json names {architecture or 'no architecture'}; models are built for causal language "
            "models, for sequence or image classifiers, and for CLIP. Its weights can be analysed without."
        )
    auto = getattr(transformers, kind)
    rest = {key: value for key, value in config.items() if key != "model_type"}
    try:
        made = transformers.AutoConfig.for_model(config["model_type"], **rest)
        return _made(auto, made)
    except Exception as error:  # noqa: BLE001  hundreds of model classes, each with its own way to fail
        reason = printable(" ".join(str(error).split()), 200) or type(error).__name__
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

    original: Callable[..., Any] = kind.forward

    def forward(self: nn.Module, x: Tensor) -> Tensor:  # of a copy too: it must run the copy's own weights
        more: dict[str, Any] = {} if padding is None else {"attention_mask": (x != padding).long()}
        if kind.__name__.endswith(("ForCausalLM", "LMHeadModel")):
            more["use_cache"] = False
        return original(self, **{main: x}, return_dict=True, **more).logits  # type: ignore[no-any-return]

    model.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    module: nn.Module = model.eval()
    return module


def _names(model: nn.Module, stored: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Map stored names to the model's; the second list names what is left out."""
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
    return names, left


def _renamer(model: nn.Module, own: Mapping[str, Tensor]) -> Callable[[str], str]:
    """Return transformers' own renaming of names in older or other files (vit.encoder.layer -> vit.layers, …)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    known = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    prefix = getattr(model, "base_model_prefix", "")
    return lambda key: str(rename_source_key(key, known, [], prefix, own)[0])


def _ties(model: nn.Module, held: set[str]) -> dict[str, str]:
    """Map names of tied parameters that the file leaves out to the name that it has."""
    twins: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        twins.setdefault(id(parameter), []).append(name)
    pairs = ((name, next((each for each in names if each in held), "")) for names in twins.values() for name in names)
    return {name: twin for name, twin in pairs if twin and name not in held}


def _renamed(tensors: Iterator[tuple[str, Tensor]], names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    return ((names[key], tensor) for key, tensor in tensors if key in names)
