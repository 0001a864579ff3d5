"""Which models of torchvision and timm are these tensors most like, and with which sizes? No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from probes.architecture import heads
from probes.architecture.family import Candidate
from probes.architecture.index import Entry, Index, nearest, read_index, sizes_of
from probes.architecture.layers import Shapes
from probes.library import is_here, title_of_library
from probes.specs import ModelSpec

_LIKE = 0.5  # the share of tensors from which a model is worth building
_TRIED = 3
_NAMING = ("arch", "model", "model_name", "architecture", "model_arch")
_STEM = (
    "Its first convolution was replaced by a smaller one. Shapes show neither its stride nor whether the pool behind "
    "it was kept: 1 and no pool are assumed, as is usual for small images."
)


def likely(shapes: Shapes, facts: Mapping[str, Any]) -> Iterator[Candidate]:
    """Yield the models of the libraries that these tensors are most like, the best first, with sizes derived."""
    index = read_index()
    for entry, share in nearest(index, shapes, _TRIED):
        if share >= _LIKE and any(map(is_here, entry.names)):
            yield _candidate(index, entry, shapes, said(facts))


def sized(name: str, shapes: Shapes) -> ModelSpec:
    """Return the model of this name with the sizes that the tensors show, or its usual ones if it is not indexed."""
    index = read_index()
    for entry in index.entries:
        if name in entry.names:
            found = _candidate(index, entry, shapes, (_bare(name),)).spec
            variant = {"variant": name} if "variant" in found.arguments else {}
            return ModelSpec("library", name, {**found.arguments, **variant})
    return ModelSpec("library", name)


def absent(shapes: Shapes) -> str:
    """Say that the nearest model is of a library that is not installed; "" when it is installed, or nothing is near."""
    (entry, share), *_ = nearest(read_index(), shapes, 1)
    if share < _LIKE or any(map(is_here, entry.names)):
        return ""
    library, name = entry.names[0].split("/")
    return f"Most of its tensors are those of {name} of {library}, which is not installed here: pip install {library}."


def said(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of architectures that the file itself gives, as training scripts write them down."""
    arguments = facts.get("arguments", {})
    found = [facts.get("arch"), facts.get("timm"), *(arguments.get(key) for key in _NAMING)]
    return tuple(each.partition(".")[0] for each in found if isinstance(each, str) and each)


def _candidate(index: Index, entry: Entry, shapes: Shapes, told: tuple[str, ...]) -> Candidate:
    sizes = sizes_of(index, entry, shapes)
    stem = _stem(entry.names[0], shapes)
    own = index.tensors_of(entry)
    head = heads.replaced(own, [list(own)[place] for place, *_ in entry.classes], shapes)
    if head:
        del sizes["num_classes"]
        sizes |= {"head_at": head[0], "head": head[1]}
    names = [name for name in entry.names if is_here(name)]
    if stem or sizes.get("num_classes") == 0:  # only one library each builds such
        library = "torchvision/" if stem else "timm/"
        names = [name for name in names if name.startswith(library)] or names
    stated = [name for name in names if _bare(name) in told]
    name = (stated or names)[0]
    arguments = {**sizes, **stem, **({"variant": name} if len(names) > 1 else {})}
    spec = ModelSpec("library", name, arguments)
    choices: dict[str, tuple[Any, ...]] = {"variant": tuple(names)} if len(names) > 1 else {}
    choices |= {"stem_stride": (1, 2), "stem_pool": (False, True)} if stem else {}
    reasons = (*_reasons(name, names, stated), *([_STEM] if stem else []), *([heads.WORDS] if head else []))
    return Candidate(spec, title_of_library(spec), reasons, choices)


def _reasons(name: str, names: list[str], stated: list[str]) -> Iterator[str]:
    library = name.partition("/")[0]
    yield f"Its tensors have the names of those of {_bare(name)} of {library}, and sizes that it can have."
    others = [each for each in names if each != name]
    if stated:
        yield f"The file names its architecture: {_bare(name)}."
    elif others:
        words = " and ".join(others[:3]) if len(others) < 4 else f"{', '.join(others[:3])} and {len(others) - 3} more"
        yield f"{words} {'has' if len(others) == 1 else 'have'} the same tensors: the variant is open to choice."


def _bare(name: str) -> str:
    return name.partition("/")[2]


def _stem(name: str, shapes: Shapes) -> dict[str, Any]:
    """Tell whether the first convolution of a ResNet was replaced by that for small images."""
    first = shapes.get("conv1.weight", ())
    residual = name.startswith("torchvision/") and "layer4.0.conv1.weight" in shapes and len(first) == 4
    if not residual or first[2] != first[3] or not 0 < first[2] < 7:
        return {}
    return {"stem_kernel": first[2], "stem_stride": 1, "stem_pool": False}
