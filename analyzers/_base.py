"""What every analyzer shares: options that are fields, a tick that reports, a result that is saved and drawn.

No torch at import time: the browser side imports this to make forms and figures.
"""

from __future__ import annotations

import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from probes.errors import ProbeError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from probes.checkpoint import Checkpoint
    from probes.objective import Objective
    from probes.points import Point

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Option:
    """Describe one option: enough to draw its form, parse it on the command line and check it."""

    name: str
    label: str
    help: str
    kind: type
    default: Any
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False

    def check(self, value: Any) -> Any:
        """Return the value in the option's type; raise ValueError saying what is allowed."""
        return _checked(self, value)


def option(
    default: Any,
    label: str,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    advanced: bool = False,
) -> Any:
    """Declare a field of an analyzer as an option, with the bounds and the help that its form shows."""
    about = {"label": label, "help": help, "minimum": minimum, "maximum": maximum}
    return field(default=default, metadata={**about, "choices": choices, "advanced": advanced})


def times_option() -> Any:
    """Declare the times of a training run's checkpoints, for `probes.series.series`."""
    told = "One for each checkpoint in the order given, as in: 0, 50, 100; empty: read from the files or their names."
    return option("", "Epochs or steps", told, advanced=True)


def precision_option(help: str, *, advanced: bool = False) -> Any:
    """Declare the floating-point type that an objective computes in."""
    return option("float32", "Precision", help, choices=("float32", "float64"), advanced=advanced)


def micro_batch_option() -> Any:
    """Declare how many examples are taken at a time."""
    told = "Examples at a time; 0 chooses by memory. The result does not depend on it."
    return option(0, "Micro-batch", told, minimum=0, maximum=100_000, advanced=True)


def seed_option(help: str) -> Any:
    """Declare the seed of whatever is random."""
    return option(0, "Seed", help, minimum=0, maximum=2**31 - 1, advanced=True)


class Tick(Protocol):
    """What an analyzer is given to report with and to keep its own checkpoints in."""

    def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
        """Report: share done in [0, 1], what is being done, and the time left when it is known better than by rate."""

    def save(self, key: str, arrays: Arrays) -> None:
        """Keep intermediate arrays, atomically, so that a killed run goes on from here."""

    def load(self, key: str) -> Arrays | None:
        """Return what `save` kept under this key in an earlier attempt of the same run, or None."""

    def share(self, key: str, arrays: Arrays) -> None:
        """Keep arrays for other runs of the workspace while there is room; key: the hash of all that they depend on."""

    def shared(self, key: str) -> Arrays | None:
        """Return what `share` kept under this key in any run, or None."""

    def show(self, result: Result) -> None:
        """Let people look at what is known so far; the result that `run` returns takes its place."""


class Quiet:
    """A tick that reports nothing and keeps nothing."""

    def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
        """Do nothing."""

    def save(self, key: str, arrays: Arrays) -> None:
        """Do nothing."""

    def load(self, key: str) -> Arrays | None:  # noqa: ARG002
        """Return None: nothing was kept."""
        return None

    def share(self, key: str, arrays: Arrays) -> None:
        """Do nothing."""

    def shared(self, key: str) -> Arrays | None:  # noqa: ARG002
        """Return None: nothing was shared."""
        return None

    def show(self, result: Result) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Result(ABC):
    """What an analyzer found: numbers, strings and NumPy arrays, never tensors.

    card: "of what": loss and reduction, examples and their hash, mode, dtype, attention kernel, seed, versions,
    device, model, checkpoint. values: JSON numbers, strings and lists of them. caveats: sentences for the reader.
    """

    analyzer: str
    card: Mapping[str, Any]
    values: Mapping[str, Any]
    arrays: Arrays
    caveats: tuple[str, ...] = ()

    @abstractmethod
    def figures(self, **view: Any) -> Mapping[str, go.Figure]:
        """Draw the result: a title-like name (letters, digits, underscores) -> figure."""

    @abstractmethod
    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return the data behind the figures: the same names where there is one for a figure."""

    def overlay(self, others: Sequence[Result], **view: Any) -> Mapping[str, go.Figure]:  # noqa: ARG002
        """Draw this result and others over one another; raise ProbeError, saying why, where that cannot be."""
        raise ProbeError(f"Results of {self.analyzer} are not drawn over one another.")

    def to_json(self) -> dict[str, Any]:
        """Return what result.json holds (all but the arrays)."""
        head = {"analyzer": self.analyzer, "card": dict(self.card), "values": dict(self.values)}
        return {**head, "caveats": list(self.caveats)}

    def save(self, folder: Path) -> None:
        """Write arrays.npz, then result.json, each atomically: a folder with a result.json is whole."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **dict(self.arrays))
        write_atomically(folder / "arrays.npz", buffer.getvalue())
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / "result.json", text.encode())

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Undo `save`."""
        head = json.loads((folder / "result.json").read_text())
        with np.load(folder / "arrays.npz", allow_pickle=False) as file:  # noqa: TID251
            arrays = {name: file[name] for name in file.files}
        return cls(head["analyzer"], head["card"], head["values"], arrays, tuple(head["caveats"]))


@dataclass(frozen=True)
class Analyzer(ABC):
    """One question about a trained network; its fields are its options."""

    name: ClassVar[str]  # the module's own name, which is also the page's and the document's
    title: ClassVar[str]
    question: ClassVar[str]  # one sentence: what one learns
    version: ClassVar[int]  # raised when the same inputs would give another answer
    result: ClassVar[type[Result]]
    series: ClassVar[bool] = False  # asks about the checkpoints of a training run, not about one
    several: ClassVar[bool] = False  # takes one checkpoint or any number, in the order given
    roles: ClassVar[tuple[str, ...]] = ()  # of a pair: the first, the second and, where more are taken, the rest
    uses_test: ClassVar[bool] = False  # looks at test data too, where there are some
    needs_objective: ClassVar[bool] = True  # else `run` is given None: names and tensors are enough

    def __post_init__(self) -> None:
        for each in self.options():
            object.__setattr__(self, each.name, each.check(getattr(self, each.name)))

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """List the options in the order of the fields."""
        return tuple(_option(each) for each in fields(cls))

    @abstractmethod
    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> Result:
        """Answer the question; the same inputs, options and seed give the same answer.

        objective: at the first of the checkpoints; `objective.at(other)` is at another, `objective.on_test()` has the
        test data.
        """

    @classmethod
    def merges(cls, result: Result) -> Mapping[str, str]:  # noqa: ARG003
        """Name the checkpoints that can be made of a result: a key -> what it is, in words."""
        return {}

    def merged(
        self,
        objective: Objective,  # noqa: ARG002
        checkpoints: tuple[Checkpoint, ...],  # noqa: ARG002
        result: Result,  # noqa: ARG002
        which: str,
        tick: Tick,  # noqa: ARG002
    ) -> Point:
        """Make one of `merges`: weights and running statistics; raise ProbeError where it cannot be made."""
        raise ValueError(f"{self.name} makes no checkpoint {which!r}")


def differences(card: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """Name what keeps two results from being overlaid: every entry of the cards that differs, the checkpoint aside."""
    names = sorted((set(card) | set(other)) - {"checkpoint"})
    rows = ((name, card.get(name, "not stated"), other.get(name, "not stated")) for name in names)
    return tuple(f"{name}: {a} against {b}" for name, a, b in rows if a != b)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one: temporary file, fsync, rename, fsync."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _option(each: Field[Any]) -> Option:
    if each.default is MISSING:
        raise ValueError(f"the option {each.name} needs a default")
    about = {key: each.metadata[key] for key in ("label", "help", "minimum", "maximum", "choices", "advanced")}
    return Option(name=each.name, kind=type(each.default), default=each.default, **about)


def _checked(about: Option, value: Any) -> Any:
    if about.kind is bool:
        known = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
        if isinstance(value, bool):
            return value
        if str(value).lower() in known:
            return known[str(value).lower()]
        raise ValueError(f"{about.name} is {value!r}; give true or false")
    try:
        value = about.kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"{about.name} is {value!r}; give a {about.kind.__name__}") from None
    if about.choices and value not in about.choices:
        raise ValueError(f"{about.name} is {value!r}; give one of {', '.join(about.choices)}")
    low, high = about.minimum, about.maximum
    if (low is not None and value < low) or (high is not None and value > high) or value != value:
        raise ValueError(f"{about.name} is {value!r}; give a value from {low} to {high}")
    return value
