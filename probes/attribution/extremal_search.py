"""The search for extremal masks: gradient ascent on the score with a term that pulls each mask to its area.

As in the paper the mask's sorted values are pulled to a step from 0 to 1 at the asked area, ever harder. Two things
differ: the score is measured as a share of what blotting out everything takes away, so that one schedule fits every
model, and the lattice is finally moved so that the area shown is the area asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from probes.attribution.extremal_masks import Canvas, with_areas

Game = Literal["preserve", "delete", "dual"]
Play = Callable[[Tensor], tuple[Tensor, Tensor]]  # masks (A, ...) -> scores (A,), their gradients by the masks
GAMES: tuple[Game, ...] = ("preserve", "delete", "dual")
ITERATIONS = 120
MOMENTUM = 0.9
PULL = 0.5, 20.0  # weight of the area's term, at the first and the last step
TIE = 0.01  # values of a mask that are closer may be put in the order of their use
PACE = 8.0  # length of all steps together, for a gradient of one over the number of values
SECONDS_BETWEEN_SAVES = 2.0


@dataclass(frozen=True)
class Search:
    """What is searched. scale: of the score, see above. key: of what is kept of an interrupted search, "" for none."""

    areas: tuple[float, ...]
    game: Game
    scale: float
    iterations: int = 0  # 0: ITERATIONS
    flips: bool = False
    key: str = ""


def extremal(canvas: Canvas, play: Play, search: Search, like: Tensor, tick: Any) -> Tensor:
    """Return the lattices (A, ...) whose masks have the asked areas and the best scores found.

    like: a tensor of the dtype and device to work in. tick: reports, may raise to cancel; where it can save, an
    interrupted search goes on from there.
    """
    search = replace(search, iterations=search.iterations or ITERATIONS)
    start = torch.ones(len(search.areas), *canvas.shape, dtype=like.dtype, device=like.device)
    lattice, speed, done = _resumed(tick, search.key, start)
    saved = time.monotonic()
    while done < search.iterations:
        slope = _slope(canvas, play, search, lattice, done)
        speed = MOMENTUM * speed + (1 - MOMENTUM) * slope
        lattice, done = (lattice + PACE / search.iterations * speed).clamp(0, 1), done + 1
        if search.key and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
            _keep(tick, search.key, lattice, speed, done)
            saved = time.monotonic()
        tick(done / search.iterations, f"extremal masks: step {done} of {search.iterations}")
    return with_areas(canvas, lattice, search.areas)


def _slope(canvas: Canvas, play: Play, search: Search, lattice: Tensor, step: int) -> Tensor:
    """Return the gradient by the lattice of score less area term, for one value of the mask."""
    with torch.enable_grad():
        lattice = lattice.detach().requires_grad_()
        masks = canvas.shown(lattice)
        flip = search.flips and step % 2 == 0
        push = _reward(play, masks.detach().flip(-1) if flip else masks.detach(), search.game) / search.scale
        push = push.flip(-1) if flip else push
        weight = PULL[0] * (PULL[1] / PULL[0]) ** (step / max(search.iterations - 1, 1))
        term = weight * _misfit(masks, search.areas, push).sum()
        (pull,) = torch.autograd.grad(term, masks, retain_graph=True)
        (found,) = torch.autograd.grad(masks, lattice, push - pull)
    return found * masks[0].numel()


def _misfit(masks: Tensor, areas: Sequence[float], use: Tensor) -> Tensor:
    """Return the mean squared distance of each mask's sorted values from a step at its area, (A,).

    use: the gradient of the reward, in whose order values are put that are nearly equal, as all are at first and those
    at 1 are later: in the order of their places the mask would end where its last pixels are.
    """
    values, use = masks.flatten(1), use.flatten(1)
    size = use.abs().amax(1, keepdim=True).clamp(min=torch.finfo(use.dtype).tiny)
    values = values.gather(1, (values.detach() + TIE * use / size).argsort(1))
    rank = (torch.arange(values.shape[1], dtype=values.dtype, device=values.device) + 0.5) / values.shape[1]
    step = rank > 1 - torch.tensor(areas, dtype=values.dtype, device=values.device)[:, None]
    return ((values - step.to(values)) ** 2).mean(1)


def _reward(play: Play, masks: Tensor, game: Game) -> Tensor:
    """Return the gradient of the game's reward by the masks."""
    if game == "preserve":
        return play(masks)[1]
    if game == "delete":
        return play(1 - masks)[1]  # - f(1 - m), whose gradient by m is + f'
    return (play(masks)[1] + play(1 - masks)[1]) / 2


def _resumed(tick: Any, key: str, start: Tensor) -> tuple[Tensor, Tensor, int]:
    load = getattr(tick, "load", None)
    kept: Mapping[str, Any] | None = load(key) if key and load is not None else None
    if kept is None or np.shape(kept["lattice"]) != tuple(start.shape):
        return start, torch.zeros_like(start), 0
    found = [torch.from_numpy(np.array(kept[name])).to(start) for name in ("lattice", "speed")]
    return found[0], found[1], int(kept["done"][0])


def _keep(tick: Any, key: str, lattice: Tensor, speed: Tensor, done: int) -> None:
    save = getattr(tick, "save", None)
    if save is not None:
        save(key, {"lattice": lattice.cpu().numpy(), "speed": speed.cpu().numpy(), "done": np.array([done])})
