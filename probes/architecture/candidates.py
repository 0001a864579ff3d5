"""The models that a checkpoint may belong to, in the order in which they are believed where several fit exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from probes.architecture.families import FAMILIES
from probes.architecture.family import Candidate
from probes.architecture.layers import Shapes
from probes.architecture.nearest import absent, likely
from probes.architecture.proposals import propose
from probes.architecture.titles import title_of
from probes.checkpoint import Checkpoint
from probes.errors import ModelError, RefusedCheckpoint
from probes.operator_models import listed
from probes.specs import ModelSpec
from probes.trusted import hash_of, is_trusted


def candidates(checkpoint: Checkpoint) -> Iterator[Candidate]:
    """Yield what may be built, the most telling first.

    These are a trusted file's own module, what the config.json of a Hugging Face folder names (a guess from the shapes
    is then not made), the text in the file, the operator's models, the families of the catalogue, and the nearest
    models of the libraries.
    """
    yield from _trusted(checkpoint)
    yield from _folder(checkpoint)
    yield from _stated(checkpoint)
    yield from _operators()
    shapes = _shapes(checkpoint)
    if not shapes:
        return
    for family in FAMILIES.values():
        found = family.find(shapes, checkpoint.facts)
        if found is not None:
            yield found
    yield from likely(shapes, checkpoint.facts)


def proposed(checkpoint: Checkpoint) -> Iterator[Candidate]:
    """Yield the chain of layers that could have these tensors: worth a look where nothing that is known has them."""
    shapes = _shapes(checkpoint)
    found = propose(shapes) if shapes and not absent(shapes) else None
    if found is not None:
        yield found


def missing_library(checkpoint: Checkpoint) -> list[str]:
    """Say that a library is missing here whose model this seems to be; [] when it does not."""
    sentence = absent({name: info.shape for name, info in checkpoint.tensors.items()})
    return [sentence] if sentence else []


def _shapes(checkpoint: Checkpoint) -> Shapes:
    """Return names and shapes to guess from; nothing where there is a config.json to go by, or a tensor is empty."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    known = "hugging_face" in checkpoint.facts
    return {} if known or any(0 in shape for shape in shapes.values()) else shapes


def _trusted(checkpoint: Checkpoint) -> Iterator[Candidate]:
    """Yield the module in the file itself, if the operator trusts the folder that it lies in, or came from."""
    path = Path(checkpoint.facts.get("origin") or checkpoint.path)
    if not is_trusted(path):
        return
    spec = ModelSpec("trusted", folder=str(path), arguments={"sha256": hash_of(path)})
    words = "The operator trusts the folder of this file, so that the module in it may be opened by its own code."
    yield Candidate(spec, title_of(spec), (words,))


def _folder(checkpoint: Checkpoint) -> Iterator[Candidate]:
    if "hugging_face" not in checkpoint.facts:
        return
    from probes.hugging_face import fit_names

    try:
        fitted = fit_names(checkpoint, checkpoint.path)
    except (ModelError, RefusedCheckpoint):
        fitted = checkpoint  # the comparison says why
    noted = [doubt for doubt in fitted.doubts if doubt not in checkpoint.doubts]
    about = checkpoint.facts["hugging_face"]
    title = about["architecture"] or about["model_type"]
    reasons = (f"config.json names the architecture {title}.", *noted)
    yield Candidate(ModelSpec("hugging_face", folder=str(checkpoint.path)), title, reasons)


def _stated(checkpoint: Checkpoint) -> Iterator[Candidate]:
    text = checkpoint.facts.get("model_text")
    if not text:
        return
    spec = ModelSpec("text", text=text)
    try:
        yield Candidate(spec, title_of(spec), ("The file itself states its model.",))
    except ModelError:
        return


def _operators() -> Iterator[Candidate]:
    for offered in listed():
        if not offered.problem:
            spec = ModelSpec("operator", offered.name, {"sha256": offered.sha256})
            yield Candidate(spec, title_of(spec), (f"The operator's file {offered.file} builds it.",))
