"""How sharply, and in how many directions, does the loss bend at this checkpoint?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from analyzers._base import Analyzer, Result, Tick, micro_batch_option, option, precision_option, seed_option

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from probes.checkpoint import Checkpoint
    from probes.losses import Evaluation
    from probes.objective import Objective
    from probes.spectrum import Ask, Spectrum


@dataclass(frozen=True)
class HessianSpectrumResult(Result):
    """The ends of the spectrum with bounds, its density, trace, norm and negative mass."""

    def figures(self, smoothing: float = 0.005) -> Mapping[str, go.Figure]:  # type: ignore[override]  # its view
        """Draw "spectral_density" and "eigenvalues"; smoothing: width of the Gaussians as a share of the range."""
        from analyzers._spectrum_figures import density_figure, eigenvalue_figure

        density = density_figure(self.card, self.values, self.arrays, smoothing)
        return {"spectral_density": density, "eigenvalues": eigenvalue_figure(self.card, self.arrays)}

    def overlay(self, others: Sequence[Result], **view: Any) -> Mapping[str, go.Figure]:
        """Draw "spectral_density_overlay"; raise ProbeError, naming what differs, when the cards are not the same."""
        from analyzers._spectrum_figures import overlay

        return overlay([self, *others], **view)

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return the nodes and weights behind the density, and the eigenvalues with bounds and residuals."""
        import pandas as pd

        arrays, size = self.arrays, int(self.card["parameters"])
        rest = (size - len(arrays["outliers"])) / size
        frames = [_rows("converged", arrays["outliers"], 1 / size)]
        frames += [_rows("exact", arrays["exact"], 1 / size)] if len(arrays["exact"]) else []
        for index, (nodes, weights) in enumerate(zip(arrays["nodes"], arrays["weights"], strict=True)):
            frames.append(_rows(f"random vector {index + 1}", nodes, rest * weights))
        ends = [_end("largest", arrays, ""), _end("smallest", arrays, "_min")]
        return {
            "spectral_density": pd.concat(frames, ignore_index=True),
            "eigenvalues": pd.concat(ends, ignore_index=True),
        }


@dataclass(frozen=True)
class HessianSpectrum(Analyzer):
    """Largest and smallest eigenvalues, spectral density and trace of the Hessian of the mean loss."""

    name: ClassVar[str] = "hessian_spectrum"
    title: ClassVar[str] = "Hessian spectrum"
    question: ClassVar[str] = "How sharply, and in how many directions, does the loss bend at this checkpoint?"
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = HessianSpectrumResult

    top: int = option(10, "Largest eigenvalues", "How many of the largest eigenvalues to find.", minimum=1, maximum=200)
    bottom: int = option(
        3,
        "Smallest eigenvalues",
        "How many of the smallest (most negative) eigenvalues; they lie close together and cost most of the products.",
        minimum=0,
        maximum=100,
    )
    tolerance: float = option(
        1e-4, "Relative tolerance", "Error bound of each eigenvalue, relative to it.", minimum=1e-10, maximum=0.1
    )
    probes: int = option(
        4, "Random vectors", "Random vectors of the spectral density; 0 for none.", minimum=0, maximum=100
    )
    steps: int = option(
        24, "Steps per vector", "Lanczos steps from each random vector: more resolve the bulk better.",
        minimum=2, maximum=500, advanced=True,
    )  # fmt: skip
    trace_probes: int = option(
        24, "Trace samples", "Random vectors of trace and Frobenius norm, those of the density counted in.",
        minimum=0, maximum=5000, advanced=True,
    )  # fmt: skip
    max_products: int = option(
        200, "Most products", "Hessian-vector products for the eigenvalues at most; what has not converged is named.",
        minimum=5, maximum=5000, advanced=True,
    )  # fmt: skip
    exact: bool = option(
        False, "Exact dense Hessian", "Also compute the whole matrix and all its eigenvalues, up to 8000 parameters."
    )
    dtype: str = precision_option("float64 is slower; take it for tolerances below 1e-5.")
    micro_batch: int = micro_batch_option()
    seed: int = seed_option("All random vectors are drawn from it.")

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> HessianSpectrumResult:  # noqa: ARG002
        """Check the second derivative, then find the spectrum; one checkpoint, the one that the objective holds.

        Raises ObjectiveError (loss not finite, out of memory) or CurvatureError (no right second derivative).
        """
        from probes.curvature import HessianProduct
        from probes.lanczos import Symmetric
        from probes.self_check import check_curvature
        from probes.spectrum import spectrum

        objective = objective.converted(self.dtype, self.micro_batch)
        tick(0.0, "loss and accuracy")
        evaluation = objective.evaluate()
        product = HessianProduct(objective)
        tick(0.01, "checking the second derivative")
        doubts = check_curvature(objective, product, self.seed)
        operator = Symmetric(product, objective.size, objective.device, objective.dtype)
        found = spectrum(operator, self._ask(), tick)
        caveats = (*objective.caveats, *doubts, *found.caveats, *found.not_converged)
        card = objective.card() | {"seed": self.seed}
        return HessianSpectrumResult(self.name, card, _values(found, evaluation), _arrays(found), caveats)

    def _ask(self) -> Ask:
        from probes.extremes import Wanted
        from probes.spectrum import Ask

        wanted = Wanted(self.top, self.bottom, self.tolerance, self.max_products)
        return Ask(wanted, self.probes, self.steps, self.trace_probes, self.exact, self.seed)


def _values(found: Spectrum, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "eigenvalues": [each.value for each in found.top],
        "eigenvalue_residuals": [each.bound for each in found.top],
        "eigenvalue_residual_norms": [each.residual for each in found.top],
        "eigenvalues_min": [each.value for each in found.bottom],
        "eigenvalues_min_residuals": [each.bound for each in found.bottom],
        "eigenvalues_min_residual_norms": [each.residual for each in found.bottom],
        "trace": found.trace.value,
        "trace_stderr": found.trace.stderr,
        "frobenius_norm": found.frobenius.value,
        "frobenius_norm_stderr": found.frobenius.stderr,
        "negative_mass": found.mass.share,
        "negative_mass_stderr": found.mass.share_stderr,
        "negative_share": found.mass.count_share,
        **({"exact_trace": float(found.exact.sum())} if len(found.exact) else {}),
        "loss": evaluation.loss,
        "loss_stderr": evaluation.loss_stderr,
        "accuracy": evaluation.accuracy,
        "accuracy_stderr": evaluation.accuracy_stderr,
        "examples": evaluation.examples,
        "predictions": evaluation.predictions,
        "products": sum(found.products.values()),
        "products_by_phase": dict(found.products),
        "not_converged": list(found.not_converged),
    }


def _arrays(found: Spectrum) -> dict[str, np.ndarray[Any, Any]]:
    length = max((len(run.nodes) for run in found.runs), default=0)
    padded = [(_padded(run.nodes, length), _padded(run.weights, length)) for run in found.runs]
    return {
        "eigenvalues": np.array([each.value for each in found.top]),
        "eigenvalue_bounds": np.array([each.bound for each in found.top]),
        "eigenvalues_min": np.array([each.value for each in found.bottom]),
        "eigenvalue_min_bounds": np.array([each.bound for each in found.bottom]),
        "outliers": np.array([each.value for each in found.outliers]),
        "outlier_bounds": np.array([each.bound for each in found.outliers]),
        "nodes": np.array([nodes for nodes, _ in padded]).reshape(len(padded), length),
        "weights": np.array([weights for _, weights in padded]).reshape(len(padded), length),
        "exact": found.exact,
    }


def _padded(values: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    """Fill up with zeros: a node of weight zero is no node."""
    return np.pad(values, (0, length - len(values)))


def _rows(kind: str, eigenvalues: Any, weights: Any) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({"kind": kind, "eigenvalue": eigenvalues, "weight": weights})


def _end(name: str, arrays: Mapping[str, Any], suffix: str) -> pd.DataFrame:
    import pandas as pd

    values = arrays[f"eigenvalues{suffix}"]
    ranks, bounds = np.arange(1, len(values) + 1), arrays[f"eigenvalue{suffix}_bounds"]
    return pd.DataFrame({"end": name, "rank": ranks, "eigenvalue": values, "error_bound": bounds})
