"""Which patches of an image speak for its caption? Integrated gradients of CLIP's cosine by the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probes.attribution.clip import run
from probes.attribution.integration import nodes_of
from probes.clip import embedded_captions, embedded_images
from probes.objective import Objective
from probes.strict import strict

Array = np.ndarray[Any, Any]
MOST_STEPS = 512
CHUNK = 32


@dataclass(frozen=True)
class Patches:
    """What each patch adds to the cosine, (rows, columns); they add up to cosine - baseline, save for `error`.

    error: |sum - difference| / |difference|. steps: gradients that were taken.
    """

    values: Array
    cosine: float
    baseline: float
    error: float
    steps: int


def patches(objective: Objective, row: int, tolerance: float = 1e-2, steps: int = 16) -> Patches:
    """Integrate from the mean colour of all images to an image; the steps are doubled until the error is small."""
    image = objective.inputs[row : row + 1].to(objective.device)
    mean = objective.inputs.double().mean((0, 2, 3)).to(image)
    start = mean[None, :, None, None].expand_as(image)
    with torch.no_grad(), strict(objective.module):
        caption = run(objective, embedded_captions, objective.targets[row : row + 1].to(objective.device))
        ends = [float((run(objective, embedded_images, each) * caption).sum()) for each in (start, image)]
    while True:
        found = _integral(objective, start, image, caption, steps)
        difference = ends[1] - ends[0]
        error = abs(float(found.sum()) - difference) / abs(difference) if difference else float(found.sum() != 0)
        if error <= tolerance or 2 * steps > MOST_STEPS:
            size = int(objective.module.config.vision_config.patch_size)  # type: ignore[union-attr, arg-type]
            return Patches(_pooled(found, size), ends[1], ends[0], error, steps)
        steps *= 2


def _integral(objective: Objective, start: Tensor, image: Tensor, caption: Tensor, steps: int) -> Tensor:
    """Return the integral by each pixel, summed over channels, (H, W) float64."""
    alphas, weights = nodes_of(steps)
    total = torch.zeros(image.shape[2:], dtype=torch.float64, device=image.device)
    chunk = min(CHUNK, objective.micro_batch)
    for some, shares in zip(alphas.split(chunk), weights.split(chunk), strict=True):
        place = some.to(image)[:, None, None, None]
        points = (start + place * (image - start)).requires_grad_()
        with strict(objective.module), torch.enable_grad():
            cosine = (run(objective, embedded_images, points) * caption).sum()
            (slopes,) = torch.autograd.grad(cosine, points)
        weighed = slopes.double() * shares.to(image.device)[:, None, None, None]
        total += (weighed.sum(0) * (image - start)[0]).sum(0)
    return total


def _pooled(values: Tensor, size: int) -> Array:
    """Add up the pixels of each patch; what lies behind the last whole patch, which the model does not see, is 0."""
    rows, columns = (each // size for each in values.shape)
    cut = values[: rows * size, : columns * size]
    return cut.reshape(rows, size, columns, size).sum((1, 3)).cpu().numpy()  # type: ignore[no-any-return]
