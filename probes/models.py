"""What architecture is this? Names and shapes -> ModelSpec -> nn.Module, exactly or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probes.architecture import modules
from probes.architecture.families import FAMILIES, Candidate, Family
from probes.architecture.layers import Shape
from probes.checkpoint import Checkpoint
from probes.errors import ModelError
from probes.specs import ModelSpec

__all__ = ["FAMILIES", "Family", "Mismatch", "Recognition", "build", "compare", "load_model"]
__all__ += ["recognise", "title_of"]

MAXIMUM_PARAMETERS = 2_000_000_000
_MAXIMUM_SIZE = 2**24
_MAXIMUM_LAYERS = 2_000
_COUNTER = "num_batches_tracked"
_BUILDERS: Mapping[str, Callable[..., nn.Module]] = {
    "cifar_resnet": modules.CifarResNet,
    "small_gpt": modules.SmallGPT,
    "mlp": modules.mlp,
    "lenet": modules.lenet,
}


@dataclass(frozen=True)
class Mismatch:
    """How a checkpoint differs from a model; false when it does not.

    missing: the model has them, the file does not; unexpected: the reverse; shapes: (name, model's, file's). absent:
    batch counters that older files lack and that no result needs; they make no difference.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    shapes: tuple[tuple[str, Shape, Shape], ...] = ()
    absent: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.shapes)

    def to_json(self) -> dict[str, Any]:
        """Return JSON for the page."""
        rows = [[name, list(model), list(file)] for name, model, file in self.shapes]
        parts = {"missing": list(self.missing), "unexpected": list(self.unexpected), "shapes": rows}
        return {**parts, "absent": list(self.absent), "exact": not self, "sentence": self.sentence()}

    def sentence(self) -> str:
        """Say it in one sentence."""
        if not self:
            old = f" (but for {len(self.absent)} batch counters, which older files lack)" if self.absent else ""
            return f"Every tensor fits by name and shape{old}."
        shapes = [f"{name} is {list(file)} where {list(model)} is needed" for name, model, file in self.shapes]
        parts = (
            _listed("missing from the file", self.missing),
            _listed("not in the model", self.unexpected),
            _listed("of another shape", shapes),
        )
        return "The file does not fit: " + "; ".join(part for part in parts if part) + "."


@dataclass(frozen=True)
class Recognition:
    """What a checkpoint seems to be. spec: None when nothing fits exactly; mismatch: of the nearest that does not."""

    spec: ModelSpec | None
    title: str
    reasons: tuple[str, ...] = ()
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    mismatch: Mismatch | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON for the page."""
        return {
            "spec": self.spec.to_json() if self.spec else None,
            "title": self.title,
            "reasons": list(self.reasons),
            "choices": {name: list(values) for name, values in self.choices.items()},
            "mismatch": self.mismatch.to_json() if self.mismatch is not None else None,
        }


def recognise(checkpoint: Checkpoint) -> Recognition:
    """Find the model that these tensors belong to: a Hugging Face folder, the catalogue, or a chain of layers."""
    from probes.architecture.proposals import propose

    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    if "hugging_face" in checkpoint.facts:
        return _recognise_folder(checkpoint)
    whole = all(0 not in shape for shape in shapes.values())
    found = [family.find(shapes, checkpoint.facts) for family in FAMILIES.values()] if whole else []
    found = [_stated(checkpoint), *found, *([propose(shapes)] if whole else [])]
    nearest: tuple[Candidate, Mismatch] | None = None
    for candidate in [each for each in found if each is not None]:
        mismatch = _try(candidate.spec, checkpoint)
        if mismatch is None:
            continue
        if not mismatch:
            reasons = (*candidate.reasons, mismatch.sentence())
            return Recognition(candidate.spec, candidate.title, reasons, candidate.choices)
        nearest = min(nearest or (candidate, mismatch), (candidate, mismatch), key=lambda pair: len(pair[1]))
    return _unknown(checkpoint, nearest)


def build(spec: ModelSpec) -> nn.Module:
    """Build the module, with untrained weights, in eval mode on the CPU; raise ModelError when it cannot be built."""
    with torch.random.fork_rng(devices=[]):
        _measure(spec)
        return _make(spec).eval()


def compare(spec: ModelSpec, checkpoint: Checkpoint) -> Mismatch:
    """Compare every parameter and buffer by name and shape, without allocating the model's."""
    with torch.random.fork_rng(devices=[]):
        return _difference(_measure(spec), checkpoint)


def load_model(spec: ModelSpec, checkpoint: Checkpoint) -> nn.Module:
    """Build the module and give it the checkpoint's tensors; raise ModelError listing whatever does not fit.

    Half precision is computed in float32; float64 stays float64.
    """
    mismatch = compare(spec, checkpoint)
    if mismatch:
        raise ModelError(f"{checkpoint.name} and {title_of(spec)}: {mismatch.sentence()} Choose another model.")
    module = build(spec)
    if any(info.dtype == "float64" for info in checkpoint.tensors.values()):
        module = module.double()
    with torch.no_grad():
        _fill(module, checkpoint)
    return module.eval()


def title_of(spec: ModelSpec) -> str:
    """Name a model in a few words."""
    if spec.source == "text":
        from probes.architecture.model_text import title_of_text

        return title_of_text(spec.text)
    if spec.source == "hugging_face":
        from probes.hugging_face import title_of_folder

        return title_of_folder(Path(spec.folder))
    return _family(spec).name_of(spec.arguments)


def _recognise_folder(checkpoint: Checkpoint) -> Recognition:
    about = checkpoint.facts["hugging_face"]
    # A stored file lies under its hash, and specs name stored files by it.
    folder = checkpoint.sha256 if checkpoint.path.name == checkpoint.sha256 else str(checkpoint.path)
    spec = ModelSpec("hugging_face", folder=folder)
    mismatch = compare(ModelSpec("hugging_face", folder=str(checkpoint.path)), checkpoint)
    reasons = (f"config.json names the architecture {about['architecture']}.", mismatch.sentence())
    return Recognition(None if mismatch else spec, about["architecture"], reasons, mismatch=mismatch or None)


def _stated(checkpoint: Checkpoint) -> Candidate | None:
    text = checkpoint.facts.get("model_text")
    if not text:
        return None
    spec = ModelSpec("text", text=text)
    try:
        return Candidate(spec, title_of(spec), ("The file itself states its model.",))
    except ModelError:
        return None


def _try(spec: ModelSpec, checkpoint: Checkpoint) -> Mismatch | None:
    """Compare; None when names in the file (of a method, say) keep the candidate from being built."""
    try:
        return compare(spec, checkpoint)
    except ModelError:
        return None


def _unknown(checkpoint: Checkpoint, nearest: tuple[Candidate, Mismatch] | None) -> Recognition:
    advice = "Paste the model as Sequential(...) or the text of print(model), or bring its Hugging Face folder."
    if nearest is None:
        first = ", ".join(list(checkpoint.tensors)[:3])
        return Recognition(None, "not recognised", (f"No family has tensors like {first}. {advice}",))
    candidate, mismatch = nearest
    reasons = (f"The nearest is {candidate.title}. {mismatch.sentence()}", advice)
    return Recognition(None, "not recognised", reasons, mismatch=mismatch)


def _make(spec: ModelSpec) -> nn.Module:
    if spec.source == "text":
        from probes.architecture.model_text import build_text

        return build_text(spec.text)
    if spec.source == "hugging_face":
        from probes.hugging_face import build_folder

        return build_folder(Path(spec.folder))
    _check_sizes(_family(spec).title, spec.arguments)
    try:
        return _BUILDERS[spec.name](**spec.arguments)
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(f"{_family(spec).title} cannot be built from {dict(spec.arguments)}: {error}.") from None


def _measure(spec: ModelSpec) -> nn.Module:
    """Build the module without memory for its tensors and refuse it when it is absurdly large."""
    with torch.device("meta"):
        module = _make(spec)
    total = sum(parameter.numel() for parameter in module.parameters())
    if total > MAXIMUM_PARAMETERS:
        raise ModelError(f"{title_of(spec)} would have {total:,} parameters; the limit is {MAXIMUM_PARAMETERS:,}.")
    return module


def _check_sizes(title: str, arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        limit = _MAXIMUM_LAYERS if name in ("depth", "layers", "heads") else _MAXIMUM_SIZE
        sizes = [each for each in values if isinstance(each, (int, float)) and not isinstance(each, bool)]
        wrong = next((each for each in sizes if not isinstance(each, int) or not 0 <= each <= limit), None)
        if wrong is not None or len(values) > _MAXIMUM_LAYERS:
            raise ModelError(f"{title}: {name} is {wrong if wrong is not None else len(values)}; at most {limit:,}.")


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
        if isinstance(own[name], nn.Parameter) and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(f"{checkpoint.name}: {name} is {kind}; only floating weights can be analysed.")
        twin = filled.setdefault(id(own[name]), name)
        if twin != name and not torch.equal(own[name], tensor.to(own[name].dtype)):
            raise ModelError(f"{checkpoint.name}: {twin} and {name} differ, but the model ties them to one tensor.")
        own[name].copy_(tensor)


def _family(spec: ModelSpec) -> Family:
    if spec.name not in FAMILIES:
        raise ModelError(f"There is no model {spec.name!r}; the catalogue has {', '.join(FAMILIES)}.")
    return FAMILIES[spec.name]


def _listed(what: str, names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more})" if names else ""
