"""Can the sizes in a config.json belong to these weights? Asked before any class loops over them or takes memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from probes.formats.contents import printable

_REPEATED = re.compile(
    r"^(?!.*(_size|_dim|channels|window))(.*(layer|depth|block|stage)s?(_.*)?|n_layers?|.*experts.*)$"
)
_COUNT = re.compile(r"^(n_layers?|num_\w*(layers|blocks|stages|experts)|depths?|\w*coder_layers|vocab_size)$")
_POSITION = re.compile(r"^(n_positions|n_ctx|max_\w*positions?(_embeddings)?|max_seq\w*|seq_len\w*|max_len\w*)$")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "emb_dim", "embed_dim")
_LARGEST = 2**31
_MOST_LABELS = 100_000
_MOST_REPEATED = 10_000
_MOST_MODULES = 100_000
_FEWEST = 256
_SMALL = 100_000  # numbers: what a table may always have


def too_large(config: Mapping[str, Any], tensors: int, numbers: int) -> str:
    """Say which size no checkpoint of so many tensors, of so many numbers in all, can have; "" when all may be."""
    found = list(_numbers(config))
    return (
        _wrong_count(found, tensors)
        or _wrong_list(config, tensors)
        or _wrong_product(
            found, numbers, any(key.startswith(("rope", "rotary", "partial_rotary")) for key in _keys(config))
        )
    )


def _wrong_count(found: list[tuple[str, int]], tensors: int) -> str:
    for key, value in found:
        limit = _LARGEST
        if key == "num_labels":
            limit = _MOST_LABELS
        elif _REPEATED.match(key):
            limit = min(max(tensors, _FEWEST), _MOST_REPEATED)
        if abs(value) > limit or (value < 0 and _COUNT.match(key)):
            return f"{printable(key)} is {_figure(value)}, but the weights are {tensors:,} tensors"
    return ""


def _wrong_list(value: Any, tensors: int, key: str = "") -> str:
    """Find a list with an entry for more layers than there can be."""
    if isinstance(value, list) and len(value) > max(tensors, 4 * _FEWEST):
        return f"{printable(key)} has {len(value):,} entries, but the weights are {tensors:,} tensors"
    pairs = value.items() if isinstance(value, dict) else ((key, each) for each in value)
    inner = ((str(name), each) for name, each in pairs if isinstance(each, (dict, list)))
    return next((wrong for name, each in inner if (wrong := _wrong_list(each, tensors, name))), "")


def _wrong_product(found: list[tuple[str, int]], numbers: int, turned: bool) -> str:
    """turned: positions turn the queries (rope), so no table of them is made."""

    def most(of: Any) -> int:
        return max((value for key, value in found if of(key)), default=1)

    words, width = most(lambda key: key == "vocab_size"), most(lambda key: key in _WIDTHS)
    experts = most(lambda key: _REPEATED.match(key) and "experts" in key)
    layers = most(lambda key: _REPEATED.match(key) and "experts" not in key)
    places = 1 if turned else most(_POSITION.match)
    held = max(numbers, _SMALL)
    if layers * experts > _MOST_MODULES:
        return f"{layers:,} layers of {experts:,} experts are more than any checkpoint has"
    if width > held:
        return f"a width of {width:,} is more than the {numbers:,} numbers of the weights allow"
    if words * width > 1_000 * held:
        return f"{words:,} words of {width:,} numbers are more than the {numbers:,} of the weights"
    if places * width > 100 * held:
        return f"{places:,} positions of {width:,} numbers are more than the {numbers:,} of the weights"
    return ""


def _figure(value: int) -> str:
    return f"{value:,}" if abs(value) < 10**30 else "a number of more than 30 digits"


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for each, inner in value.items():
            yield from _numbers(inner, str(each))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, key)
    elif type(value) is int:
        yield key, value


def _keys(value: Any) -> Iterator[str]:
    for each in value.items() if isinstance(value, dict) else ():
        yield str(each[0])
        yield from _keys(each[1])
