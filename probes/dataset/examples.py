"""What every reader of data hands back, and what a model itself brings along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probes.dataset.files import Array

if TYPE_CHECKING:
    from probes.dataset.preprocessing import Preprocessing

Kind = Literal["images", "rows", "tokens"]


@dataclass(frozen=True)
class Word:
    """A word of a caption and its tokens, [first, end)."""

    text: str
    first: int
    end: int


@dataclass(frozen=True)
class Caption:
    """The text of a caption and its words."""

    text: str
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Own:
    """What the model brings along; 0, None or () where it is not known.

    context: its longest. vocabulary: how many tokens it knows. tokenizer: the tokenizer.json in its own folder.
    classes: the names of its classes in its order. preprocessing: how its folder says that images become inputs; used
    for images with captions.
    """

    context: int = 0
    vocabulary: int = 0
    tokenizer: Path | None = None
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class Taken:
    """Hold the chosen examples as they lie in the file.

    targets: (n, T) next tokens, -100 where nothing counts, of sequences that are their own targets; (n, T) token ids
    of captions; else None.
    """

    inputs: Array
    doubts: tuple[str, ...] = ()
    targets: Array | None = None


@dataclass(frozen=True)
class Examples:
    """All examples of the files in their order, before choosing, scaling and normalising.

    kind: "images" (uint8 or numbers, channels anywhere), "rows" (numbers) or "tokens" (ids). take: indices -> these
    examples. name_of: index -> id. labels: one for each example, as in the file, or indices where `classes` names
    them; None where the next token is the target. lines: the first ones as plain text. show: an input -> plain text.
    as_is: the inputs are what the model takes, neither scaled nor turned round. captions: of all examples, of images
    that have them. mean, std: per channel, where the data's reader knows them and the user chose none.
    """

    format: str
    kind: Kind
    count: int
    take: Callable[[Array], Taken]
    name_of: Callable[[int], str]
    labels: Array | None = None
    classes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    show: Callable[[Array], str] | None = None
    as_is: bool = False
    captions: tuple[Caption, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def from_array(inputs: Array) -> Callable[[Array], Taken]:
    """Make a `take` of an array in memory."""
    return lambda chosen: Taken(inputs[chosen])


def numbered(stem: str, ids: tuple[str, ...] = ()) -> Callable[[int], str]:
    """Make a `name_of`: the ids that the file itself gives, else its name with the number of the example."""
    return ids.__getitem__ if ids else lambda index: f"{stem}[{index}]"
