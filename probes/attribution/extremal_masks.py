"""Masks of a given area: smooth ones on a lattice, free ones over channels; and what they leave of an image.

From the formulas of Fong, Patrick and Vedaldi, "Understanding deep networks via extremal perturbations and smooth
masks", ICCV 2019: m(u) is the smooth maximum over lattice points i of k(|u - u_i| / sigma) m_i. Lengths are in steps
of the lattice, of which 32 make the shorter side of the image, so that masks of 28 and of 224 pixels look alike; the
mask is evaluated once a step and enlarged. Areas are means of the mask that is shown, not of the lattice beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from probes.attribution.baselines import blur

STEPS = 32  # of the lattice, along the shorter side
SMOOTHNESS = 3.0  # sigma, in steps
SHARPNESS = 20.0  # of the smooth maximum
CUT = 2.0  # in sigmas: beyond it the kernel is under 0.012
LEVELS = 8  # of the pyramid
BLUR = 20 / 224  # sigma of the strongest blur, as a share of the shorter side
_HALVINGS = 30


class Canvas(Protocol):
    """What masks are made of: free numbers in [0, 1], a lattice, that give the mask that is shown."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one lattice."""

    def shown(self, lattice: Tensor) -> Tensor:
        """Return the masks (A, ...) of lattices (A, *shape)."""


@dataclass(frozen=True)
class Smooth:
    """Smooth masks (A, H, W) of an image; smoothness is sigma in steps of the lattice."""

    height: int
    width: int
    smoothness: float = SMOOTHNESS

    @property
    def step(self) -> int:
        """Pixels a step."""
        return max(1, round(min(self.height, self.width) / STEPS))

    @property
    def margin(self) -> int:
        """Points of the lattice beyond each edge, so that masks may end there."""
        return math.ceil(self.smoothness)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the lattice, margins included."""
        cells = -(-self.height // self.step), -(-self.width // self.step)
        return cells[0] + 2 * self.margin, cells[1] + 2 * self.margin

    @cached_property
    def kernel(self) -> tuple[int, Tensor, Tensor]:
        """The kernel's reach in steps, its values (K,), and which of the (2 reach + 1)^2 neighbours they belong to."""
        reach = math.ceil(CUT * self.smoothness)
        at = torch.arange(-reach, reach + 1, dtype=torch.float64)
        distance = torch.hypot(at[:, None], at[None]).flatten() / self.smoothness
        near = distance <= CUT
        return reach, torch.exp(-2 * (distance[near] - 0.5).clamp(min=0) ** 2), near

    def shown(self, lattice: Tensor) -> Tensor:
        """Return the masks (A, H, W) of lattices (A, h, w)."""
        (reach, kernel, near), (tall, wide), margin = self.kernel, self.shape, self.margin
        around = functional.unfold(functional.pad(lattice[:, None], (reach,) * 4), 2 * reach + 1)
        terms = around[:, near.to(lattice.device)] * kernel.to(lattice)[:, None]
        mask = (terms * torch.softmax(SHARPNESS * terms, 1)).sum(1).view(-1, tall, wide)
        mask = mask[:, None, margin : tall - margin, margin : wide - margin]
        if mask.shape[2:] != (self.height, self.width):
            mask = functional.interpolate(mask, (self.height, self.width), mode="bilinear", align_corners=False)
        return mask[:, 0]

    @property
    def spot(self) -> float:
        """The area of the smallest full spot, of one point of the lattice, as a share of the image."""
        lattice = torch.zeros(1, *self.shape)
        lattice[0, self.shape[0] // 2, self.shape[1] // 2] = 1
        return float(self.shown(lattice).mean())


@dataclass(frozen=True)
class Channels:
    """Masks (A, K) over the channels of a layer, each free."""

    count: int

    @property
    def shape(self) -> tuple[int]:
        """One number for each channel."""
        return (self.count,)

    def shown(self, lattice: Tensor) -> Tensor:
        """Return the numbers themselves."""
        return lattice


def areas_of(masks: Tensor) -> Tensor:
    """Return the area of each mask: its mean, (A,)."""
    return masks.flatten(1).mean(1)


def with_areas(canvas: Canvas, lattice: Tensor, areas: Sequence[float]) -> Tensor:
    """Return the lattices, each moved up or down by one number (within [0, 1]) so that its mask has the area asked."""
    wanted = torch.tensor(areas, dtype=lattice.dtype, device=lattice.device)
    low, high = -torch.ones_like(wanted), torch.ones_like(wanted)
    by = (-1, *[1] * (lattice.ndim - 1))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        large = areas_of(canvas.shown((lattice + middle.view(by)).clamp(0, 1))) > wanted
        low, high = torch.where(large, low, middle), torch.where(large, middle, high)
    return (lattice + ((low + high) / 2).view(by)).clamp(0, 1)


def pyramid(image: Tensor, sigma: float) -> Tensor:
    """Return an image (1, C, H, W) blurred by sigma, then less and less, at last not at all, (8, C, H, W)."""
    sizes = [sigma * (1 - level / (LEVELS - 1)) for level in range(LEVELS - 1)]
    return torch.cat([*(blur(image, size) for size in sizes), image])


def blended(levels: Tensor, masks: Tensor) -> Tensor:
    """Return the image that masks (A, H, W) leave, (A, C, H, W): the last level where 1, the first where 0.

    levels: (L, C, H, W); between them linear.
    """
    at = masks * (len(levels) - 1)
    lower = at.detach().floor().clamp(0, len(levels) - 2)
    index = lower.long()[:, None].expand(-1, levels.shape[1], -1, -1)
    below, above = torch.gather(levels, 0, index), torch.gather(levels, 0, index + 1)
    return below + (above - below) * (at - lower)[:, None]
