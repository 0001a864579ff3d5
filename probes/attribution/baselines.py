"""What "nothing there" looks like: the references that an attribution compares the example with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from probes.attribution.embedding import embed
from probes.attribution.errors import AttributionError
from probes.attribution.tokens import special_id
from probes.strict import strict

if TYPE_CHECKING:
    from probes.attribution.case import Case

NAMES = ("zero", "mean", "blur", "random", "data", "pad", "mask", "mean embedding")
_SEEN = 512  # examples that means and ranges are taken over
_ROWS = 8192  # of the vocabulary at once


def default_baseline(case: Case) -> str:
    """Return the reference that suits the model: of a decoder the mean embedding, never zero."""
    if case.kind == "image":
        return "zero"
    if case.kind == "table":
        return "mean"
    if case.kind == "language_model" or has_rms_norm(case):
        return "mean embedding"
    return "pad" if token_id(case, "pad") is not None else "mean embedding"


def baselines(case: Case, name: str, *, count: int = 1, seed: int = 0) -> Tensor:
    """Return references shaped like the features, (count, ...); only "random" and "data" give several.

    zero; mean: of the data (of each channel of images; of text the mean embedding); blur: the image without detail;
    random: uniform over the range of the data, of text random tokens; data: other examples; pad, mask: this token in
    place of all but the special ones. "auto" is `default_baseline`. Raises AttributionError.
    """
    name = default_baseline(case) if name == "auto" else name
    makers: dict[str, Callable[[Case, int, torch.Generator], Tensor]] = {
        "zero": lambda case, *_: torch.zeros_like(case.features),
        "mean": lambda case, *_: _mean(case),
        "blur": lambda case, *_: _blurred(case),
        "random": _random,
        "data": _others,
        "pad": lambda case, *_: _tokens(case, "pad"),
        "mask": lambda case, *_: _tokens(case, "mask"),
        "mean embedding": lambda case, *_: _mean_embedding(case),
    }
    if name not in makers:
        raise AttributionError(f"There is no baseline {name!r}; choose one of {', '.join(NAMES)}.")
    with torch.no_grad(), strict(case.module):
        return makers[name](case, count, torch.Generator().manual_seed(seed)).to(case.features)


def fitting_baselines(case: Case) -> tuple[str, ...]:
    """Return the names of the baselines that this case can have."""
    if case.kind in ("image", "table"):
        return (
            ("zero", "mean", "blur", "random", "data") if case.kind == "image" else ("zero", "mean", "random", "data")
        )
    known = [role for role in ("pad", "mask") if token_id(case, role) is not None]
    return ("zero", "mean embedding", "random", "data", *known)


def token_id(case: Case, role: str) -> int | None:
    """Return the id of a special token ("pad", "mask", …) of a case of text; None where it is not known."""
    return special_id(case.module, case.objective.batches, role, _vocabulary(case))


def has_rms_norm(case: Case) -> bool:
    """Tell whether the model normalises by the root mean square, so that zero vectors are a singular reference."""
    from probes.architecture.llama import Scale

    return any(isinstance(each, Scale) or "rmsnorm" in type(each).__name__.lower() for each in case.module.modules())


def _vocabulary(case: Case) -> int:
    return int(case.module.get_submodule(case.embedding).weight.shape[0])  # type: ignore[index, arg-type]


def _mean(case: Case) -> Tensor:
    if case.embedding:
        return _mean_embedding(case)
    seen = case.objective.inputs[:_SEEN].to(case.features)
    if case.kind == "image":
        return seen.mean((0, 2, 3))[None, :, None, None].expand_as(case.features).clone()
    return seen.mean(0, keepdim=True)


def _blurred(case: Case) -> Tensor:
    """Blur by a Gaussian of a tenth of the longer side, edges reflected."""
    if case.kind != "image":
        raise AttributionError("Only images can be blurred; choose the baseline mean.")
    return blur(case.features, max(case.features.shape[2:]) / 10)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur images (B, C, H, W) by a Gaussian; beyond the edge the nearest pixel goes on."""
    for size, dim in ((images.shape[2], 2), (images.shape[3], 3)):
        reach = min(math.ceil(3 * sigma), max(size - 1, 1))
        at = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
        weights = torch.exp(-0.5 * (at / sigma) ** 2)
        kernel = (weights / weights.sum()).view(1, 1, *((-1, 1) if dim == 2 else (1, -1)))
        pad = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
        wide = functional.pad(images, pad, mode="replicate")
        channels = images.shape[1]
        images = functional.conv2d(wide, kernel.expand(channels, 1, *kernel.shape[2:]), groups=channels)
    return images


def _random(case: Case, count: int, generator: torch.Generator) -> Tensor:
    shape = (count, *case.features.shape[1:])
    if case.embedding:
        ids = torch.randint(_vocabulary(case), (count, case.raw.shape[1]), generator=generator)
        return embed(case, ids)
    seen = case.objective.inputs[:_SEEN].to(case.features)
    axes = (0, 2, 3) if case.kind == "image" else (0,)
    low, high = seen.amin(axes, keepdim=True), seen.amax(axes, keepdim=True)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64).to(seen)


def _others(case: Case, count: int, generator: torch.Generator) -> Tensor:
    inputs = case.objective.inputs
    if len(inputs) < 2:
        raise AttributionError("The baseline data needs other examples, but there is only one; choose zero or mean.")
    order = torch.randperm(len(inputs) - 1, generator=generator)[:count]
    rows = (order + (order >= case.row)).to(inputs.device)
    if case.embedding:
        return embed(case, inputs[rows][:, : case.raw.shape[1]])
    return inputs[rows]


def _tokens(case: Case, role: str) -> Tensor:
    if not case.embedding:
        raise AttributionError(f"The baseline {role} is for text; choose zero or mean.")
    found = token_id(case, role)
    if found is None:
        raise AttributionError(f"The {role} token of this model is not known; choose the baseline mean embedding.")
    kept = torch.tensor(case.special, device=case.raw.device)[None]
    return embed(case, torch.where(kept, case.raw, torch.full_like(case.raw, found)))


def _mean_embedding(case: Case) -> Tensor:
    if not case.embedding:
        raise AttributionError("The baseline mean embedding is for text; choose mean.")
    return case.once("mean embedding", lambda: _mean_vector(case)).expand_as(case.features).clone()


def _mean_vector(case: Case) -> Tensor:
    """Return the mean over the vocabulary, as the embedding layer gives it, summed in float64; (1, 1, D)."""
    size = _vocabulary(case)
    parts = torch.arange(size).split(_ROWS)
    total = sum(embed(case, part[None]).double().sum((0, 1)) for part in parts) / size
    return torch.as_tensor(total).to(case.features)[None, None]
