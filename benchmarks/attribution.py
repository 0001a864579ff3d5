"""Attribution: ours against Captum's best setting on the same method, networks, examples and number of evaluations.

    PYTHONPATH=. .venv/bin/python benchmarks/attribution.py [--small] [--net N] [--method M] [--threads T] [--device D]

Ours and every setting of Captum take turns in one process; times are medians. Each of our runs has a case of its own,
of which nothing is known but its score, which the app shows before any map; the badge that the app adds to each map
(shared between the methods of an example) is measured apart, on integrated gradients. Where both are deterministic and
the answers differ the table says by how much: then the ratio compares different things. "rows" counts the examples that
the model was run on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import captum.attr as theirs
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.nets import batches_of
from benchmarks.per_example import cnn, resnet20
from probes.attribution import Case, attribute, case_of
from probes.attribution.errors import AttributionError
from probes.attribution.methods import Settings, methods
from probes.attribution.players import cells_or_single
from probes.objective import Objective

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


def vit() -> Objective:
    """A ViT of transformers for 32 x 32 images: 4 layers of width 96, 64 patches."""
    from transformers import ViTConfig, ViTForImageClassification

    from probes.hugging_face import _as_logits

    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384}
    config = ViTConfig(image_size=32, patch_size=4, num_labels=10, **sizes)
    net = _as_logits(ViTForImageClassification(config))
    data = batches_of(torch.rand(8, 3, 32, 32), torch.randint(10, (8,)))
    return Objective(net, data, "cross_entropy", device=DEVICE)


DEVICE = "cpu"
NETS: dict[str, Callable[[], Objective]] = {
    "MNIST CNN": lambda: placed(cnn(8, 8)),
    "ResNet-20": lambda: placed(resnet20(8, 8)),
    "ViT": vit,
}


def placed(objective: Objective) -> Objective:
    """Return an objective on the device of the benchmark."""
    return Objective(objective.module.to(DEVICE), objective.batches, objective.loss, device=DEVICE)


def one(make: Callable[..., Any], case: Case, **more: Any) -> Ways:
    """Captum in its only setting."""
    return {"": lambda: make(case.module.to(DEVICE)).attribute(case.features, target=case.target.index, **more)}


def with_sizes(make: Callable[[nn.Module], Any], name: str, sizes: Sequence[Any], case: Case, **more: Any) -> Ways:
    """Captum once for each value of a parameter that only changes its speed."""
    run = lambda size: make(case.module).attribute(case.features, target=case.target.index, **{name: size}, **more)
    return {f"{name}={size}": partial(run, size) for size in sizes}


def masked(make: Callable[[nn.Module], Any], case: Case, **more: Any) -> Ways:
    """Captum on the same cells as ours."""
    labels = torch.from_numpy(cells_or_single(case, Settings(window=WINDOW, over="cells")).labels).to(DEVICE)
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


def fresh(objective: Objective) -> Case:
    """Return a case of which nothing is known but its score."""
    case = case_of(objective, 0)
    assert np.isfinite(case.score)
    return case


def seconds(work: Work, threads: int) -> tuple[float, Any]:
    """Return the time of a run (the processor's, of one thread on the CPU) and its answer."""
    clock = time.process_time if threads == 1 and DEVICE == "cpu" else time.perf_counter
    start = clock()
    found = work()
    if DEVICE != "cpu":
        torch.cuda.synchronize()
    return clock() - start, found


def rows_of(net: nn.Module, work: Work) -> int:
    """Count the examples that the model is run on; also warms up."""
    count = [0]

    def look(_module: nn.Module, args: tuple[Any, ...]) -> None:
        count[0] += len(args[0])

    hook = net.register_forward_pre_hook(look)
    try:
        work()
    finally:
        hook.remove()
    return count[0]


def measured(task: Task, objective: Objective, rounds: int, threads: int) -> str:
    """Return one row of the table."""
    method, case = methods()[task.name], fresh(objective)
    reason = method.refuse(case)
    if reason:
        return f"| {method.title}{task.more} | refused: {reason.split('.')[0]} | | | | | |"
    ours = lambda case: method.run(case, task.settings, lambda *_: None)
    try:
        ways = task.ways(case)
        rows = {name: rows_of(objective.module, work) for name, work in ways.items()}
    except (AssertionError, RuntimeError, AttributeError, ValueError) as error:
        return f"| {method.title}{task.more} | | fails: {str(error)[:60]!r} | | | | |"
    try:
        mine = rows_of(objective.module, partial(ours, case))
    except AttributionError as error:
        return f"| {method.title}{task.more} | refused: {str(error).split('.')[0]} | | | | | |"
    times: dict[str | None, list[float]] = {None: [], **{name: [] for name in ways}}
    for _ in range(rounds):
        again = fresh(objective)
        times[None].append(seconds(lambda again=again: ours(again), threads)[0])
        for name, work in ways.items():
            times[name].append(seconds(work, threads)[0])
    own, *others = (statistics.median(each) for each in times.values())
    best = min(zip(others, ways, strict=True))
    off = differs(ours(fresh(objective)).values, ways[best[1]]()) if task.exact else ""
    cells = (f"{own * 1e3:.1f} ms", f"{best[0] * 1e3:.1f} ms", best[1], f"{best[0] / own:.2f}",
             f"{mine} / {rows[best[1]]}", off)  # fmt: skip
    return f"| {method.title}{task.more} | {' | '.join(cells)} |"


def differs(mine: np.ndarray, their: Tensor) -> str:
    """Say how far two maps are apart, as a share of the largest value."""
    other = their.detach().cpu().numpy().reshape(mine.shape)
    off = float(abs(mine - other).max() / max(abs(other).max(), 1e-30))
    return f"{off:.0e}"


def badge(objective: Objective, rounds: int, threads: int) -> str:
    """Say what the badge adds to the first map of an example."""
    settings = Settings(baseline="zero", steps=STEPS, tolerance=INFINITE)
    method = methods()["integrated_gradients"]
    runs: dict[str, Callable[[Case], Any]] = {
        "plain": lambda case: method.run(case, settings, lambda *_: None),
        "judged": lambda case: attribute(case, "integrated_gradients", settings),
    }
    found = {name: [seconds(partial(run, fresh(objective)), threads)[0] for _ in range(rounds)]
             for name, run in runs.items()}  # fmt: skip
    plain, judged = (statistics.median(each) * 1e3 for each in found.values())
    return f"The badge adds {judged - plain:.1f} ms to the first map ({plain:.1f} ms)."


def main() -> None:
    """Print a table for each network."""
    global DEVICE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one round each: a smoke run")
    parser.add_argument("--net", choices=list(NETS))
    parser.add_argument("--method", choices=[task.name for task in TASKS])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    DEVICE = asked.device
    torch.set_num_threads(asked.threads)
    warnings.filterwarnings("ignore")
    rounds = 1 if asked.small else 9
    heads = ("method", "ours", "Captum", "its best setting", "Captum / ours", "rows, ours / Captum", "maps differ by")
    for name in [asked.net] if asked.net else NETS:
        torch.manual_seed(0)
        objective = NETS[name]()
        print(f"\n{name}\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
        for task in TASKS:
            if asked.method in (None, task.name):
                print(measured(task, objective, rounds, asked.threads), flush=True)
        print(f"\n{badge(objective, rounds, asked.threads)}")


if __name__ == "__main__":
    main()
