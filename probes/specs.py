"""What the user chose, as plain values: no torch here, so that the browser side can import it.

`ModelSpec` and `DataSpec` go to JSON and back unchanged; a run's id is a hash over them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

ModelSource = Literal["catalogue", "text", "hugging_face"]
DataFormat = Literal["auto", "idx", "npz", "images", "table", "text"]
LossName = Literal["cross_entropy", "mse", "bce_with_logits", "causal_lm"]

LOSSES: tuple[LossName, ...] = get_args(LossName)
LOSS_TITLES: Mapping[LossName, str] = {
    "cross_entropy": "Cross-entropy",
    "mse": "Mean squared error",
    "bce_with_logits": "Binary cross-entropy with logits",
    "causal_lm": "Causal language model (cross-entropy of the next token)",
}


@dataclass(frozen=True)
class ModelSpec:
    """Say how to build the module that a checkpoint's tensors belong to.

    source "catalogue": `name` is a family in `probes.models`, `arguments` its sizes;
    source "text": `text` is a `Sequential(...)` expression or the text of `print(model)`;
    source "hugging_face": `folder` is a folder (or a zip of one) with config.json and weights.
    """

    source: ModelSource
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    folder: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values."""
        return {**asdict(self), "arguments": dict(self.arguments)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelSpec:
        """Undo `to_json`."""
        return cls(**value)


@dataclass(frozen=True)
class DataSpec:
    """Say which examples to read and how.

    files: paths (an IDX pair is two of them), or names that the caller resolves to paths. mean, std: per channel,
    applied after uint8 images are scaled to [0, 1]; empty means none. examples: how many, 0 for all. shuffle: the
    seed of the order, None for the order of the file. label: the column (tables) or field that holds the target,
    "" to look for `label`, `y`, `target`. tokenizer: text only: "auto", "bytes", "characters", or a path to a
    tokenizer.json. context: text only: tokens in a sequence, 0 for the model's own.
    """

    files: tuple[str, ...]
    format: DataFormat = "auto"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    examples: int = 0
    shuffle: int | None = None
    label: str = ""
    tokenizer: str = "auto"
    context: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values."""
        value = asdict(self)
        return {**value, "files": list(self.files), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataSpec:
        """Undo `to_json`."""
        tuples = {name: tuple(value.get(name, ())) for name in ("files", "mean", "std")}
        return cls(**{**value, **tuples})


def canonical_json(value: Any) -> str:
    """Write JSON in one way only: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Return the sha256 (hex) of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
