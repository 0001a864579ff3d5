"""Top eigenvalues of three Hessians: ours against PyHessian 0.1 and ARPACK, each set just tight enough.

    python benchmarks/hessian_spectrum.py [--quick] [--products] [--write]

Every method gets the loosest tolerance of its own with which the top k eigenvalues are each within 1e-3 (relative)
of the float64 truth on every seed. Products, wall time and peak memory are then measured interleaved in one
process, and given as medians, time and memory as ratios to ours. Each run builds what it needs from the model and
the data. PyHessian runs as its user would run it on one batch (its fastest way); ARPACK (scipy eigsh, which="LA")
takes our exact product and starts where ours does. --products only counts products (no clock, one run a seed);
--quick leaves ResNet-20 out and repeats less; --write puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from benchmarks import nets
from probes.cross_check import hessian_of
from probes.curvature import HessianProduct
from probes.extremes import Wanted, extremes
from probes.lanczos import Symmetric, random_vector
from probes.objective import Objective
from probes.strict import strict

GOAL = 1e-3
LARGE = 20_000  # parameters
PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
MARKS = ("<!-- hessian_spectrum: begin -->", "<!-- hessian_spectrum: end -->")
NETS = {"MLP": nets.mlp, "tiny GPT": nets.gpt, "ResNet-20, 200 images": nets.resnet20}

Floats = np.ndarray
Method = Callable[[Objective, int, float, int], tuple[int, Floats]]


@dataclass(frozen=True)
class Row:
    """One method on one net."""

    net: str
    k: int
    method: str
    tolerance: float
    products: float
    error: float
    seconds: float = float("nan")
    megabytes: float = float("nan")


def ours(objective: Objective, k: int, tolerance: float, seed: int) -> tuple[int, Floats]:
    """Lanczos with full reorthogonalisation until every one of the top k has converged."""
    product = HessianProduct(objective)
    operator = Symmetric(product, objective.size, objective.device, objective.dtype)
    found = extremes(operator, Wanted(k, 0, tolerance, 300), seed)
    return product.products, found.ritz().values[::-1][:k]


def arpack(objective: Objective, k: int, tolerance: float, seed: int) -> tuple[int, Floats]:
    """scipy's eigsh over our product, in the dtype of the objective."""
    product = HessianProduct(objective)
    kind = np.float64 if objective.dtype == torch.float64 else np.float32
    matvec = lambda v: product(torch.from_numpy(np.ascontiguousarray(v).reshape(-1))).numpy()
    operator = LinearOperator((objective.size,) * 2, matvec=matvec, dtype=kind)
    start = random_vector(objective.size, seed, 0).numpy().astype(kind)  # where ours starts, too
    try:
        values = eigsh(operator, k, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        values = np.concatenate([error.eigenvalues, np.zeros(k - len(error.eigenvalues))])
    return product.products, np.sort(values)[::-1]


def pyhessian(objective: Objective, k: int, tolerance: float, seed: int) -> tuple[int, Floats]:
    """PyHessian's power iteration with deflation on one batch, its products counted."""
    source = importlib.import_module("pyhessian.hessian")
    counted, plain = [0], source.hessian_vector_product

    def counting(*args: object) -> object:
        counted[0] += 1
        return plain(*args)

    source.hessian_vector_product = counting
    torch.manual_seed(seed)
    try:
        with strict(objective.module), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check = hessian_of(objective)
            values = check.eigenvalues(maxIter=1000, tol=tolerance, top_n=k)[0]
            for parameter in check.model.parameters():
                parameter.grad = None
    finally:
        source.hessian_vector_product = plain
    return counted[0], np.sort(values)[::-1]


METHODS: dict[str, tuple[Method, tuple[float, ...]]] = {
    "Theodolite": (ours, (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)),
    "ARPACK": (arpack, (1e-1, 1e-2, 1e-3, 1e-4)),
    "PyHessian": (pyhessian, (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)),
}


def truth_of(make: Callable[..., Objective], k: int) -> Floats:
    """The top k in float64 by ARPACK: small nets to machine precision from two starts, which must agree."""
    objective = make(dtype="float64")
    if objective.size > LARGE:
        return arpack(objective, k, 1e-6, 11)[1]  # the error of an eigenvalue is the square of that
    first, second = (arpack(objective, k + 2, 0.0, seed)[1] for seed in (11, 12))
    if np.abs(first[:k] / second[:k] - 1).max() > 1e-8:
        raise ValueError(f"no float64 truth: {first} against {second}")
    return first[:k]


def fitting(
    objective: Objective, name: str, k: int, truth: Floats, seeds: int, loosest: float
) -> tuple[float, list[int], float]:
    """Find the loosest tolerance that meets the goal on all seeds; products of each seed and the worst error."""
    method, tolerances = METHODS[name]
    for tolerance in (each for each in tolerances if each <= loosest):
        runs = [method(objective, k, tolerance, seed) for seed in range(seeds)]
        error = max(float(np.abs(values / truth - 1).max()) for _, values in runs)
        if error <= GOAL:
            break
    return tolerance, [products for products, _ in runs], error


def measured(method: Method, objective: Objective, k: int, tolerance: float, seed: int) -> tuple[float, float]:
    """Return seconds and the peak of memory (MB) above what was held before."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = nets.resident("VmRSS"), time.perf_counter()
    method(objective, k, tolerance, seed)
    seconds = time.perf_counter() - start
    return seconds, nets.resident("VmHWM") - before


def compare(
    net: str, k: int, truth: Floats, *, seeds: int, repeats: int, loosest: Mapping[str, float]
) -> Iterator[Row]:
    """Measure all methods on one net, interleaved; loosest: where to begin to look for each one's tolerance."""
    objective = NETS[net]()
    objective.micro_batch = len(objective.inputs)  # one batch, the fastest way of PyHessian
    fits = {name: fitting(objective, name, k, truth, seeds, loosest.get(name, 1.0)) for name in METHODS}
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    for seed in range(repeats):
        for name, (method, _) in METHODS.items():
            figures[name].append(measured(method, objective, k, fits[name][0], seed))
    for name, (tolerance, products, error) in fits.items():
        seconds, memory = zip(*figures[name], strict=True) if repeats else ((float("nan"),),) * 2
        medians = statistics.median(seconds), statistics.median(memory)
        yield Row(net, k, name, tolerance, statistics.median(products), error, *medians)


def table(rows: list[Row]) -> str:
    """Write the rows in Markdown, time and memory as ratios to ours."""
    lines = [
        "| net | k | method | its tolerance | products | worst error | products / ours | time / ours | memory / ours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    own = {(row.net, row.k): row for row in rows if row.method == "Theodolite"}
    for row in rows:
        base = own[row.net, row.k]
        pairs = ((row.products, base.products), (row.seconds, base.seconds), (row.megabytes, base.megabytes))
        ratios = " | ".join(f"{mine / ref:.2f}" if ref == ref and ref > 0 else "-" for mine, ref in pairs)
        head = f"| {row.net} | {row.k} | {row.method} | {row.tolerance:.0e} "
        lines.append(f"{head}| {row.products:g} | {row.error:.1e} | {ratios} |")
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the table between the marks in docs/performance.md, made if it is not there."""
    begin, end = MARKS
    page = PAGE.read_text() if PAGE.is_file() else "# Performance\n\n"
    if begin not in page:
        page = f"{page.rstrip()}\n\n## Hessian spectrum\n\n{begin}\n{end}\n"
    head, tail = page.split(begin)[0], page.split(end)[1]
    PAGE.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("quick", "products", "write"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--net", choices=list(NETS), action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    names = arguments.net or [name for name in NETS if not (arguments.quick and name.startswith("ResNet"))]
    repeats = 0 if arguments.products else 2 if arguments.quick else 5
    rows: list[Row] = []
    for net in names:
        large = net.startswith("ResNet")
        truth, loosest = truth_of(NETS[net], 10), {}
        for k in (5, 10):  # ten need no looser tolerance than five
            counts = {"seeds": 1 if large else 5, "repeats": min(repeats, 3 if k == 5 else 1) if large else repeats}
            found = list(compare(net, k, truth[:k], **counts, loosest=loosest))
            loosest = {row.method: row.tolerance for row in found if large}
            rows += found
            print(found, file=sys.stderr, flush=True)
    text = table(rows)
    print(text)
    if arguments.write:
        write(text)


if __name__ == "__main__":
    main()
