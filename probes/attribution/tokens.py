"""The names of an example's features, and the ids of special tokens, found by name where the tokenizer is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from probes.data import Batches

SPECIAL = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>"),
    "eos": ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>"),
}
_TEXTS = {text for texts in SPECIAL.values() for text in texts}
_LOW, _HIGH = 1100, 300  # where special tokens lie in a vocabulary: BERT's [MASK] is 103, RoBERTa's the last


def token_names(batches: Batches, ids: Sequence[int]) -> tuple[str, ...]:
    """Return the text of each token, its id where the tokenizer is not known."""
    show = batches.show
    if show is None:
        return tuple(str(each) for each in ids)
    return tuple(show(np.array([each])) for each in ids)


def column_names(batches: Batches, count: int) -> tuple[str, ...]:
    """Return the names of a table's columns, numbered where they are unknown."""
    names = batches.about.get("features", batches.about.get("columns", ()))
    names = tuple(str(each) for each in names)
    return names if len(names) == count else tuple(f"column {each}" for each in range(count))


def special_id(module: nn.Module, batches: Batches, role: str, vocabulary: int) -> int | None:
    """Return the id of a special token (a key of SPECIAL): from the config, else by its text; None if unknown."""
    given = configured(module, f"{role}_token_id")
    if given is not None and 0 <= given < vocabulary:
        return given
    if batches.show is None:
        return None
    places = dict.fromkeys((*range(min(_LOW, vocabulary)), *range(max(vocabulary - _HIGH, 0), vocabulary)))
    return next((each for each in places if batches.show(np.array([each])) in SPECIAL[role]), None)


def are_special(module: nn.Module, names: Sequence[str], ids: Sequence[int]) -> tuple[bool, ...]:
    """Tell which tokens are set apart: those of the config's roles, and those that look so by their text."""
    roles = map(partial(configured, module), (f"{role}_token_id" for role in SPECIAL))
    known = {each for each in roles if each is not None}
    return tuple(number in known or name in _TEXTS for number, name in zip(ids, names, strict=True))


def configured(module: nn.Module, name: str) -> int | None:
    """Return a whole number of the model's config; None where there is none."""
    config: Any = getattr(module, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    value = getattr(text, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
