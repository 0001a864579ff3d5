"""What the user chose, as plain values: no torch here, so that the browser side can import it.

`ModelSpec` and `DataSpec` go to JSON and back unchanged; a run's id is a hash over them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

ModelSource = Literal["catalogue", "text", "hugging_face", "library", "operator", "trusted"]
DataFormat = Literal["auto", "idx", "npz", "images", "table", "text", "dataset", "tokens16", "tokens32", "operator"]
LossName = Literal["cross_entropy", "mse", "bce_with_logits", "causal_lm", "caption_distance", "operator"]

LOSSES: tuple[LossName, ...] = get_args(LossName)[:-1]  # those that need no file of the operator
LOSS_TITLES: Mapping[LossName, str] = {
    "cross_entropy": "Cross-entropy",
    "mse": "Mean squared error",
    "bce_with_logits": "Binary cross-entropy with logits",
    "causal_lm": "Causal language model (cross-entropy of the next token)",
    "caption_distance": "Image and caption (1 - cosine, of CLIP)",
    "operator": "The operator's own loss(model, batch)",
}


@dataclass(frozen=True)
class ModelSpec:
    """Say how to build the module that a checkpoint's tensors belong to.

    source "catalogue": `name` is a family in `probes.models`, `arguments` its sizes;
    source "text": `text` is a `Sequential(...)` expression or the text of `print(model)`;
    source "hugging_face": `folder` is a folder (or a zip of one) with config.json and weights;
    source "library": `name` is "torchvision/resnet18" or "timm/vit_tiny_patch16_224", see `probes.library`;
    source "operator": `name` is "<module>:<model>" of THEODOLITE_MODELS, `arguments` may hold the file's "sha256";
    source "trusted": `folder` is the path of a file in a folder of THEODOLITE_TRUSTED, `arguments` likewise.
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

    files: paths (an IDX pair is two of them), or names that the caller resolves to paths; for the format "operator" the
    name of a module. mean, std: per channel, applied after uint8 images are scaled to [0, 1]; empty means none.
    examples: how many, 0 for all. shuffle: the seed of the order, None for the order of the file. label: the column
    (tables) or field that holds the target, "" to look for `label`, `y`, `target`. tokenizer: text only: "auto" (the
    checkpoint's own, else characters), "bytes", "characters", or a path to a tokenizer.json. context: text only:
    tokens in a sequence, 0 for the model's own. split: of data that comes in several, "" for the training one.
    classes: the model's names of its classes in its order, onto which the data's are mapped by name; empty: the
    data's own order.
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
    split: str = ""
    classes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values; split and classes only where they are chosen: older runs keep their ids."""
        value = {**asdict(self), **{name: list(getattr(self, name)) for name in ("files", "mean", "std", "classes")}}
        return {key: each for key, each in value.items() if each or key not in ("split", "classes")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataSpec:
        """Undo `to_json`; what an older one lacks is empty."""
        tuples = {name: tuple(value.get(name) or ()) for name in ("files", "mean", "std", "classes")}
        return cls(**{**value, **tuples})


def as_test(data: DataSpec, files: tuple[str, ...], split: str = "", examples: int = 0) -> DataSpec:
    """Say which test data to read, scaled, labelled and cut into tokens as the data are; in the order of the file.

    split: "" takes the one called test where the files are those of the data, else whatever there is.
    """
    split = split or ("test" if files == data.files else "")
    format = data.format if data.format == "operator" or files == data.files else "auto"
    format = data.format if data.format in ("tokens16", "tokens32") else format
    return replace(data, files=files, format=format, split=split, examples=examples, shuffle=None)


def canonical_json(value: Any) -> str:
    """Write JSON in one way only: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Return the sha256 (hex) of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
