"""Write assets/models.json.gz: names and shapes of the tensors of every torchvision and timm classification model.

`.venv/bin/python scripts/index_models.py`, whenever either library is updated; it takes some ten minutes. Nothing is
downloaded and no weights are made: models are built on the meta device, once for each distinct architecture with other
sizes, to see which tensors follow the number of classes, of channels, and the size of the image.
"""

from __future__ import annotations

import gzip
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from math import isqrt
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from probes.architecture.index import PATH  # noqa: E402
from probes.errors import ModelError  # noqa: E402
from probes.library import LIBRARIES  # noqa: E402
from probes.specs import ModelSpec  # noqa: E402

Shape = tuple[int, ...]
Tensors = dict[str, Shape]
TABLES = ("pos_embed", "pos_embedding")
USUAL = {"num_classes": 1000, "in_chans": 3}
OTHER = {"num_classes": 1003, "in_chans": 4}


def main() -> None:
    """Build all models and write the index."""
    warnings.simplefilter("ignore")
    models = described([(name, {}) for name in all_names()] + auxiliary())
    value = packed(models, {library: version(library).split("+")[0] for library in LIBRARIES})
    content = gzip.compress(json.dumps(value, separators=(",", ":")).encode(), 9, mtime=0)
    PATH.write_bytes(content)
    print(f"{len(models)} architectures of {sum(len(each['names']) for each in models)} models, {len(content):,} bytes")


def all_names() -> list[str]:
    """List the models of both libraries, torchvision's first, short names first."""
    import timm
    from torchvision import models

    ours = sorted(models.list_models(module=models), key=lambda name: (len(name), name))
    theirs = sorted(timm.list_models(), key=lambda name: (len(name), name))
    return [*(f"torchvision/{name}" for name in ours), *(f"timm/{name}" for name in theirs)]


def auxiliary() -> list[tuple[str, dict[str, Any]]]:
    """List the models that torchvision builds with classifiers that many files lack."""
    return [(f"torchvision/{name}", {"aux_logits": False}) for name in ("googlenet", "inception_v3")]


def described(asked: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Describe each distinct architecture once: {"names", "arguments", "tensors", "classes", ...}."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, more in asked:
        try:
            tensors, image = tensors_of(name, {**USUAL, **more})
        except ModelError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        key = (*tensors.items(), *more.items())
        if key not in found:
            found[key] = {"names": [], "tensors": tensors, "arguments": more, **marks(name, tensors, more, image)}
        found[key]["names"].append(name)
        found[key]["headless"] = found[key]["headless"] or headless(name, tensors, more)
    return list(found.values())


def tensors_of(name: str, arguments: dict[str, Any]) -> tuple[Tensors, int]:
    """Build a model on the meta device; return its names and shapes, and the side of its images, 0 if not said."""
    import torch

    from probes.library import build_library

    with torch.device("meta"):
        module: Any = build_library(ModelSpec("library", name, arguments))
    size = getattr(getattr(module, "patch_embed", None), "img_size", None) or getattr(module, "image_size", 0)
    side = size[0] if isinstance(size, tuple | list) else size
    return {key: tuple(each.shape) for key, each in module.state_dict().items()}, side if isinstance(side, int) else 0


def marks(name: str, tensors: Tensors, more: dict[str, Any], image: int) -> dict[str, Any]:
    """Say which sizes follow from the number of classes, of channels, and from the size of the image."""
    other = varied(name, more, image)
    names = list(tensors)
    found: dict[str, Any] = {"classes": [], "channels": []}
    for place, dimension, before, after in changes(tensors, other):
        for kind, size in (("classes", "num_classes"), ("channels", "in_chans")):
            if before * OTHER[size] == after * USUAL[size]:
                found[kind].append([place, dimension, before // USUAL[size]])
        table = table_of(before, after, image) if names[place].endswith(TABLES) and dimension == 1 else None
        found |= {"image": [place, dimension, *table]} if table else {}
    return {**found, "headless": []}


def varied(name: str, more: dict[str, Any], image: int) -> Tensors:
    """Build it with other sizes, those of the image too if it takes them."""
    if image:
        try:
            return tensors_of(name, {**OTHER, **more, "img_size": 2 * image})[0]
        except ModelError:
            pass
    return tensors_of(name, {**OTHER, **more})[0]


def headless(name: str, tensors: Tensors, more: dict[str, Any]) -> list[int]:
    """Say which tensors go when there is no classifier; [] where the library has no such model."""
    if not name.startswith("timm/"):
        return []
    try:
        left = tensors_of(name, {**USUAL, "num_classes": 0, **more})[0]
    except ModelError:
        return []
    gone = [place for place, each in enumerate(tensors) if each not in left]
    return gone if len(tensors) - len(gone) == len(left) else []


def changes(tensors: Tensors, other: Tensors) -> Iterator[tuple[int, int, int, int]]:
    """Yield (place, dimension, size, other size) of every size that differs."""
    for place, (key, shape) in enumerate(tensors.items()):
        for dimension, (before, after) in enumerate(zip(shape, other.get(key, shape), strict=False)):
            if before != after:
                yield place, dimension, before, after


def table_of(before: int, after: int, image: int) -> tuple[int, int] | None:
    """Return tokens beside the grid and the side of a patch, from the rows of a table at an image and at twice it."""
    grid = isqrt((after - before) // 3)
    if not grid or 3 * grid * grid != after - before or not image or image % grid:
        return None
    return before - grid * grid, image // grid


def packed(models: list[dict[str, Any]], versions: dict[str, str]) -> dict[str, Any]:
    """Give every name and shape a number, and write a model as runs of numbers."""
    names: dict[str, int] = {}
    shapes: dict[Shape, int] = {}
    rows = []
    for model in models:
        places = [names.setdefault(name, len(names)) for name in model["tensors"]]
        sizes = [shapes.setdefault(shape, len(shapes)) for shape in model["tensors"].values()]
        rest = {key: value for key, value in model.items() if value or key == "names"}
        rows.append({**rest, "tensors": runs(places), "shapes": sizes})
    return {"versions": versions, "names": list(names), "shapes": [list(each) for each in shapes], "models": rows}


def runs(places: list[int]) -> list[int]:
    """Write 5, 6, 7, 9 as 5, 3, 9, 1: where a run begins and how long it is."""
    found: list[list[int]] = []
    for place in places:
        if found and sum(found[-1]) == place:
            found[-1][1] += 1
        else:
            found.append([place, 1])
    return [each for run in found for each in run]


if __name__ == "__main__":
    main()
