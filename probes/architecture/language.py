"""Small language models by names and shapes: nanoGPT, GPT-2, minGPT, llama2.c. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from probes.architecture.family import ACTIVATION_TITLES, UNSEEN, Candidate, Choices, Family
from probes.architecture.layers import Shapes
from probes.specs import ModelSpec

_TABLES = ("freqs_cos", "rope.freqs")


def _find_gpt(shapes: Shapes, facts: Mapping[str, Any]) -> Candidate | None:
    tokens, positions = (shapes.get(f"transformer.{name}.weight", ()) for name in ("wte", "wpe"))
    attention = shapes.get("transformer.h.0.attn.c_attn.weight", ())
    fc = shapes.get("transformer.h.0.mlp.c_fc.weight", ())
    if not (len(tokens) == len(positions) == len(attention) == len(fc) == 2):
        return None
    width = tokens[1]
    transposed = attention == (width, 3 * width)
    layers = len({name.split(".")[2] for name in shapes if re.match(r"transformer\.h\.\d+\.", name)})
    heads, choices, why = _heads(width, facts.get("model_args", {}))
    tied = "lm_head.weight" not in shapes or "lm_head.weight" in facts.get("tied", {})
    mask = len(shapes.get("transformer.h.0.attn.bias", ())) == 4
    kind = (
        "GPT-2" if transposed else "minGPT" if mask and not tied else "nanoGPT"
    )  # minGPT keeps masks and ties nothing
    arguments = {
        "vocabulary": tokens[0], "context": positions[0], "layers": layers, "heads": heads, "width": width,
        "hidden": fc[1] if transposed else fc[0], "bias": "transformer.ln_f.bias" in shapes, "tied": tied,
        "activation": "gelu" if kind == "nanoGPT" else "gelu_tanh", "transposed": transposed,
        "mask": mask,
    }  # fmt: skip
    gelu = ACTIVATION_TITLES[str(arguments["activation"])]
    reasons = (
        f"It has the names of {kind}: {layers} blocks of width {width}, "
        f"{tokens[0]} tokens, a context of {positions[0]}.",
        why,
        UNSEEN.format(gelu),
    )
    choices = {**choices, "activation": ("gelu", "gelu_tanh", "relu")}
    return Candidate(ModelSpec("catalogue", "small_gpt", arguments), _name_gpt(arguments), reasons, choices)


def _heads(width: int, said: Mapping[str, Any]) -> tuple[int, Choices, str]:
    """Take the number of heads from the file, else guess: 64 channels each, or 32 or 16 in narrow models."""
    told = said.get("n_head")
    if type(told) is int and told > 0 and width % told == 0:
        return told, {}, f"The file's model_args say {told} heads."
    possible = tuple(count for count in range(1, min(width, 128) + 1) if width % count == 0)
    size = next((each for each in (64, 32, 16, 8) if width % each == 0 and width >= 4 * each), width)
    guess = width // size if width // size in possible else 1
    return guess, {"heads": possible}, f"Shapes do not show the number of heads; {guess} is assumed."


def _name_gpt(arguments: Mapping[str, Any]) -> str:
    layers, heads, width = (arguments[name] for name in ("layers", "heads", "width"))
    tied = ", tied" if arguments.get("tied", True) else ""
    return f"Small GPT, {layers} layers, {heads} heads, width {width}{tied}"


def _find_llama(shapes: Shapes, facts: Mapping[str, Any]) -> Candidate | None:
    tokens, first = shapes.get("tok_embeddings.weight", ()), "layers.0.attention.wq.weight"
    keys, inner = (shapes.get(f"layers.0.{name}.weight", ()) for name in ("attention.wk", "feed_forward.w1"))
    if not (len(tokens) == len(shapes.get(first, ())) == len(keys) == len(inner) == 2) or not tokens[1]:
        return None
    said = facts.get("model_args", {})
    width = tokens[1]
    table = next((shapes[name] for name in _TABLES if shapes.get(name)), ())
    heads, choices, why = _llama_heads(width, keys[0], 2 * table[-1] if table else 0, said)
    layers = len({name.split(".")[1] for name in shapes if re.match(r"layers\.\d+\.", name)})
    arguments = {
        "vocabulary": tokens[0], "context": _context(said, table), "layers": layers, "heads": heads,
        "kv_width": keys[0], "width": width, "hidden": inner[0],
        "tied": "output.weight" not in shapes or "output.weight" in facts.get("tied", {}),
        "norm_eps": _number(said, "norm_eps", 1e-5), "theta": _number(said, "rope_theta", 10_000.0),
        "tables": next((name for name in ("freqs_cos", "rope.freqs") if name in shapes), ""),
    }  # fmt: skip
    reasons = (
        f"It has the names of llama2.c: {layers} blocks of width {width}, {inner[0]} inside, {tokens[0]} tokens"
        f"{'' if keys[0] == width else ', fewer heads for keys and values than for queries'}.",
        why,
    )
    return Candidate(ModelSpec("catalogue", "small_llama", arguments), _name_llama(arguments), reasons, choices)


def _llama_heads(width: int, keys: int, size: int, said: Mapping[str, Any]) -> tuple[int, Choices, str]:
    """Take the number of heads from the file, or from the width of its table of angles, else guess."""
    told = said.get("n_heads")
    if type(told) is int and told > 0 and width % told == 0 and keys % (width // told) == 0:
        return told, {}, f"The file's model_args say {told} heads."
    if size and width % size == 0 and keys % size == 0:
        return width // size, {}, f"Its table of angles is for heads of {size} channels: {width // size} heads."
    guess, choices, _ = _heads(width, {})
    fits = [each for each in choices["heads"] if width // each % 2 == 0 and keys % (width // each) == 0]
    guess = guess if guess in fits else max(fits, default=1)
    return guess, {"heads": tuple(fits)}, f"Shapes do not show the number of heads; {guess} is assumed."


def _context(said: Mapping[str, Any], table: tuple[int, ...]) -> int:
    told = said.get("max_seq_len")
    return told if type(told) is int and 0 < told <= 2**20 else table[0] if len(table) == 2 else 2048


def _number(said: Mapping[str, Any], name: str, default: float) -> float:
    told = said.get(name)
    if not isinstance(told, int | float) or isinstance(told, bool) or not 0 < told < 1e12:
        return default
    return float(told)


def _name_llama(arguments: Mapping[str, Any]) -> str:
    layers, heads, width = (arguments[name] for name in ("layers", "heads", "width"))
    shared = arguments.get("kv_width", width) * heads // max(width, 1)
    keys = f" ({shared} for keys and values)" if shared != heads else ""
    tied = ", tied" if arguments.get("tied", True) else ""
    return f"Small Llama, {layers} layers, {heads} heads{keys}, width {width}{tied}"


LANGUAGE = (
    Family(
        "small_gpt",
        "Small GPT",
        "a decoder with the names of nanoGPT or GPT-2; token ids to logits",
        {
            "vocabulary": "tokens",
            "context": "longest sequence",
            "layers": "blocks",
            "heads": "attention heads; shapes do not show them",
            "width": "embedding size",
            "hidden": "size inside the blocks, 0 for four times the width",
            "bias": "biases in linear layers and norms",
            "tied": "the last layer is the token embedding",
            "activation": "gelu, gelu_tanh or relu",
            "transposed": "weights stored as (inputs, outputs), as GPT-2 does",
            "mask": "the file keeps causal masks as buffers",
        },
        _find_gpt,
        _name_gpt,
    ),
    Family(
        "small_llama",
        "Small Llama",
        "a decoder with the names of llama2.c; token ids to logits",
        {
            "vocabulary": "tokens",
            "context": "longest sequence",
            "layers": "blocks",
            "heads": "attention heads; shapes do not show them",
            "kv_width": "size of keys and values: less than the embedding's where heads share them",
            "width": "embedding size",
            "hidden": "size inside the feed-forward layers",
            "tied": "the last layer is the token embedding",
            "norm_eps": "added to the mean square in norms (1e-5)",
            "theta": "base of the rotary angles (10000)",
            "tables": "tables of angles that the file keeps: freqs_cos, rope.freqs, or none",
        },
        _find_llama,
        _name_llama,
    ),
)
