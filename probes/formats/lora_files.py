"""What the adapter_config.json of a PEFT folder says, as bounded plain data. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probes.formats.contents import printable
from probes.formats.hub_files import is_number

_MOST = 10_000
_FLAGS = ("fan_in_fan_out", "use_rslora", "use_dora", "lora_bias")
# Variants whose merged weights are not W + scaling B A (with or without DoRA's magnitudes).
_CHANGING = (
    "layer_replication", "use_qalora", "alora_invocation_tokens", "arrow_config", "use_bdlora", "monteclora_config",
    "kasa_config", "velora_config", "megatron_config", "target_parameters", "trainable_token_indices",
)  # fmt: skip
_PATTERNS = ("alpha_pattern", "rank_pattern")
_SAME_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


def lora_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `probes.lora.merge` needs, all of it fit for JSON; "unsupported" lists what it does not do."""
    kind = _text(config.get("peft_type")) or "unknown"
    numbers = {"r": config.get("r"), "alpha": config.get("lora_alpha")}
    return {
        "kind": kind,
        **{key: value if is_number(value) else None for key, value in numbers.items()},
        **{key: config.get(key) is True for key in _FLAGS},
        "targets": _names(config.get("target_modules")),
        "modules_to_save": _names(config.get("modules_to_save")),
        "alpha_pattern": _pattern(config.get("alpha_pattern")),
        "rank_pattern": _pattern(config.get("rank_pattern")),
        "bias": _text(config.get("bias")) or "none",
        "task": _text(config.get("task_type")),
        "base": _text(config.get("base_model_name_or_path")),
        "unsupported": _unsupported(config),
    }


def lora_doubts(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Say which base an adapter needs, and whether it can be merged with it at all."""
    base = f"The adapter was trained beside {facts['base']}." if facts["base"] else ""
    kind = facts["kind"]
    other = f"It is an adapter of kind {kind}, not LoRA: it cannot be merged here, only its own tensors are shown."
    return tuple(each for each in (base, other if kind != "LORA" else "") if each)


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    found = [key for key in _CHANGING if config.get(key)]
    start = config.get("init_lora_weights", True)
    if not any(start is each or (isinstance(start, str) and start == each) for each in _SAME_BASE):
        found.append(f"init_lora_weights {printable(str(start), 40)}")
    found += [key for key in _PATTERNS if config.get(key) and not _pattern(config[key])]
    return found


def _text(value: Any) -> str:
    return printable(value) if isinstance(value, str) else ""


def _names(value: Any) -> list[str]:
    if isinstance(value, str):
        return [printable(value)]
    return [printable(each) for each in value[:_MOST] if isinstance(each, str)] if isinstance(value, list) else []


def _pattern(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or len(value) > _MOST:
        return {}
    good = all(is_number(each) and printable(key) == key for key, each in value.items())
    return dict(value) if good else {}
