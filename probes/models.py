"""What architecture is this? Names and shapes -> ModelSpec -> nn.Module, exactly or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probes.architecture.building import make
from probes.architecture.families import FAMILIES
from probes.architecture.family import Candidate, Family
from probes.architecture.mismatch import Mismatch
from probes.architecture.titles import title_of
from probes.checkpoint import Checkpoint
from probes.errors import ModelError, RefusedCheckpoint
from probes.specs import ModelSpec

__all__ = ["FAMILIES", "Family", "Mismatch", "Nearby", "Recognition", "build", "compare", "load_model"]
__all__ += ["recognise", "title_of"]

_ADVICE = "Paste the model as Sequential(...) or the text of print(model), or bring its Hugging Face folder."
MAXIMUM_PARAMETERS = 2_000_000_000
_COUNTER = "num_batches_tracked"
_TELLING = ("hugging_face", "operator", "trusted")  # why they cannot be built is worth telling


@dataclass(frozen=True)
class Nearby:
    """A model that was tried, and how the checkpoint differs from it."""

    title: str
    mismatch: Mismatch

    def to_json(self) -> dict[str, Any]:
        """Return JSON for the page."""
        return {"title": self.title, "mismatch": self.mismatch.to_json(), "sentence": self.mismatch.sentence()}


@dataclass(frozen=True)
class Recognition:
    """What a checkpoint seems to be. spec: None when nothing fits exactly; mismatch: of the nearest that does not.

    runner_up: the next best of all that were tried, which may fit as well; None when nothing else came close.
    """

    spec: ModelSpec | None
    title: str
    reasons: tuple[str, ...] = ()
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    mismatch: Mismatch | None = None
    runner_up: Nearby | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON for the page."""
        return {
            "spec": self.spec.to_json() if self.spec else None,
            "title": self.title,
            "reasons": list(self.reasons),
            "choices": {name: list(values) for name, values in self.choices.items()},
            "mismatch": self.mismatch.to_json() if self.mismatch is not None else None,
            "runner_up": self.runner_up.to_json() if self.runner_up else None,
        }


def recognise(checkpoint: Checkpoint) -> Recognition:
    """Find the model that these tensors belong to: a Hugging Face folder, the catalogue, a library, a chain of layers.

    Whatever is found was built and compared with every tensor; the first kind that fits exactly is the answer.
    """
    from probes.architecture.candidates import candidates, missing_library, proposed

    tried, failed = _try(candidates(checkpoint), checkpoint)
    if all(mismatch for _, mismatch in tried):
        tried += _try(proposed(checkpoint), checkpoint)[0]
    exact = next((pair for pair in tried if not pair[1]), None)
    rest = sorted((pair for pair in tried if pair is not exact), key=lambda pair: len(pair[1]))
    if exact is None and "hugging_face" in checkpoint.facts:
        return _unfit_folder(checkpoint, rest, failed)
    if exact is None:
        return _unknown(checkpoint, rest, [*failed, *missing_library(checkpoint)])
    candidate, mismatch = exact
    reasons = (*candidate.reasons, mismatch.sentence(), *failed)
    spec = _stored(candidate.spec, checkpoint)
    return Recognition(spec, candidate.title, reasons, candidate.choices, runner_up=_next(rest))


def build(spec: ModelSpec) -> nn.Module:
    """Build the module in eval mode on the CPU; raise ModelError when it cannot be built.

    Its weights are untrained, but for the sources "operator" and "trusted", which may bring their own.
    """
    with torch.random.fork_rng(devices=[]):
        _measure(spec)
        return make(spec).eval()


def compare(spec: ModelSpec, checkpoint: Checkpoint) -> Mismatch:
    """Compare every parameter and buffer by name and shape, without allocating the model's."""
    with torch.random.fork_rng(devices=[]):
        return _difference(_measure(spec), _as_named(spec, checkpoint))


def load_model(spec: ModelSpec, checkpoint: Checkpoint) -> nn.Module:
    """Build the module and give it the checkpoint's tensors; raise ModelError listing whatever does not fit.

    Every tensor of the model comes from the checkpoint: nothing is left as it was built. Half and quarter precision is
    computed in float32; float64 stays float64.
    """
    checkpoint = _as_named(spec, checkpoint)
    with torch.random.fork_rng(devices=[]):
        mismatch = _difference(_measure(spec), checkpoint)
    if mismatch:
        raise ModelError(f"{checkpoint.name} and {title_of(spec)}: {mismatch.sentence()} Choose another model.")
    module = build(spec)
    if any(info.dtype == "float64" for info in checkpoint.tensors.values()):
        module = module.double()
    with torch.no_grad():
        _fill(module, checkpoint)
    return module.eval()


def _as_named(spec: ModelSpec, checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the names that the model has: transformers renames what older files call otherwise."""
    if spec.source != "hugging_face":
        return checkpoint
    from probes.hugging_face import fit_names

    return fit_names(checkpoint, Path(spec.folder))


def _stored(spec: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    """Name a folder that is stored by its hash, as specs do, and not by a path of this machine."""
    # A stored file, or the copy that was made of it, lies under its hash.
    stored = checkpoint.sha256 in (checkpoint.path.name, checkpoint.path.parent.name)
    return replace(spec, folder=checkpoint.sha256) if stored and spec.source == "hugging_face" else spec


def _unfit_folder(checkpoint: Checkpoint, tried: list[tuple[Candidate, Mismatch]], failed: list[str]) -> Recognition:
    """Say why the model that config.json names cannot be used; its weights can be analysed without one."""
    about = checkpoint.facts["hugging_face"]
    title = about["architecture"] or about["model_type"]
    pair = next((pair for pair in tried if pair[0].spec.source == "hugging_face"), None)
    said = [pair[1].sentence()] if pair else []
    reasons = (f"config.json names the architecture {title}.", *said, *failed)
    return Recognition(None, title, reasons, mismatch=pair[1] if pair else None)


def _unknown(checkpoint: Checkpoint, tried: list[tuple[Candidate, Mismatch]], more: list[str]) -> Recognition:
    if not tried:
        first = ", ".join(list(checkpoint.tensors)[:3])
        reasons = (f"Nothing that is known here has tensors like {first}. {_ADVICE}", *more)
        return Recognition(None, "not recognised", reasons)
    candidate, mismatch = tried[0]
    reasons = (f"The nearest is {candidate.title}. {mismatch.sentence()}", *more, _ADVICE)
    return Recognition(None, "not recognised", reasons, mismatch=mismatch, runner_up=_next(tried[1:]))


def _try(found: Iterable[Candidate], checkpoint: Checkpoint) -> tuple[list[tuple[Candidate, Mismatch]], list[str]]:
    """Compare with each; return those that can be built, and why one that is not made up from the shapes cannot."""
    tried: list[tuple[Candidate, Mismatch]] = []
    failed: list[str] = []
    for candidate in found:
        try:
            tried.append((candidate, compare(candidate.spec, checkpoint)))
        except (ModelError, RefusedCheckpoint) as error:  # names in the file, a configuration, the operator's own code
            failed += [str(error)] if candidate.spec.source in _TELLING else []
    return tried, failed


def _next(tried: list[tuple[Candidate, Mismatch]]) -> Nearby | None:
    return Nearby(tried[0][0].title, tried[0][1]) if tried else None


def _measure(spec: ModelSpec) -> nn.Module:
    """Build the module without memory for its tensors and refuse it when it is absurdly large."""
    module = _without_memory(spec)
    total = sum(parameter.numel() for parameter in module.parameters())
    if total > MAXIMUM_PARAMETERS:
        raise ModelError(f"{title_of(spec)} would have {total:,} parameters; the limit is {MAXIMUM_PARAMETERS:,}.")
    return module


def _without_memory(spec: ModelSpec) -> nn.Module:
    """Build on the meta device; an operator's own code may not bear that, and is then built as it is."""
    if spec.source == "trusted":
        return make(spec)
    try:
        with torch.device("meta"):
            return make(spec)
    except ModelError:
        if spec.source != "operator":
            raise
    return make(spec)


def _difference(module: nn.Module, checkpoint: Checkpoint) -> Mismatch:
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    held = {name: info.shape for name, info in checkpoint.tensors.items()}
    spare = _spare(module)
    missing = [name for name in own if name not in held]
    absent = [name for name in missing if name.endswith(_COUNTER)]
    gone = [name for name in missing if name not in absent and not any(twin in held for twin in spare.get(name, ()))]
    return Mismatch(
        missing=tuple(gone),
        unexpected=tuple(name for name in held if name not in own),
        shapes=tuple((name, own[name], held[name]) for name in held if name in own and own[name] != held[name]),
        absent=tuple(absent),
    )


def _spare(module: nn.Module) -> dict[str, list[str]]:
    """Map each name of a tied parameter to its other names: a file may hold only one of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: [twin for twin in twins if twin != name] for twins in names.values() for name in twins}


def _fill(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the tensors one by one; a tied parameter may come twice, but not with two values."""
    own = module.state_dict(keep_vars=True)
    filled: dict[int, str] = {}
    for name, tensor in checkpoint.stream():
        _check_kind(own[name], tensor, f"{checkpoint.name}: {name}")
        tensor = tensor.to(own[name].dtype)
        twin = filled.setdefault(id(own[name]), name)
        if twin != name and not torch.equal(own[name], tensor):
            raise ModelError(f"{checkpoint.name}: {twin} and {name} differ, but the model ties them to one tensor.")
        own[name].copy_(tensor)
    left = [name for name, each in own.items() if id(each) not in filled and not name.endswith(_COUNTER)]
    if left:
        raise ModelError(f"{checkpoint.name} did not give {len(left)} tensors that it lists ({', '.join(left[:3])}).")


def _check_kind(own: torch.Tensor, tensor: torch.Tensor, name: str) -> None:
    """Refuse what copying would silently change: complex or quantised numbers, whole numbers for weights."""
    kind = str(tensor.dtype).removeprefix("torch.")
    weight = isinstance(own, nn.Parameter) and not tensor.is_floating_point()
    if tensor.is_quantized or (own.dtype != tensor.dtype and (weight or tensor.is_complex())):
        raise ModelError(f"{name} is {kind}; only floating weights can be analysed. Save them as float32.")
    if not own.is_floating_point() and tensor.is_floating_point() and not torch.equal(tensor, tensor.trunc()):
        raise ModelError(f"{name} is {kind} with fractions, where the model has whole numbers.")
