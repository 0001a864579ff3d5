"""What a colleague would remark on the tensors of a checkpoint: notes on what is usual, doubts on what is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from probes.formats.contents import Stored

_HALF = ("float16", "bfloat16")
_FLOATS = ("float", "bfloat")
_WHOLE = ("int", "uint", "bool")
_WEIGHTS = ("weight", "bias", "kernel", "qweight", "weight_packed")
_SHOWN = 3

Tensors = Mapping[str, Stored]


def notes_on(tensors: Tensors, tied: Mapping[str, str]) -> Iterator[str]:
    """Yield what is worth knowing and as it should be."""
    if (half := _of(tensors, _HALF)) and not _is_mixed(tensors):
        kind = tensors[half[0]].dtype
        digits = 3 if kind == "float16" else 2
        yield f"The weights are {kind}: some {digits} digits of each are known; computed in float32."
    for name, first in list(tied.items())[:_SHOWN]:
        yield f"{name} and {first} share their memory; they count as one parameter."
    if len(tied) > _SHOWN:
        yield f"{len(tied) - _SHOWN} more tensors share theirs."
    devices = sorted({each.device for each in tensors.values()} - {"cpu"})
    if devices:
        yield f"Saved on {', '.join(devices[:4])}; opened on the CPU."


def doubts_on(tensors: Tensors) -> Iterator[str]:
    """Yield what is not as one would expect."""
    if _is_mixed(tensors):
        half = _of(tensors, _HALF)
        yield f"{len(half)} tensors are stored in half precision ({half[0]}), the others are not: the types are mixed."
    if tiny := _of(tensors, ("float8",)):
        yield f"{len(tiny)} tensors are float8 ({tiny[0]}): one digit of each weight is known; they widen to float32."
    if double := _of(tensors, ("float64",)):
        yield f"{len(double)} tensors are float64 ({double[0]}); computing in float32 rounds them."
    if twofold := _of(tensors, ("complex",)):
        yield f"{len(twofold)} tensors are complex ({twofold[0]}); analyses of real weights leave them out."
    whole = [name for name in _of(tensors, _WHOLE) if name.rsplit(".", 1)[-1] in _WEIGHTS]
    if whole or (tensors and len(_of(tensors, _WHOLE)) == len(tensors)):
        first = (whole or _of(tensors, _WHOLE))[0]
        yield f"{len(whole) or len(tensors)} tensors are not floating ({first}): are they quantized weights?"
    if empty := [name for name, each in tensors.items() if not each.numel]:
        yield f"{len(empty)} tensors have no elements ({empty[0]})."


def _of(tensors: Tensors, starts: tuple[str, ...]) -> list[str]:
    return [name for name, each in tensors.items() if each.dtype.startswith(starts)]


def _is_mixed(tensors: Tensors) -> bool:
    kinds = {each.dtype for each in tensors.values() if each.dtype.startswith(_FLOATS)}
    return len(kinds) > 1 and any(kind in _HALF for kind in kinds)
