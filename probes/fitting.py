"""Do these examples fit this model? One small forward pass on the CPU, and words for what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probes.errors import CurvatureError, DataError, ObjectiveError, ProbeError
from probes.losses import fitting_targets
from probes.specs import LossName
from probes.strict import strict


@dataclass(frozen=True)
class Fit:
    """Inputs and targets in the form that model and loss take, and what was changed, in words."""

    inputs: Tensor
    targets: Tensor
    caveats: tuple[str, ...]


@dataclass
class _Place:
    name: str = ""
    layer: nn.Module | None = None
    input: Tensor | None = None


Run = Callable[[Tensor], Tensor]


def fit(module: nn.Module, run: Run, inputs: Tensor, targets: Tensor, loss: LossName) -> Fit:
    """Find the form in which the examples fit the model: as they are, or each flattened to one row.

    run: the module's forward pass on the CPU.

    Raises DataError (inputs or targets do not fit; both sizes are named) or ObjectiveError.
    """
    forms = [(inputs, "")]
    if inputs.ndim > 2:
        words = f"Each example of shape {tuple(inputs.shape[1:])} was flattened to one row for this model."
        forms.append((inputs.flatten(1), words))
    refusals: list[ProbeError] = []
    for form, words in forms:
        try:
            outputs = _try(module, run, form)
            fitted, more = fitting_targets(loss, outputs, targets)
        except (DataError, ObjectiveError) as refusal:
            refusals.append(refusal)
        else:
            return Fit(form, fitted, tuple(each for each in (words, more) if each))
    raise refusals[0]


def first_bad_layer(module: nn.Module, run: Callable[[], object]) -> str:
    """Name the first layer whose output is not finite while `run` runs the module; "" when all are finite."""
    found: list[str] = []

    def look(name: str, layer: nn.Module, output: object) -> None:
        tensors = output if isinstance(output, tuple | list) else (output,)
        bad = any(isinstance(each, Tensor) and not bool(torch.isfinite(each).all()) for each in tensors)
        if bad and not found:
            found.append(f"`{name}` ({type(layer).__name__})")

    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: look(name, layer, output))
        for name, layer in module.named_modules()
        if name and not list(layer.children())
    ]
    try:
        with torch.no_grad(), strict(module):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""


def _try(module: nn.Module, run: Run, inputs: Tensor) -> Tensor:
    rows = _telling(inputs)
    place = _Place()
    with _watch(module, place), torch.no_grad(), strict(module):
        try:
            outputs = run(rows)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise DataError(_words(place, inputs, error)) from error
    if not isinstance(outputs, Tensor):
        raise ObjectiveError(
            f"The model returns a {type(outputs).__name__}, not a tensor of logits; wrap it so that it does."
        )
    if outputs.ndim < 1 or len(outputs) != len(rows):
        raise ObjectiveError(
            f"The model returns shape {tuple(outputs.shape)} for {len(rows)} examples; the first size must be "
            "the number of examples."
        )
    return outputs


def _telling(inputs: Tensor) -> Tensor:
    """Take the first example; of token sequences also the one that holds the largest id."""
    if inputs.is_floating_point() or inputs.ndim != 2:
        return inputs[:2]
    return inputs[[0, int(inputs.amax(1).argmax())]]


@contextmanager
def _watch(module: nn.Module, place: _Place) -> Iterator[None]:
    def note(name: str, layer: nn.Module, args: tuple[object, ...]) -> None:
        place.name, place.layer = name, layer
        place.input = args[0] if args and isinstance(args[0], Tensor) else None

    hooks = [
        layer.register_forward_pre_hook(lambda layer, args, name=name: note(name, layer, args))
        for name, layer in module.named_modules()
        if not list(layer.children())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _words(place: _Place, inputs: Tensor, error: Exception) -> str:
    shape, layer, found = tuple(inputs.shape[1:]), place.layer, place.input
    if isinstance(layer, nn.Embedding) and found is not None:
        return _embedding_words(layer, found, inputs)
    if found is not None and isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return (
            f"The layer `{place.name}` takes {layer.in_channels} channels, but got shape {tuple(found.shape[1:])} "
            f"from examples of shape {shape}; choose data with {layer.in_channels} channels or another model."
        )
    if found is not None and isinstance(layer, nn.Linear):
        return (
            f"The layer `{place.name}` takes {layer.in_features} features, but got {found.shape[-1]} from examples "
            f"of shape {shape}; the examples have the wrong size for this model."
        )
    where = f"in the layer `{place.name}` ({type(layer).__name__})" if layer is not None else "in the model"
    return f"Examples of shape {shape} do not fit the model: it stops {where}: {_first_line(error)}"


def _embedding_words(layer: nn.Embedding, found: Tensor, inputs: Tensor) -> str:
    if found.is_floating_point():
        return "The model takes token ids (whole numbers), but the examples are floating-point numbers."
    low, high, size = int(found.min()), int(found.max()), layer.num_embeddings
    if found.shape[-1] == inputs.shape[-1] and high == int(inputs.max()) and high != inputs.shape[-1] - 1:
        bad = low if low < 0 else high
        return (
            f"A token id is {bad}, but the model's vocabulary has {size} tokens (0 to {size - 1}); "
            "choose the tokenizer that this model was trained with."
        )
    return f"A sequence has {inputs.shape[-1]} tokens, but the model's context is {size}; choose a shorter context."


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:199] + "…"


def not_finite(module: nn.Module, run: Callable[[], Tensor], inputs: Tensor, part: slice) -> ObjectiveError:
    """Say of which examples the loss is not finite, and which layer is the first with such values."""
    layer = first_bad_layer(module, run)
    if not bool(torch.isfinite(inputs).all()):
        where = "the examples themselves hold values that are not finite"
    else:
        where = f"the first layer with such values is {layer}" if layer else "it arises in the loss itself"
    return ObjectiveError(
        f"The loss of examples {part.start} to {part.stop - 1} is not finite: {where}. "
        "Check the checkpoint (diverged?) and the normalisation of the data."
    )


def gradients(share: Tensor, theta: list[Tensor]) -> list[Tensor]:
    """Differentiate a share of the loss by theta; zeros where it does not depend on a parameter."""
    if not share.requires_grad:
        raise CurvatureError("The loss does not depend on any parameter: the model cuts the gradient (detach?).")
    return list(torch.autograd.grad(share, theta, allow_unused=True, materialize_grads=True))
