"""Gradient-weight alignment of every example at one checkpoint: in the head, in the whole network, in each layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probes.errors import ModelError, ObjectiveError
from probes.head import Head, find_head
from probes.head_alignment import align, class_of
from probes.losses import Evaluation
from probes.objective import Objective
from probes.per_sample import PerExample, per_example

Floats = NDArray[np.float64]
Report = Callable[[float, str], None]
HEAD_SHARE = 0.2  # of the time, where the whole network is looked at too


@dataclass(frozen=True)
class Flip:
    """Labels of which a share stands for another class: targets like the objective's, and which were changed, (N,)."""

    targets: Tensor
    flipped: NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """What to look at in each checkpoint. head: None where there is none, `missing` says why. network: all layers."""

    head: Head | None
    missing: str
    network: bool
    layers: bool
    flip: Flip | None

    @property
    def scope(self) -> str:
        """Return what the main figures are of: "head" or "network"."""
        return "network" if self.head is None else "head"


def plan(objective: Objective, scope: str, flip: float, seed: int) -> Plan:
    """Find the head and draw the labels to flip.

    scope: "head", "network" or "layers"; the latter two do without a head where there is none. Raises ModelError or
    ObjectiveError (no head, no labels to flip).
    """
    head, missing = None, ""
    try:
        head = find_head(objective)
    except (ModelError, ObjectiveError) as error:
        if scope == "head":
            raise
        missing = str(error)
    drawn = relabelled(objective, flip, seed) if flip > 0 else None
    return Plan(head, missing, scope != "head", scope == "layers", drawn)


def look(objective: Objective, asked: Plan, tick: Report) -> tuple[dict[str, Floats], tuple[str, ...]]:
    """Return arrays by name, and doubts.

    (N,): the fields of `Aligned`, and "network" where it is asked for. "alignment" and "exact" are of the head, or both
    of the whole network where there is no head; "flipped_rounded" and "flipped" the same with the labels of
    `asked.flip`. (L, 2): "layers", the mean in each of `kernels` with its standard error. (4,): "evaluation", loss and
    accuracy with theirs. Raises ObjectiveError.
    """
    by_head = asked.flip is not None and asked.head is not None
    sets = (objective.targets, asked.flip.targets) if asked.flip is not None and by_head else (objective.targets,)
    share = HEAD_SHARE if asked.network else 1.0
    own, *others = align(objective, asked.head, sets, lambda part, doing: tick(share * part, doing))
    _check(objective, own.losses[own.counts > 0])
    found, doubts = {**vars(own), "evaluation": _figures(own.evaluation(objective))}, tuple[str, ...]()
    if others:
        found |= {"flipped_rounded": others[0].alignment, "flipped": others[0].exact}
    if asked.network:
        length = (1 - share) / (2 if asked.flip is not None and not by_head else 1)
        whole = per_example(objective, lambda part, doing: tick(share + length * part, doing))
        found["network"], doubts = np.where(own.counts > 0, whole.cosines(), np.nan), whole.doubts
        if asked.layers:
            found["layers"] = _means(whole, kernels(objective), own.counts)
    if asked.head is None:
        found["alignment"] = found["exact"] = found["network"]
        if asked.flip is not None:
            other = copy.copy(objective)
            other.targets = asked.flip.targets
            whole = per_example(other, lambda part, doing: tick(1 - length * (1 - part), doing))
            found["flipped"] = found["flipped_rounded"] = whole.cosines()
    return found, doubts


def kernels(objective: Objective) -> tuple[str, ...]:
    """Name the parameters that "layers" are of: those of two dimensions or more, in the order of the objective."""
    return tuple(name for name, each in zip(objective.names, objective.theta, strict=True) if each.ndim > 1)


def norms_in(module: nn.Module) -> tuple[str, ...]:
    """Name the kinds of normalisation layers in a model."""
    return tuple(sorted({type(each).__name__ for each in module.modules() if "norm" in type(each).__name__.lower()}))


def labels_of(objective: Objective) -> Floats:
    """Return the class, or the value, of each example, (N,); NaN where it has not one."""
    if objective.own is not None or objective.loss == "causal_lm":
        return np.full(len(objective.inputs), np.nan)
    return class_of(objective.targets).cpu().numpy()  # type: ignore[no-any-return]


def relabelled(objective: Objective, share: float, seed: int) -> Flip:
    """Give a share of the examples (one at least, not all) another of the classes that the examples have.

    Raises ObjectiveError where an example has no class, or all have the same.
    """
    labels, targets = labels_of(objective), objective.targets
    width = targets[0].numel()
    if not (labels == np.rint(labels)).all() or (objective.loss == "mse" and width == 1):
        raise ObjectiveError("A flip test needs a class for each example, which these targets do not give. Set flip=0.")
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ObjectiveError(f"All {len(labels)} examples are of one class: there is none to flip to. Set flip=0.")
    rng = np.random.default_rng([seed, 1])
    count = int(np.clip(round(share * len(labels)), 1, len(labels) - 1))
    rows = np.sort(rng.choice(len(labels), count, replace=False))
    places = np.searchsorted(classes, labels[rows]) + rng.integers(1, len(classes), count)
    new = torch.tensor(classes[places % len(classes)], device=targets.device)[:, None]
    if width > 1:  # one-hot
        new = torch.zeros(count, width, dtype=new.dtype, device=targets.device).scatter(1, new.long(), 1.0)
    changed = targets.clone()
    changed[torch.tensor(rows, device=targets.device)] = new.to(targets.dtype).reshape(count, *targets.shape[1:])
    return Flip(changed, np.isin(np.arange(len(labels)), rows))


def _check(objective: Objective, losses: Floats) -> None:
    """Raise ObjectiveError where a loss is not finite, naming the layer that the trouble comes from."""
    if not np.isfinite(losses).all():
        objective.evaluate()
        raise ObjectiveError("The loss of an example is not finite. Check the checkpoint (diverged?) and the data.")


def _figures(found: Evaluation) -> Floats:
    figures = (found.loss, found.loss_stderr, found.accuracy, found.accuracy_stderr)
    return np.array([np.nan if each is None else each for each in figures])


def _means(whole: PerExample, names: tuple[str, ...], counts: Floats) -> Floats:
    """Return mean and standard error of the alignment in each of these parameters, (L, 2)."""
    each = [whole.cosines([name])[counts > 0] for name in names]
    return np.array([(one.mean(), one.std(ddof=1) / np.sqrt(len(one)) if len(one) > 1 else 0.0) for one in each])
