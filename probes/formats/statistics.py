"""Look at the bytes of a tensor: is every value finite, is any not zero? By bit patterns, so for every type alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from probes.formats.contents import Raw, printable

_PIECE = 1 << 22  # elements looked at together: what the comparison takes stays small
_NAMED = 3
# The bits of the exponent; where all are set the value is infinite or no number. Parts of complex numbers likewise.
_EXPONENT = {
    "float64": (np.uint64, 0x7FF0000000000000), "complex128": (np.uint64, 0x7FF0000000000000),
    "float32": (np.uint32, 0x7F800000), "complex64": (np.uint32, 0x7F800000),
    "float16": (np.uint16, 0x7C00), "complex32": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80), "float8_e5m2": (np.uint8, 0x7C),
}  # fmt: skip
# float8 types without infinities: the patterns that are no number.
_NO_NUMBERS = {
    "float8_e4m3fn": (0x7F, 0xFF),
    "float8_e4m3fnuz": (0x80,),
    "float8_e5m2fnuz": (0x80,),
    "float8_e8m0fnu": (0xFF,),
}
_OFTEN_ZERO = ("bias", "running_mean", "num_batches_tracked", ".beta", "mask", "lora_B.weight")


@dataclass(frozen=True)
class Seen:
    """What a look found. nonfinite: elements that are infinite or no number. all_zero: a floating tensor of zeros."""

    nonfinite: int = 0
    all_zero: bool = False


def look(raw: Raw, dtype: str) -> Seen:
    """Look at the bytes of a tensor of one of the types in ITEM_BYTES."""
    if dtype in _EXPONENT:
        return _floating(raw, dtype)
    if dtype in _NO_NUMBERS:
        return _tiny(raw, dtype)
    return Seen()


def doubts_of(seen: Mapping[str, Seen]) -> list[str]:
    """Say which tensors are not finite and which layers are nothing but zeros; [] when all is well."""
    broken = {name: each.nonfinite for name, each in seen.items() if each.nonfinite}
    doubts = []
    if broken:
        values = sum(broken.values())
        doubts.append(
            f"{_count(len(broken), 'tensor')} {'holds' if len(broken) == 1 else 'hold'} {_count(values, 'value')} that "
            f"{'is' if values == 1 else 'are'} infinite or not a number ({_named(broken)}): the training diverged, or "
            "the file was damaged before it was saved."
        )
    zero = [name for name, each in seen.items() if each.all_zero and not name.endswith(_OFTEN_ZERO)]
    if zero:
        doubts.append(
            f"{_count(len(zero), 'tensor')} {'is' if len(zero) == 1 else 'are'} nothing but zeros ({_named(zero)}): "
            "never trained, pruned away, or not saved whole."
        )
    return doubts


def _floating(raw: Raw, dtype: str) -> Seen:
    kind, exponent = _EXPONENT[dtype]
    bits = raw.view(np.dtype(kind).newbyteorder("<"))
    sign = np.array(1 << (8 * bits.itemsize - 1), kind)
    mask = np.array(exponent, kind)
    nonfinite, all_zero = 0, bits.size > 0
    for first in range(0, bits.size, _PIECE):
        piece = bits[first : first + _PIECE]
        wrong = (piece & mask) == mask
        if dtype.startswith("complex"):
            wrong = wrong.reshape(-1, 2).any(1)
        nonfinite += int(np.count_nonzero(wrong))
        all_zero = all_zero and not np.any(piece & ~sign)
    return Seen(nonfinite, all_zero)


def _tiny(raw: Raw, dtype: str) -> Seen:
    counts = np.zeros(256, np.int64)
    for first in range(0, raw.size, _PIECE):
        counts += np.bincount(raw[first : first + _PIECE], minlength=256)
    zeros = {"float8_e4m3fn": (0x00, 0x80), "float8_e8m0fnu": ()}.get(dtype, (0x00,))
    nonfinite = int(sum(counts[each] for each in _NO_NUMBERS[dtype]))
    return Seen(nonfinite, raw.size > 0 and int(sum(counts[each] for each in zeros)) == raw.size)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _named(names: Iterable[str]) -> str:
    every = list(names)
    more = ", …" if len(every) > _NAMED else ""
    return ", ".join(printable(each, 80) for each in every[:_NAMED]) + more
