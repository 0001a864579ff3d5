"""What a result about gradient-weight alignment holds: values, arrays, the examples to check, and caveats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analyzers._alignment_statistics import Moments, auroc, best_of, moments
from analyzers._base import Arrays
from analyzers._examples import class_name, number

if TYPE_CHECKING:
    from probes.alignment import Flip, Plan
    from probes.objective import Objective
    from probes.series import Series

OUTLIERS = 3.0  # excess kurtosis above which a few examples decide over GWA
FEW = 100  # examples, for a kurtosis
VISIBLE = 0.1  # of the spread over the examples: a change of one of them
FIT_DEPENDENT = (
    "Fit-dependent: alignment is meant for the examples that the run was trained on; on others GWA may fall while the "
    "accuracy still rises. The published GWA is also taken while the weights move, over a whole epoch; this one is of "
    "each checkpoint as it stands."
)


@dataclass(frozen=True)
class Seen:
    """All that was found. looks: of each checkpoint, in the order of time, the arrays of `probes.alignment.look`."""

    objective: Objective
    plan: Plan
    series: Series
    names: tuple[str, ...]
    looks: Sequence[Arrays]
    seed: int

    @cached_property
    def moments(self) -> list[Moments]:
        """Return those of the alignment at each checkpoint."""
        return [moments(each["alignment"], self.seed) for each in self.looks]

    @cached_property
    def exact(self) -> list[Moments]:
        """Return those without the rounding of the derivative; empty where all is of the whole network."""
        return [moments(each["exact"], self.seed) for each in self.looks if self.plan.head is not None]

    @cached_property
    def rounded(self) -> list[int]:
        """Count, at each checkpoint, the examples of which rounding moves the alignment visibly."""
        pairs = [(each["alignment"], each["exact"]) for each in self.looks]
        return [int((np.abs(one - exact) > VISIBLE * np.nanstd(exact)).sum()) for one, exact in pairs]

    @cached_property
    def network(self) -> list[Moments]:
        """Return those of the alignment of the whole network; empty where it was not asked for."""
        return [moments(each["network"], self.seed) for each in self.looks if "network" in each]


def values_of(seen: Seen) -> dict[str, Any]:
    """Return the values of the result but for the examples: lists by checkpoint, None where a number does not exist."""
    series, plan = seen.series, seen.plan
    best, note = best_of(seen.moments, series.times, series.labels)
    figures = np.array([each["evaluation"] for each in seen.looks])
    keys = ("loss", "loss_stderr", "accuracy", "accuracy_stderr")
    head = None if plan.head is None else {"name": plan.head.name, "kind": plan.head.kind, "tied": [*plan.head.shared]}
    return {
        "checkpoints": list(seen.names),
        "times": list(series.times),
        "unit": series.unit,
        "labels": list(series.labels),
        "scope": plan.scope,
        "head": head,
        "examples_seen": seen.moments[-1].n,
        **_by_checkpoint(seen.moments, ""),
        **_by_checkpoint(seen.exact, "exact_"),
        "rounded": seen.rounded,
        **{key: [number(each) for each in column] for key, column in zip(keys, figures.T, strict=True)},
        "best": None if best is None else {**best, "checkpoint": seen.names[best["index"]]},
        "best_note": note,
        "examples_title": f"Examples to check: those of the most negative alignment at {series.labels[-1]}",
        **_by_checkpoint(seen.network, "network_"),
        **(_layers(seen) if plan.layers else {}),
        **(_flip(seen, plan.flip) if plan.flip is not None else {}),
    }


def arrays_of(seen: Seen) -> dict[str, NDArray[Any]]:
    """Return (checkpoints, examples) of what `look` gives, and flipped_rows (N,) where labels were flipped."""
    wanted = ("alignment", "exact", "right", "network", "flipped", "flipped_rounded")
    keys = [key for key in wanted if key in seen.looks[0]]
    found: dict[str, NDArray[Any]] = {key: np.array([each[key] for each in seen.looks]) for key in keys}
    if seen.plan.flip is not None:
        found["flipped_rows"] = seen.plan.flip.flipped
    return found


def card_of(seen: Seen) -> dict[str, Any]:
    """Return the card: of all checkpoints, not of the one that the objective is at."""
    card = seen.objective.card() | {"seed": seen.seed}
    if len(seen.names) > 1:
        card["checkpoint"] = {"name": f"{len(seen.names)} checkpoints, {seen.names[0]} to {seen.names[-1]}"}
    return card


def examples_of(seen: Seen, count: int) -> tuple[list[dict[str, Any]], NDArray[np.uint8] | None]:
    """Return the examples of the most negative alignment, without rounding, at the last checkpoint, and their pictures.

    The pictures are (K, H, W, 3), or None when the examples are no images.
    """
    from probes.alignment import labels_of
    from probes.pictures import pictures_of, texts_of

    objective, last = seen.objective, seen.looks[-1]
    known = np.flatnonzero(np.isfinite(last["exact"]))
    rows = known[np.argsort(last["exact"][known], kind="stable")][:count].tolist()
    if not rows:
        return [], None
    labels, classes = labels_of(objective), objective.batches.classes
    texts: Sequence[str | None] = texts_of(objective.batches, rows) or [None] * len(rows)
    found = [
        {
            "id": objective.batches.ids[row],
            "checkpoint": seen.names[-1],
            "label": class_name(labels[row], classes),
            "prediction": class_name(last["predicted"][row], classes),
            "loss": number(last["losses"][row]),
            "margin": number(last["margins"][row]),
            "alignment": number(last["exact"][row]),
            **({"network_alignment": number(last["network"][row])} if "network" in last else {}),
            "text": text,
        }
        for row, text in zip(rows, texts, strict=True)
    ]
    return found, pictures_of(objective.batches, rows)


def caveats_of(seen: Seen) -> list[str]:
    """Return what a reader must bear in mind."""
    labels, plan = seen.series.labels, seen.plan
    at = lambda which: ", ".join(label for label, each in zip(labels, which, strict=True) if each)
    undefined = [each.gwa is not None and each.undefined for each in seen.moments]
    heavy = [each.kurtosis is not None and each.kurtosis > OUTLIERS for each in seen.moments]
    still = [each.n > 0 and each.kurtosis is None for each in seen.moments]
    said = [FIT_DEPENDENT, *_of_rounding(seen)]
    if any(undefined):
        said.append(
            f"GWA is undefined at {at(undefined)}: the excess kurtosis is below -0.7, and GWA has a pole at -1.2. "
            "Look at mean and kurtosis."
        )
    if any(heavy):
        said.append(f"A few outliers make GWA small at {at(heavy)}: the excess kurtosis is above {OUTLIERS:g}.")
    if any(still):
        said.append(f"All examples have the same alignment at {at(still)}, as with weights of zero: there is no GWA.")
    if seen.moments[-1].n < FEW:
        said.append(f"{seen.moments[-1].n} examples tell little about a kurtosis, and so about GWA.")
    zeros = int(max(each["zeros"].sum() for each in seen.looks))
    if zeros and plan.head is not None and not all(still):
        said.append(f"Up to {zeros:,} gradients are zero at a checkpoint (their layer's input is); they count as 0.")
    return [*said, *_of_model(seen), *_of_flip(plan.flip)]


def _of_rounding(seen: Seen) -> list[str]:
    most = max(range(len(seen.rounded)), key=lambda index: seen.rounded[index])
    if not seen.rounded[most] or not seen.exact:
        return []
    one, exact = (
        f"{each.gwa:.3g}" if each.gwa is not None else "none" for each in (seen.moments[most], seen.exact[most])
    )
    dtype = seen.objective.card()["dtype"]
    return [
        f"Rounding: gwa, mean and excess_kurtosis are of the gradient in {dtype}, as published, in which softmax minus "
        "one leaves nothing but rounding of predictions that are very sure. It moves the alignment of "
        f"{seen.rounded[most]:,} of {seen.moments[most].n:,} examples at {seen.series.labels[most]}, and GWA there "
        f"from {exact} to {one}. The values exact_… are without it, and so are the distribution, the examples to check "
        "and the flip test." + (" Those of the whole network hold the rounding." if seen.plan.network else "")
    ]


def _of_model(seen: Seen) -> list[str]:
    from probes.alignment import norms_in

    plan, norms = seen.plan, norms_in(seen.objective.module)
    said = [f"{plan.missing} All figures here are of the whole network."] if plan.missing else []
    if plan.head is not None and plan.head.shared:
        others = " and ".join(f"`{each}`" for each in plan.head.shared)
        said.append(
            f"`{plan.head.name}` shares its weights with {others}: the gradient in the head is that through the output "
            "alone, as if they were not tied."
        )
    if seen.objective.loss == "causal_lm":
        said.append(
            "Alignment in the head is taken for each predicted token and averaged over those of a sequence"
            + ("; that of the whole network is of the sequence's own gradient." if plan.network else ".")
        )
    if plan.network and norms:
        said.append(
            f"Eval mode with {', '.join(norms)}: the loss does not depend on the length of weights that are normalised "
            "afterwards, so that their alignment is zero in train mode (of BatchNorm: of the batch; of the others: of "
            "each example). What BatchNorm's fixed statistics show in eval mode instead is no property of the training."
        )
    return said


def _of_flip(flip: Flip | None) -> list[str]:
    if flip is None:
        return []
    return [
        "The flip test changes labels that the run was not trained with. Labels that were wrong in training, and "
        "learned by heart, are harder to tell apart."
    ]


def _by_checkpoint(found: Sequence[Moments], prefix: str) -> dict[str, Any]:
    keys = {
        "gwa": "gwa", "gwa_stderr": "gwa_stderr", "gwa_interval": "gwa_interval", "gwa_undefined": "undefined",
        "mean": "mean", "mean_stderr": "mean_stderr", "excess_kurtosis": "kurtosis",
        "excess_kurtosis_stderr": "kurtosis_stderr", "excess_kurtosis_interval": "kurtosis_interval",
        "negative_share": "negative",
    }  # fmt: skip
    return {f"{prefix}{key}": [getattr(each, name) for each in found] for key, name in keys.items() if found}


def _layers(seen: Seen) -> dict[str, Any]:
    from probes.alignment import kernels

    names = kernels(seen.objective)
    table = np.array([each["layers"] for each in seen.looks])
    sides = {"layers": table[..., 0], "layers_stderr": table[..., 1]}
    return {
        key: {name: [number(each) for each in side[:, column]] for column, name in enumerate(names)}
        for key, side in sides.items()
    }


def _flip(seen: Seen, flip: Flip) -> dict[str, Any]:
    scores = [each["flipped"] for each in seen.looks]
    found = [auroc(-each, flip.flipped) for each in scores]
    rounded = [auroc(-each["flipped_rounded"], flip.flipped)[0] for each in seen.looks]
    return {
        "flipped_share": float(flip.flipped.mean()),
        "auroc_flipped": [value for value, _ in found],
        "auroc_flipped_stderr": [stderr for _, stderr in found],
        "auroc_flipped_rounded": rounded,
        "flipped_mean": [float(each[flip.flipped].mean()) for each in scores],
        "kept_mean": [float(each[~flip.flipped].mean()) for each in scores],
    }
