"""How much do the tensors of a checkpoint take in all? A small file must not unfold into a full disk."""

from __future__ import annotations

from collections.abc import Mapping

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Contents, Stored
from probes.formats.find import Found

_GROWTH, _FLOOR = 32, 64 * 2**20  # what tensors may take in all: so many times the file's bytes, or so many at least


def check_amount(contents: Contents, found: Found, name: str) -> None:
    """Refuse a small file whose tensors all look into the same bytes, or unfold out of few: copies fill a disk."""
    total = bytes_of(found)
    if total > max(_FLOOR, _GROWTH * contents.bytes):
        raise RefusedCheckpoint(
            f"{name} has {contents.bytes:,} bytes but its tensors claim {total:,} bytes in all. It is not opened."
        )


def bytes_of(found: Found) -> int:
    """Sum up the bytes of all sets of weights and of the moments, tied tensors counted once."""
    sets = [once(tensors, found.tied[key]) for key, tensors in found.sets.items()]
    return sum(each.bytes for group in (*sets, *found.moments.values()) for each in group.values())


def once(tensors: Mapping[str, Stored], tied: Mapping[str, str]) -> dict[str, Stored]:
    """Leave the second names of tied tensors out."""
    return {name: each for name, each in tensors.items() if name not in tied}
