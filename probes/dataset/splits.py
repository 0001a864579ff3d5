"""Which of the splits that the data comes in (train, test, ...) is meant."""

from __future__ import annotations

from collections.abc import Sequence

from probes.dataset.files import shown
from probes.errors import DataError

TRAINING = ("train", "training")
SPLITS = (
    *TRAINING,
    "validation",
    "valid",
    "val",
    "dev",
    "test",
    "testing",
    "eval",
    "evaluation",
    "unsupervised",
)


def choose_split(name: str, splits: Sequence[str], wanted: str) -> tuple[str, tuple[str, ...]]:
    """Return the split that was asked for; else the training one, or the first, and a doubt that says so."""
    held = ", ".join(repr(shown(each)) for each in splits[:20])
    if wanted:
        if wanted not in splits:
            raise DataError(f"{name} has no split {wanted!r}; it has {held}. Choose one of these.")
        return wanted, ()
    if len(splits) == 1:
        return splits[0], ()
    chosen = next((each for each in splits if each.lower() in TRAINING), splits[0])
    return chosen, (f"the data comes in the splits {held}: {shown(chosen)!r} is taken, as none was chosen.",)
