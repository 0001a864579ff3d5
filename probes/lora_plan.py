"""Which tensor of a LoRA adapter changes which tensor of its base? Names and shapes only; no torch here.

W' = W + scaling B A (Hu et al. 2021), scaling = alpha / r, or alpha / sqrt(r) (rank-stabilised, Kalajdzievski 2023);
with magnitudes m each row of W' is given the length m (DoRA, Liu et al. 2024). Names are those that peft writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from probes.checkpoint import Checkpoint
from probes.errors import ModelError
from probes.formats.contents import printable

Shape = tuple[int, ...]

_PREFIX = "base_model.model."
_PART = re.compile(
    r"^(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.default)?(?P<bias>\.bias)?(\.weight)?$"
)
_SAVED = re.compile(r"\.(base_layer|modules_to_save(\.default)?)\.")
_GPT_PARTS = ("c_attn", "c_proj", "c_fc", "q_attn")  # OpenAI's Conv1D stores W as (in, out); nanoGPT's Linear does not


@dataclass(frozen=True)
class Edit:
    """W' of one tensor. a, b, magnitude: names in the adapter; turned: the base stores W as (in, out)."""

    module: str
    target: str
    a: str
    b: str
    scaling: float
    turned: bool | None
    magnitude: str = ""


@dataclass(frozen=True)
class Plan:
    """What is done to each tensor of the base: replaced by one of the adapter, edited, a scaled bias added."""

    replaced: Mapping[str, str]
    edits: Mapping[str, tuple[Edit, ...]]
    biases: Mapping[str, tuple[str, float]]


def plan_merge(base: Checkpoint, adapter: Checkpoint) -> Plan:
    """Find what every tensor of the adapter changes; raise ModelError by the name of one that changes nothing."""
    about = _settings(base, adapter)
    modules, replaced = _sorted(base, adapter)
    edits = [_edit(module, parts, base, adapter, about) for module, parts in modules.items()]
    linear = [edit for edit in edits if "embedding" not in modules[edit.module] and edit.turned is not None]
    known = [
        (edit.module.rpartition(".")[2], edit.turned) for edit in linear if len(base.tensors[edit.target].shape) == 2
    ]
    flag = bool(about["fan_in_fan_out"])
    edits = [replace(edit, turned=_turned(edit, known, flag, base, adapter)) for edit in edits]
    biases = {
        _target(f"{edit.module}.bias", modules[edit.module]["B.bias"], base, adapter): (
            modules[edit.module]["B.bias"],
            edit.scaling,
        )
        for edit in edits
        if "B.bias" in modules[edit.module]
    }
    grouped: dict[str, tuple[Edit, ...]] = {}
    for edit in edits:
        grouped[edit.target] = (*grouped.get(edit.target, ()), edit)
    return Plan(replaced, grouped, biases)


def canonical(base: Checkpoint, name: str) -> str:
    """Return the first name of a tensor that is tied to others: merging changes them all."""
    return str(base.facts.get("tied", {}).get(name, name))


def _settings(base: Checkpoint, adapter: Checkpoint) -> Mapping[str, Any]:
    """Return what adapter_config.json says; raise ModelError for what cannot be merged."""
    about = adapter.facts.get("lora", {})
    if "lora" in base.facts:
        raise ModelError(f"{base.name} is an adapter itself. Choose the model that {adapter.name} was trained beside.")
    if "kind" not in about:
        raise ModelError(f"{adapter.name} has no adapter_config.json, which says how much it weighs. Bring the folder.")
    if about["kind"] != "LORA":
        raise ModelError(f"{adapter.name} is an adapter of kind {about['kind']}; only LoRA and DoRA are merged.")
    if about["unsupported"]:
        raise ModelError(
            f"{adapter.name} was trained with {', '.join(about['unsupported'])}, which is not merged here. Merge it "
            "with the library that made it, and bring the whole model."
        )
    if about["alpha"] is None:
        raise ModelError(f"{adapter.name}: adapter_config.json says no lora_alpha, so its weight is not known.")
    return dict(about)


def _sorted(base: Checkpoint, adapter: Checkpoint) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Part the adapter's tensors into those of adapted modules and those that replace a tensor of the base."""
    modules: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name in sorted(adapter.tensors, key=lambda each: ".modules_to_save." in each):  # these count last
        clean = name.removeprefix(_PREFIX)
        match = _PART.match(clean)
        if match:
            key = match["part"].removeprefix("embedding_") + (match["bias"] or "")
            modules.setdefault(match["module"], {})[key] = name
            if "embedding" in match["part"]:
                modules[match["module"]]["embedding"] = name
        elif ".original_module." not in clean:
            target = _target(_SAVED.sub(".", clean), name, base, adapter)
            if base.tensors[target].shape != adapter.tensors[name].shape:
                raise _misfit(name, target, base, adapter)
            replaced[target] = name
    if not modules:
        raise ModelError(f"{adapter.name} holds no LoRA weights.")
    return modules, replaced


def _target(name: str, key: str, base: Checkpoint, adapter: Checkpoint) -> str:
    """Return the base's tensor of this name, tied ones by their first."""
    name = name if name in base.tensors else base.facts.get("ties", {}).get(name, name)
    if name not in base.tensors:
        trained = adapter.facts["lora"].get("base", "")
        hint = f" It was trained beside {trained}." if trained else ""
        raise ModelError(
            f"{adapter.name}: {printable(key, 100)} changes {printable(name, 100)}, which {base.name} does not have. "
            f"Choose the base of this adapter.{hint}"
        )
    return canonical(base, name)


def _edit(
    module: str, parts: Mapping[str, str], base: Checkpoint, adapter: Checkpoint, about: Mapping[str, Any]
) -> Edit:
    gone = [part for part in ("A", "B") if part not in parts]
    if gone:
        raise ModelError(f"{adapter.name}: {printable(module, 100)} has no lora_{gone[0]}. Copy the adapter again.")
    if ("magnitude_vector" in parts) != bool(about["use_dora"]):
        raise ModelError(
            f"{adapter.name}: {printable(module, 100)} and adapter_config.json differ on DoRA's magnitudes."
        )
    target = _target(f"{module}.weight", parts["A"], base, adapter)
    a, b = (adapter.tensors[parts[part]].shape for part in ("A", "B"))
    shape = base.tensors[target].shape
    if len(a) < 2 or len(b) < 2 or a[0] != b[1] or not a[0] or math.prod(b) != b[0] * b[1]:
        raise _misfit(parts["A"], target, base, adapter)
    plain, flipped = shape == (b[0], *a[1:]), len(a) == 2 and shape == (a[1], b[0])
    if not plain and not flipped:
        raise _misfit(parts["A"], target, base, adapter)
    magnitude = parts.get("magnitude_vector", "")
    if magnitude and math.prod(adapter.tensors[magnitude].shape) != b[0]:
        raise _misfit(magnitude, target, base, adapter)
    alpha = _alpha(module, adapter, about)
    scaling = alpha / (math.sqrt(a[0]) if about["use_rslora"] else a[0])
    turned = True if "embedding" in parts and flipped else None if plain and flipped else flipped
    return Edit(module, target, parts["A"], parts["B"], scaling, turned, magnitude)


def _alpha(module: str, adapter: Checkpoint, about: Mapping[str, Any]) -> float:
    """Return alpha of a module: of the first pattern that its name ends with, as peft matches them."""
    for pattern, alpha in about["alpha_pattern"].items():
        if not re.fullmatch(r"\^?[\w.-]+", pattern):
            raise ModelError(f"{adapter.name}: the alpha_pattern {printable(pattern, 60)} is not a plain name.")
        plain = pattern.removeprefix("^")
        if module == plain or (plain == pattern and module.endswith(f".{plain}")):
            return float(alpha)
    return float(about["alpha"])


def _turned(
    edit: Edit, known: list[tuple[str, bool | None]], flag: bool, base: Checkpoint, adapter: Checkpoint
) -> bool:
    """Say whether a square W is stored as (in, out): by the base, by other modules like it, or by the settings."""
    if edit.turned is not None:
        return edit.turned
    last = edit.module.rpartition(".")[2]
    if last in _GPT_PARTS and (told := _by_biases(base)):
        return told == {True}
    alike = {turned for name, turned in known if name == last} or {flag, *(turned for _, turned in known)}
    if alike == {True} or alike == {False}:
        return alike.pop() is True
    raise ModelError(
        f"{adapter.name}: {printable(edit.target, 100)} is square, and whether it is stored transposed cannot be told."
    )


def _by_biases(base: Checkpoint) -> set[bool]:
    """Say how a GPT stores its layers that are not square: a bias is as long as W has outputs."""
    found = set()
    for name, info in base.tensors.items():
        bias = base.tensors.get(f"{name.removesuffix('weight')}bias")
        gpt = name.endswith(tuple(f".{part}.weight" for part in _GPT_PARTS))
        if gpt and bias is not None and len(info.shape) == 2 and info.shape[0] != info.shape[1]:
            found.add(bias.shape == info.shape[1:])
    return found if len(found) == 1 else set()


def _misfit(key: str, target: str, base: Checkpoint, adapter: Checkpoint) -> ModelError:
    have, need = list(adapter.tensors[key].shape), list(base.tensors[target].shape)
    return ModelError(
        f"{adapter.name}: {printable(key, 100)} has the shape {have}, which does not fit {printable(target, 100)} "
        f"of {base.name} with {need}. Choose the base of this adapter."
    )
