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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.captum_ways import INFINITE, STEPS, TASKS, Task, Work
from benchmarks.nets import batches_of
from benchmarks.per_example import cnn, resnet20
from probes.attribution import Case, attribute, case_of
from probes.attribution.errors import AttributionError
from probes.attribution.methods import Settings, methods
from probes.objective import Objective


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
