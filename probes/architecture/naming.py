"""Names that people type for a model -> ModelSpec: "torchvision/resnet18", "my_models:wide", a trusted file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from probes.architecture.layers import Shapes
from probes.architecture.nearest import sized
from probes.library import LIBRARIES
from probes.operator_models import listed
from probes.specs import ModelSpec
from probes.trusted import hash_of, is_trusted


def is_module(names: Sequence[str]) -> bool:
    """Tell whether data is named by one of the operator's modules, which builds it."""
    return len(names) == 1 and any(each.data and each.name.partition(":")[0] == names[0] for each in listed())


def named(text: str, shapes: Shapes) -> ModelSpec | None:
    """Return the model of a library, of the operator's files or of a trusted file; None when the text names none.

    shapes: of the checkpoint, from which the sizes of a library's model follow.
    """
    if text.startswith(tuple(f"{library}/" for library in LIBRARIES)):
        return sized(text, shapes)
    offered = next((each for each in listed() if each.name == text and not each.problem), None)
    if offered is not None:
        return ModelSpec("operator", offered.name, {"sha256": offered.sha256})
    if text and is_trusted(Path(text)):
        return ModelSpec("trusted", folder=text, arguments={"sha256": hash_of(Path(text))})
    return None
