"""The ways in which Captum can be asked for what ours gives: same windows, cells, baselines and numbers of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import captum.attr as theirs
import torch
from torch import Tensor, nn
from torch.nn import functional

from probes.attribution import Case
from probes.attribution.methods import Settings
from probes.attribution.players import cells_or_single

TOLERANCE, MOST = 1e-3, 1024
WINDOW, STEPS, SAMPLES, ROUNDS = 4, 32, 25, 10
INFINITE = float("inf")
Work = Callable[[], Any]
Ways = Mapping[str, Work]  # setting of Captum -> run
SIZES = (1, 16, 32, 64, 128)  # perturbations that Captum may take at a time


@dataclass(frozen=True)
class Task:
    """One method: how we are asked, and the ways in which Captum can be. exact: both must give the same map.

    more: said behind the name.
    """

    name: str
    settings: Settings
    ways: Callable[[Case], Ways]
    exact: bool = True
    more: str = ""


def one(make: Callable[..., Any], case: Case, **more: Any) -> Ways:
    """Captum in its only setting."""
    return {"": lambda: make(case.module).attribute(case.features, target=case.target.index, **more)}


def with_sizes(make: Callable[[nn.Module], Any], name: str, sizes: Sequence[Any], case: Case, **more: Any) -> Ways:
    """Captum once for each value of a parameter that only changes its speed."""
    run = lambda size: make(case.module).attribute(case.features, target=case.target.index, **{name: size}, **more)
    return {f"{name}={size}": partial(run, size) for size in sizes}


def masked(make: Callable[[nn.Module], Any], case: Case, **more: Any) -> Ways:
    """Captum on the same cells as ours."""
    labels = torch.from_numpy(cells_or_single(case, Settings(window=WINDOW, over="cells")).labels).to(
        case.features.device
    )
    mask = labels[None, None].expand(case.features.shape).contiguous()
    more = {"feature_mask": mask, "baselines": 0, **more}
    return with_sizes(make, "perturbations_per_eval", SIZES, case, **more)


def occlusion(case: Case) -> Ways:
    """The same windows: their last ones are cut off at the edge, as ours."""
    channels = case.shape[0]
    more = {"sliding_window_shapes": (channels, WINDOW, WINDOW), "strides": (channels, WINDOW // 2, WINDOW // 2)}
    return with_sizes(theirs.Occlusion, "perturbations_per_eval", SIZES, case, baselines=0, **more)


def smooth(case: Case) -> Ways:
    """NoiseTunnel over the signed gradient, with our noise."""
    sigma = 0.15 * float(case.features.max() - case.features.min())
    return with_sizes(
        lambda net: theirs.NoiseTunnel(theirs.Saliency(net)), "nt_samples_batch_size", (None, 1, 5), case,
        nt_samples=SAMPLES, stdevs=sigma, nt_type="smoothgrad", abs=False,
    )  # fmt: skip


def integrated(case: Case) -> Ways:
    """Gauss-Legendre with as many nodes, and the error of completeness, which our map carries."""
    more = {"n_steps": STEPS, "method": "gausslegendre", "baselines": 0}
    return {
        f"internal_batch_size={size}": partial(with_delta, case, internal_batch_size=size, **more)
        for size in (None, 32, 128)
    }


def with_delta(case: Case, **more: Any) -> Tensor:
    """Captum's integrated gradients and their error."""
    method = theirs.IntegratedGradients(case.module)
    return method.attribute(case.features, target=case.target.index, return_convergence_delta=True, **more)[0]


def complete(case: Case) -> Ways:
    """Doubled until the sum is within the tolerance, 1024 steps at most; Captum leaves that to its user."""

    def run() -> Tensor:
        steps, method = STEPS, theirs.IntegratedGradients(case.module)
        while True:
            found, delta = method.attribute(
                case.features, target=case.target.index, baselines=0, n_steps=steps, internal_batch_size=64,
                method="gausslegendre", return_convergence_delta=True,
            )  # fmt: skip
            if abs(float(delta)) <= TOLERANCE * abs(float(found.double().sum() - delta)) or steps >= MOST:
                return found
            steps *= 2

    return {"internal_batch_size=64": run}


def grad_cam(case: Case) -> Ways:
    """At the layer that ours takes; of tokens Captum has no map."""
    from probes.attribution.cam import default_cam_layer

    layer = case.module.get_submodule(default_cam_layer(case))

    def run() -> Tensor:
        found = theirs.LayerGradCam(case.module, layer).attribute(
            case.features, target=case.target.index, relu_attributions=True
        )
        return functional.interpolate(found, case.shape[-2:], mode="bilinear", align_corners=False)

    return {"": run}


def coalitions(case: Case) -> int:
    """Return how many coalitions our rounds of pairs take of KernelSHAP and LIME."""
    players = cells_or_single(case, Settings(window=WINDOW, over="cells")).count
    return 2 * players * ROUNDS


CELLS = {"baseline": "zero", "over": "cells", "window": WINDOW, "tolerance": 0.0, "samples": ROUNDS}
TASKS = (
    Task("saliency", Settings(), lambda case: one(theirs.Saliency, case)),
    Task("input_x_gradient", Settings(), lambda case: one(theirs.InputXGradient, case)),
    Task("integrated_gradients", Settings(baseline="zero", steps=STEPS, tolerance=INFINITE), integrated),
    Task("integrated_gradients", Settings(baseline="zero", steps=STEPS, tolerance=TOLERANCE), complete, exact=False,
         more=", to 0.001"),
    Task("smoothgrad", Settings(samples=SAMPLES, tolerance=0.0), smooth, exact=False),
    Task("deep_lift", Settings(baseline="zero"), lambda case: one(theirs.DeepLift, case, baselines=0)),
    Task("grad_cam", Settings(), grad_cam),
    Task("occlusion", Settings(baseline="zero", window=WINDOW), occlusion, exact=False),
    Task("feature_ablation", Settings(**CELLS), lambda case: masked(theirs.FeatureAblation, case), exact=False),
    Task("shapley_sampling", Settings(**CELLS),
         lambda case: masked(theirs.ShapleyValueSampling, case, n_samples=2 * ROUNDS), exact=False),
    Task("kernel_shap", Settings(**CELLS),
         lambda case: masked(theirs.KernelShap, case, n_samples=coalitions(case)), exact=False),
    Task("lime", Settings(**CELLS), lambda case: masked(theirs.Lime, case, n_samples=coalitions(case)), exact=False),
)  # fmt: skip
