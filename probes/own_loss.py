"""Losses that take the model and a whole batch, as functions of parameters that are passed in.

One is what the operator brings, `loss(model, batch)`; the other is that of pairs of image and caption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from probes.clip import as_captions, is_scorer
from probes.errors import ObjectiveError
from probes.fitting import Fit
from probes.losses import Tally
from probes.specs import LossName, ModelSpec
from probes.strict import strict

Batch = tuple[Tensor, Tensor]
_TOLERANCE = 1e-3  # relative; float32, and other kernels for one example than for two


class _Joined(nn.Module):
    """The model with its loss behind it, so that the loss sees the parameters that are passed in."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Batch], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._function = function

    def forward(self, *batch: Tensor) -> Any:
        """Return the mean loss of a batch (inputs, targets)."""
        return self._function(self.model, (batch[0], batch[1]))


@dataclass(frozen=True, eq=False)
class OwnLoss:
    """The operator's loss; function: (model, (inputs, targets)) -> the mean over these examples, a scalar."""

    function: Callable[[nn.Module, Batch], Tensor]

    def total(self, model: nn.Module, values: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the sum of the losses of a batch's examples; values: parameters and buffers by name."""
        named = {f"model.{name}": value for name, value in values.items()}
        mean = functional_call(_Joined(model, self.function), named, batch)
        if not isinstance(mean, Tensor) or mean.numel() != 1 or not mean.is_floating_point():
            found = f"a tensor of shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else f"a {type(mean).__name__}"
            raise ObjectiveError(
                f"The operator's loss(model, batch) returns {found}; it must return the mean, one number."
            )
        return mean.reshape(()) * len(batch[0])

    def tally(self, model: nn.Module, values: Mapping[str, Tensor], batch: Batch) -> Tally:
        """Return the loss of each example, by giving them to the loss one at a time."""
        rows = range(len(batch[0]))
        each = [self.total(model, values, (batch[0][row : row + 1], batch[1][row : row + 1])) for row in rows]
        losses = torch.stack(each).double()
        return Tally(torch.ones_like(losses, dtype=torch.int64), losses, None)

    def fit(self, model: nn.Module, values: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> Fit:
        """Check on two examples that the loss is a mean over them; it does not depend on the micro-batch only then."""
        batch = (inputs[:2], targets[:2])
        with torch.no_grad(), strict(model):
            together = float(self.total(model, values, batch)) / len(batch[0])
            apart = float(self.tally(model, values, batch).losses.mean())
        if abs(together - apart) > _TOLERANCE * max(abs(together), abs(apart), 1e-6):
            raise ObjectiveError(
                f"The operator's loss(model, batch) is {together:.6g} for two examples, but {apart:.6g} on average for "
                "each alone; it must return the mean over the examples of the batch, each with the same weight."
            )
        return Fit(inputs, targets, ())


def _distance(model: nn.Module, batch: Batch) -> Tensor:
    cosines: Tensor = 1 - model(*batch)
    return cosines.mean()


@dataclass(frozen=True, eq=False)
class PairLoss(OwnLoss):
    """1 - the cosine of an image (inputs) and its caption (targets: token ids); each pair on its own.

    CLIP is trained by setting the pairs of a batch against one another; such a loss depends on who shares the batch.
    """

    function: Callable[[nn.Module, Batch], Tensor] = _distance

    def tally(self, model: nn.Module, values: Mapping[str, Tensor], batch: Batch) -> Tally:
        """Return the loss of each pair."""
        losses = 1 - functional_call(model, dict(values), batch).double()
        return Tally(torch.ones_like(losses, dtype=torch.int64), losses, None)

    def fit(self, model: nn.Module, values: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> Fit:
        """Check that these are pairs and that the model takes them; raises ObjectiveError or DataError."""
        if not is_scorer(model):
            raise ObjectiveError(
                f"This loss needs a CLIP model, which has a tower for images and one for captions; the model is a "
                f"{type(model).__name__}. Choose another loss, or bring the Hugging Face folder of a CLIP model."
            )
        captions = as_captions(model, inputs, targets)
        with torch.no_grad(), strict(model):
            self.tally(model, values, (inputs[:2], captions[:2]))
        return Fit(inputs, captions, ())


def built_in(loss: LossName) -> OwnLoss | None:
    """Return the loss of this name that takes the model itself; None for those that take its outputs."""
    return PairLoss() if loss == "caption_distance" else None


def own_loss_of(spec: ModelSpec) -> OwnLoss:
    """Return the loss in the operator's file that a model comes from; raise ObjectiveError for other models."""
    if spec.source != "operator":
        raise ObjectiveError("The operator's own loss goes with a model from the operator's file; choose another loss.")
    from probes.operator_models import operator_loss

    return OwnLoss(operator_loss(spec.name))
