"""Inner products and norms of every example's gradient: ours against a loop, vmap(grad), and what is the least.

    python benchmarks/per_example.py [--small] [--net NET] [--write]

All methods give <g_i, w> for each example i; all but the floor give it for every parameter tensor, with ||g_i||^2.
They take turns in one process on one thread, on the same batches; times are medians of the processor's time. The floor
is one gradient of the mean loss plus one forward-mode product in the direction of the weights. Ours includes what it
does besides: it learns the model's steps from two examples and checks two gradients against autograd. Memory is the
peak above what was held before, each method in a process of its own. --small is a smoke run; --write puts the tables
into docs/performance.md.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.nets import batches_of, resident
from probes.architecture.modules import CifarResNet, SmallGPT
from probes.losses import total_loss
from probes.objective import Objective
from probes.per_sample import per_example
from probes.strict import strict

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
MARKS = ("<!-- per_example: begin -->", "<!-- per_example: end -->")
LIMIT = 1.6  # times the floor

Figures = tuple[np.ndarray, np.ndarray]  # dots and squares, (N, L) each


def mlp(examples: int = 512, batch: int = 256) -> Objective:
    """784-512-256-10; 535 818 parameters."""
    net = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))
    return _images(net, examples, batch, (784,))


def cnn(examples: int = 256, batch: int = 128) -> Objective:
    """The CNN of ../shared/real/mnist-cnn; 34 826 parameters."""
    body = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return _images(nn.Sequential(*body, nn.Flatten(), nn.Linear(1600, 10)), examples, batch, (1, 28, 28))


def resnet20(examples: int = 128, batch: int = 64) -> Objective:
    """ResNet-20 for 32 x 32 images; 269 722 parameters."""
    return _images(CifarResNet(20), examples, batch, (3, 32, 32))


def gpt(examples: int = 64, batch: int = 16, context: int = 128) -> Objective:
    """Four layers of width 192, embedding and output tied; 1 996 416 parameters."""
    net = SmallGPT(vocabulary=1000, context=context, layers=4, heads=4, width=192)
    x, y = (torch.randint(1000, (examples, context)) for _ in range(2))
    return Objective.of(net, batches_of(x, y), "causal_lm", micro_batch=batch)


def _images(net: nn.Module, examples: int, batch: int, shape: tuple[int, ...]) -> Objective:
    batches = batches_of(torch.rand(examples, *shape), torch.randint(10, (examples,)))
    return Objective.of(net, batches, "cross_entropy", micro_batch=batch)


NETS: dict[str, Callable[..., Objective]] = {"MLP": mlp, "MNIST CNN": cnn, "small GPT": gpt, "ResNet-20": resnet20}


def loop(objective: Objective) -> Figures:
    """One backward pass for each example."""
    found = []
    for row in range(len(objective.inputs)):
        with strict(objective.module):
            loss = objective.part_loss(objective.theta, slice(row, row + 1)) * objective.units
            found.append(_sums([g[None] for g in torch.autograd.grad(loss, objective.theta)], objective))
    return _joined(found)


def vmapped(objective: Objective) -> Figures:
    """vmap(grad) over each batch, as torch.func's tutorial has it."""

    def loss_of(theta: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = torch.func.functional_call(objective.module, objective._values(theta), (x[None],))
        return total_loss(objective.loss, outputs, y[None])

    theta = [each.detach() for each in objective.theta]
    found = []
    with strict(objective.module):
        for part in objective.parts():
            examples = objective.inputs[part], objective.targets[part]
            found.append(_sums(torch.vmap(torch.func.grad(loss_of), (None, 0, 0))(theta, *examples), objective))
    return _joined(found)


def ours(objective: Objective) -> Figures:
    """probes.per_sample.per_example."""
    found = per_example(objective)
    if found.fallback or found.doubts:
        raise ValueError(f"fallback: {found.fallback}, doubts: {found.doubts}")
    return found.dots, found.squares


def gradient(objective: Objective) -> None:
    """One gradient of the mean loss."""
    objective.gradient()


def forward_product(objective: Objective) -> None:
    """<g_i, w> of the whole model for every example, by forward mode."""
    one = lambda output, target: total_loss(objective.loss, output[None], target[None])

    theta = tuple(each.detach() for each in objective.theta)
    with strict(objective.module):
        for part in objective.parts():
            targets = objective.targets[part]
            losses = lambda *theta, part=part, y=targets: torch.vmap(one)(objective.outputs(list(theta), part), y)
            torch.func.jvp(losses, theta, theta)


METHODS: dict[str, Callable[[Objective], object]] = {
    "loop": loop, "vmap(grad)": vmapped, "ours": ours, "gradient": gradient, "forward product": forward_product,
}  # fmt: skip


def _sums(gradients: list[Tensor], objective: Objective) -> Figures:
    flat = [(g.detach().flatten(1), w.detach().flatten()) for g, w in zip(gradients, objective.theta, strict=True)]
    dots, squares = torch.stack([g @ w for g, w in flat], 1), torch.stack([g.square().sum(1) for g, _ in flat], 1)
    return dots.numpy(), squares.numpy()


def _joined(found: list[Figures]) -> Figures:
    return np.concatenate([dots for dots, _ in found]), np.concatenate([squares for _, squares in found])


def medians(objective: Objective, repeats: int) -> dict[str, float]:
    """Return the seconds of each method, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for turn in range(repeats + 1):
        for name, method in METHODS.items():
            gc.collect()
            start = time.process_time()
            method(objective)
            if turn:  # the first is a rehearsal
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def error(objective: Objective) -> float:
    """Return the largest difference of a whole cosine from that of the loop."""
    (dots, squares), (own_dots, own_squares) = loop(objective), ours(objective)
    sizes = sum(float(each.detach().double().square().sum()) for each in objective.theta)
    cosine = lambda d, s: d.astype(np.float64).sum(1) / np.sqrt(s.astype(np.float64).sum(1) * sizes)
    return float(np.abs(cosine(dots, squares) - cosine(own_dots, own_squares)).max())


def row(name: str, objective: Objective, repeats: int) -> str:
    """Measure one net; times as ratios to the floor; whether ours keeps within 1.6 times that and is the first."""
    seconds = medians(objective, repeats)
    floor = seconds["gradient"] + seconds["forward product"]
    ratios = " | ".join(f"{seconds[each] / floor:.2f}" for each in ("loop", "vmap(grad)", "ours"))
    verdict = (
        "-"
        if repeats < 2
        else "yes"
        if seconds["ours"] <= min(LIMIT * floor, seconds["loop"], seconds["vmap(grad)"])
        else "NO"
    )
    head = f"| {name} | {objective.size:,} | {len(objective.inputs)} "
    return f"{head}| {ratios} | {seconds['ours'] / seconds['gradient']:.2f} | {error(objective):.0e} | {verdict} |"


def memory(name: str, method: str, examples: int) -> float:
    """Return the peak (MB) of a method above what was held before, in a process of its own."""
    command = [sys.executable, __file__, "--peak", method, "--net", name, "--examples", str(examples)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak(method: str, objective: Objective) -> float:
    """Measure in this process; one example first, so that libraries are loaded."""
    METHODS[method](objective.subset(2, "float32"))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    METHODS[method](objective)
    return resident("VmHWM") - before


def tables(names: list[str], small: bool) -> str:
    """Measure and write both tables in Markdown."""
    repeats = 1 if small else 5
    head = (
        "net | parameters | examples | loop | vmap(grad) | ours | ours / gradient | error of a cosine | within limits"
    )
    lines = [f"| {head} |", "|---" * (head.count("|") + 1) + "|"]
    for name in names:
        torch.manual_seed(0)
        lines.append(row(name, NETS[name](8, 4) if small else NETS[name](), repeats))
        print(lines[-1], file=sys.stderr, flush=True)
    if "small GPT" in names:
        examples = 4 if small else 16  # one batch
        peaks = {method: memory("small GPT", method, examples) for method in ("vmap(grad)", "ours", "gradient")}
        lines += [
            "",
            "| small GPT, peak memory (MB) | vmap(grad) | ours | gradient | ours / vmap(grad) |",
            "|---|---|---|---|---|",
        ]
        figures = " | ".join(f"{each:.0f}" for each in peaks.values())
        lines.append(f"| {examples} sequences | {figures} | {peaks['ours'] / peaks['vmap(grad)']:.2f} |")
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the tables between the marks in docs/performance.md."""
    page = PAGE.read_text()
    if MARKS[0] not in page:
        page = f"{page.rstrip()}\n\n## Gradients of every example\n\n{MARKS[0]}\n{MARKS[1]}\n"
    head, tail = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
    PAGE.write_text(f"{head}{MARKS[0]}\n{text}\n{MARKS[1]}{tail}")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("small", "write"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--net", choices=list(NETS), action="append")
    parser.add_argument("--peak", choices=list(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--examples", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch.func scripts its own rules
    if arguments.peak:
        print(peak(arguments.peak, NETS[arguments.net[0]](arguments.examples)))
        return
    text = tables(arguments.net or list(NETS), arguments.small)
    print(text)
    if arguments.write:
        write(text)


if __name__ == "__main__":
    main()
