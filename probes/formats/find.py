"""Where in a saved value are the weights, and what else does it say? No tensor is read, but numbers of one element."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Contents, Limits, Record, Stored, is_number, printable
from probes.formats.modules import kinds_of, text_of
from probes.formats.numbers import number_in
from probes.formats.optimizers import is_optimizer, moments_of, optimizer_in, words_of
from probes.formats.remarks import doubts_on, notes_on
from probes.formats.sets import Weights, as_dict, sets_in

_EPOCHS = ("epoch", "epochs", "current_epoch", "epoch_num")
_STEPS = ("step", "global_step", "iteration", "iter", "iter_num", "iters", "num_updates")
_ARGUMENTS = ("model_args", "args", "hyper_parameters", "hparams", "config", "cfg", "opt", "options")
_METRIC = re.compile(r"(^|_)(prec|acc|loss|err|f1|auc|score|metric|perplexity|ppl|bleu|map|top)", re.IGNORECASE)
_LORA = re.compile(r"\.lora_(A|B|embedding_A|embedding_B)\b")
_MOST_ARGUMENTS = 100
_MOST_MODULES = 2_000


@dataclass(frozen=True)
class Found:
    """The weights in a file. sets: name -> tensors by the model's names, the usual set first; default: the one meant.

    tied: for each set, second names of the same stretch of bytes -> the first. facts, doubts: of the default set.
    moments: what the optimizer keeps for each parameter, {"exp_avg": {parameter: moment}}. left: what was left behind.
    """

    sets: Mapping[str, Mapping[str, Stored]]
    default: str
    tied: Mapping[str, Mapping[str, str]]
    facts: Mapping[str, Any]
    doubts: tuple[str, ...]
    moments: Mapping[str, Mapping[str, Stored]]
    left: tuple[str, ...]

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """Return the tensors of the default set."""
        return self.sets[self.default]


def find(contents: Contents, name: str, weights: str = "", limits: Limits | None = None) -> Found:
    """Find the state dicts in what a file holds, with the facts and doubts beside them; raise RefusedCheckpoint.

    weights: the set that is meant, where it is not the usual one.
    """
    value = as_dict(contents.value)
    plain = "hugging_face" in contents.facts or "gguf" in contents.facts
    lightning = isinstance(value, dict) and "pytorch-lightning_version" in value
    found = sets_in(value, lightning, plain)
    if not found:
        raise RefusedCheckpoint(f"{name} {_instead(value)}")
    sets = {each.name: each for each in reversed(found)}
    sets = {each.name: each for each in found if sets[each.name] is each}
    chosen = sets.get(weights) if weights else found[0]
    if chosen is None:
        raise RefusedCheckpoint(f"{name} has no weights called {printable(weights, 60)}; it has {', '.join(sets)}.")
    for each in sets.values():
        _check(contents, each.tensors, name, limits or Limits())
    tied = {key: tied_in(each.tensors) for key, each in sets.items()}
    beside = value if isinstance(value, dict) and chosen.route else {}
    optimizer = optimizer_in(beside)
    moments, doubt = moments_of(optimizer, chosen.tensors, tied[chosen.name]) if optimizer else ({}, "")
    facts = {**_facts(beside, contents.metadata, chosen, tied[chosen.name]), **contents.facts}
    if optimizer:
        facts["optimizer"] = words_of(optimizer)
    if notes := list(notes_on(chosen.tensors, tied[chosen.name])):
        facts["notes"] = notes
    doubts = (
        *contents.doubts,
        *_choice(chosen, sets),
        *_doubts(chosen, facts),
        *doubts_on(chosen.tensors),
        *([doubt] if doubt else []),
    )
    order = {chosen.name: chosen, **sets}
    left = (*contents.left, *_left(chosen))
    return Found({key: each.tensors for key, each in order.items()}, chosen.name, tied, facts, doubts, moments, left)


def tied_in(tensors: Mapping[str, Stored]) -> dict[str, str]:
    """Map every name that shows the very same stretch of bytes as an earlier one to that earlier name."""
    first: dict[Any, str] = {}
    tied = {}
    for name, each in tensors.items():
        if each.numel and each.place in first:
            tied[name] = first[each.place]
        first.setdefault(each.place, name)
    return tied


def _instead(value: Any) -> str:
    """Say what a file without weights holds, and what to bring."""
    if isinstance(value, Stored):
        return "holds a single tensor, not named tensors. Save model.state_dict()."
    if is_optimizer(value):
        return "holds the state of an optimizer only, no weights. Bring the checkpoint of the model."
    if isinstance(value, Record):
        return f"holds an object of the class {printable(value.name)}, not named tensors. Save model.state_dict()."
    if not isinstance(value, dict):
        return f"holds a {type(value).__name__}, not named tensors. Save model.state_dict()."
    if optimizer_in(value):
        return "holds the state of an optimizer only, no weights. Bring the checkpoint of the model."
    held = ", ".join(sorted(printable(str(key), 80) for key in value)[:8]) or "nothing"
    return f"holds no named tensors (its keys: {held}). Save model.state_dict()."


def _check(contents: Contents, tensors: Mapping[str, Stored], name: str, limits: Limits) -> None:
    longest = max(tensors, key=len)
    if len(tensors) > limits.tensors or len(longest) > limits.name:
        raise RefusedCheckpoint(
            f"{name} holds {len(tensors):,} tensors, the longest name has {len(longest):,} characters; at most "
            f"{limits.tensors:,} tensors and {limits.name} characters are read."
        )
    wrong = next((each for each in tensors if not each.isprintable()), None)
    if wrong is not None:
        raise RefusedCheckpoint(f"{name} has names of tensors that cannot be printed ({printable(wrong, 40)}).")
    total = sum(each.numel for each in {each.place: each for each in tensors.values()}.values())
    if total > limits.parameters:
        raise RefusedCheckpoint(f"{name} claims {total:,} numbers; at most {limits.parameters:,} are read.")
    if contents.format.startswith(("torch", "pickle")) and total > 8 * contents.bytes + 1024:
        # Tensors that all look into the same bytes: their copies would fill the memory.
        raise RefusedCheckpoint(f"{name} has {contents.bytes:,} bytes but its tensors claim {total:,} elements.")


def _facts(
    value: Mapping[Any, Any], metadata: Mapping[str, Any], chosen: Weights, tied: Mapping[str, str]
) -> dict[str, Any]:
    said = dict(_numbers(value)) | dict(_written(metadata))
    metrics = {key: number for key, number in said.items() if _METRIC.search(key)}
    for key in ("metrics", "results", "scores"):
        if isinstance(value.get(key), dict):
            metrics |= dict(_numbers(value[key]))
    facts: dict[str, Any] = {
        "wrapper": printable(".".join(chosen.route), 80),
        "prefix": chosen.prefix,
        "epoch": _first(said, _EPOCHS),
        "step": _first(said, _STEPS),
        "metrics": {**metrics, **_scalars(value)},
        "model_args": _arguments(value.get("model_args")),
        "arguments": next((found for key in _ARGUMENTS if (found := _arguments(value.get(key)))), {}),
        "model_text": _stated(metadata),
        "arch": _word(value.get("arch")),
        "tied": dict(tied),
        "lora": {"tensors": sum(bool(_LORA.search(key)) for key in chosen.tensors)} if _is_lora(chosen) else {},
    }
    if chosen.module is not None:
        facts["model_text"] = text_of(chosen.module)
        facts["modules"] = [list(pair) for pair in kinds_of(chosen.module)[:_MOST_MODULES]]
    return {key: each for key, each in facts.items() if each not in (None, "", {})}


def _is_lora(chosen: Weights) -> bool:
    return sum(bool(_LORA.search(key)) for key in chosen.tensors) * 2 > len(chosen.tensors)


def _numbers(value: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    for key, each in value.items():
        if _named(key) and is_number(each):
            yield key, each


def _written(metadata: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Read the numbers among safetensors' metadata, which are all strings."""
    for key, each in metadata.items():
        if not _named(key) or not isinstance(each, str | int | float):
            continue
        try:
            number = float(each)
        except (ValueError, OverflowError):
            continue
        if math.isfinite(number):
            yield key, int(number) if number.is_integer() and "." not in str(each) else number


def _scalars(value: Mapping[Any, Any]) -> dict[str, float]:
    """Read metrics that were saved as tensors of one element, as torchvision's recipe does with best_acc1."""
    pairs = ((key, each) for key, each in value.items() if _named(key) and isinstance(each, Stored))
    found = {key: number_in(each) for key, each in pairs if each.numel == 1 and _METRIC.search(key)}
    return {key: number for key, number in found.items() if number is not None and math.isfinite(number)}


def _first(said: Mapping[str, float], keys: tuple[str, ...]) -> int | None:
    return next((int(said[key]) for key in keys if key in said), None)


def _arguments(held: Any) -> dict[str, Any]:
    """Return the plain values of a configuration: a dict, or the attributes of a Namespace or the like."""
    held = held.state if isinstance(held, Record) else held
    held = held[-1] if isinstance(held, tuple) and held else held
    pairs = held.items() if isinstance(held, dict) else ()
    plain = {key: each for key, each in pairs if _named(key) and isinstance(each, str | int | float | bool | None)}
    finite = {key: each for key, each in plain.items() if not isinstance(each, int | float) or _is_told(each)}
    short = {key: printable(each, 200) if isinstance(each, str) else each for key, each in finite.items()}
    return dict(list(short.items())[:_MOST_ARGUMENTS])


def _is_told(value: float) -> bool:
    return isinstance(value, bool) or is_number(value)


def _stated(metadata: Mapping[str, Any]) -> str:
    """Return the model as the file itself writes it down, as this app's example does; parsed later, never run."""
    text = metadata.get("model", "")
    return text if isinstance(text, str) and text.isprintable() and "Sequential(" in text[:40] else ""


def _word(value: Any) -> str:
    """Return the name of an architecture as training recipes store it ("resnet18"); "" for anything else."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= 80 else ""


def _named(key: Any) -> bool:
    return isinstance(key, str) and key.isprintable() and len(key) <= 80


def _left(chosen: Weights) -> tuple[str, ...]:
    return tuple(each for each in chosen.left if each != "_metadata")


def _choice(chosen: Weights, sets: Mapping[str, Weights]) -> Iterator[str]:
    others = [each for each in sets if each != chosen.name]
    if others:
        yield f"The file holds several sets of weights; {chosen.name} was taken, not {', '.join(others[:6])}."


def _doubts(chosen: Weights, facts: Mapping[str, Any]) -> Iterator[str]:
    left = _left(chosen)
    if left:
        yield f"{len(left)} entries are no tensors and were left out ({', '.join(left[:3])})."
    if chosen.mixed:
        yield "Some names begin with module. or _orig_mod. and some do not: the prefixes are mixed up and were kept."
    if "lora" in facts:
        yield "These are LoRA weights only: they need their base. Choose the base checkpoint to merge them with."
