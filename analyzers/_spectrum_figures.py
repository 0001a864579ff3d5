"""How a Hessian spectrum is drawn: density with stems, eigenvalues with error bars, several over one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from analyzers._base import Arrays, Result, differences
from analyzers._figures import COLOURS, as_plotly, faded, figure
from probes.errors import ProbeError

Floats = NDArray[np.float64]
POINTS = 900  # of a density curve
STEMS = 300  # the outermost outliers are drawn, at most so many
SMOOTHING = 0.005  # standard deviation of the Gaussians, as a share of the spectrum's range
EIGENVALUE = "Eigenvalue λ (loss / parameter²)"
DENSITY = "Density (per unit of λ)"


def density_figure(
    card: Mapping[str, Any], values: Mapping[str, Any], arrays: Arrays, smoothing: float = SMOOTHING
) -> go.Figure:
    """Draw the density on a log axis: curve and band of the bulk, one stem for each converged eigenvalue."""
    size, sigma = int(card["parameters"]), _sigma(arrays, smoothing)
    words = f"Gaussian smoothing σ = {sigma:.3g} ({100 * smoothing:.2g} % of the range); {_mass(values)}"
    result = figure("Spectral density of the Hessian", f"{_about(card)}<br>{words}", EIGENVALUE, DENSITY)
    grid = _grid(arrays, sigma)
    peak = 1 / (size * sigma * np.sqrt(2 * np.pi))
    floor = peak / 10
    curves = _curves(arrays, size, grid, sigma)
    if len(curves):
        _add_band(result, grid, curves, floor)
        name = f"quadrature on the rest, mean of {len(curves)} random vectors"
        _add_line(result, grid, curves.mean(0), floor, COLOURS[0], name)
    if len(arrays["exact"]):
        exact = _smooth(grid, arrays["exact"], np.full(size, 1 / size), sigma)
        _add_line(result, grid, exact, floor, COLOURS[2], "exact (dense matrix)", dash="dot")
    _add_stems(result, arrays, peak, floor)
    tallest = max(peak, *(float(curve.max()) for curve in curves)) if len(curves) else 100 * peak
    result.update_yaxes(type="log", range=[np.log10(floor), np.log10(tallest) + 0.3], exponentformat="power", dtick=1)
    return result


def eigenvalue_figure(card: Mapping[str, Any], arrays: Arrays) -> go.Figure:
    """Draw the eigenvalues at both ends by rank, with error bars from their bounds."""
    result = figure("Largest and smallest eigenvalues of the Hessian", _about(card), "Rank", EIGENVALUE)
    ends = (("largest", "eigenvalues", "eigenvalue"), ("smallest", "eigenvalues_min", "eigenvalue_min"))
    for colour, (name, key, prefix) in zip((COLOURS[0], COLOURS[1]), ends, strict=True):
        values, bounds = arrays[key], arrays[f"{prefix}_bounds"]
        result.add_scatter(
            x=np.arange(1, len(values) + 1),
            y=values,
            error_y={"type": "data", "array": bounds, "thickness": 1.5},
            mode="markers",
            marker={"color": colour, "size": 9, "symbol": "circle" if name == "largest" else "diamond"},
            name=f"{name} ({len(values)})",
            customdata=bounds,
            hovertemplate="number %{x}: %{y:.6g} ± %{customdata:.1e}<extra></extra>",
        )
    result.update_xaxes(dtick=1 if max(len(arrays["eigenvalues"]), 1) <= 20 else 5)
    return result


def overlay(results: Sequence[Result], smoothing: float = SMOOTHING) -> Mapping[str, go.Figure]:
    """Draw the densities of several results over one another.

    Raises ProbeError, naming what differs, when their cards are not the same (the checkpoint aside).
    """
    if not results:
        raise ValueError("give at least one result")
    for other in results[1:]:
        odd = differences(results[0].card, other.card)
        if odd:
            raise ProbeError(f"These results cannot be compared, they are not of the same thing: {'; '.join(odd)}.")
    card, size = dict(results[0].card), int(results[0].card["parameters"])
    sigma = max(_sigma(each.arrays, smoothing) for each in results)
    result = figure("Spectral densities of the Hessian", _about(card | {"checkpoint": None}), EIGENVALUE, DENSITY)
    floor = 0.1 / (size * sigma * np.sqrt(2 * np.pi))
    for index, each in enumerate(results):
        colour = COLOURS[index % len(COLOURS)]
        grid = _grid(each.arrays, sigma)
        curve = _curves(each.arrays, size, grid, sigma)
        known = _smooth(grid, each.arrays["outliers"], np.full(len(each.arrays["outliers"]), 1 / size), sigma)
        rest = curve.mean(0) if len(curve) else 0.0
        _add_line(result, grid, known + rest, floor, colour, _checkpoint(each.card) or f"result {index + 1}")
    result.update_yaxes(type="log", exponentformat="power", dtick=1)
    return {"spectral_density_overlay": result}


def _about(card: Mapping[str, Any]) -> str:
    mode = str(card["mode"]).split(":", maxsplit=1)[0]
    words = [f"{card['loss']}".replace("_", "-"), f"n = {card['examples']} examples", f"{mode} mode"]
    words += [str(card["dtype"]), _checkpoint(card, escape=False)[:40], str(card["model"])]
    return as_plotly(", ".join(each for each in words if each))


def _checkpoint(card: Mapping[str, Any], *, escape: bool = True) -> str:
    name = (card.get("checkpoint") or {}).get("name", "")
    return as_plotly(name) if escape else str(name)


def _mass(values: Mapping[str, Any]) -> str:
    stderr = values["negative_mass_stderr"]
    spread = f" ± {100 * stderr:.2g}" if stderr is not None else ""
    return f"negative mass {100 * values['negative_mass']:.3g}{spread} %"


def _ends(arrays: Arrays) -> tuple[float, float]:
    everything = np.concatenate([arrays["outliers"], arrays["nodes"].ravel(), arrays["exact"]])
    return (float(everything.min()), float(everything.max())) if len(everything) else (-1.0, 1.0)


def _sigma(arrays: Arrays, smoothing: float) -> float:
    if not 0 < smoothing <= 1:
        raise ValueError(f"smoothing is {smoothing}; give a share of the range, above 0 and at most 1")
    low, high = _ends(arrays)
    return smoothing * ((high - low) or abs(high) or 1.0)


def _grid(arrays: Arrays, sigma: float) -> Floats:
    """Even points over the whole range, and denser ones where the bulk lies."""
    low, high = _ends(arrays)
    even = np.linspace(low - 4 * sigma, high + 4 * sigma, POINTS * 2 // 3)
    weights = arrays["weights"].ravel()
    if not len(weights):
        return even
    centre = float((weights * arrays["nodes"].ravel()).sum() / weights.sum())
    return np.unique(np.concatenate([even, np.linspace(centre - 6 * sigma, centre + 6 * sigma, POINTS // 3)]))


def _curves(arrays: Arrays, size: int, grid: Floats, sigma: float) -> Floats:
    share = (size - len(arrays["outliers"])) / size
    runs = zip(arrays["nodes"], arrays["weights"], strict=True)
    return np.array([_smooth(grid, nodes, share * weights, sigma) for nodes, weights in runs])


def _smooth(grid: Floats, places: Floats, weights: Floats, sigma: float) -> Floats:
    total = np.zeros_like(grid)
    for start in range(0, len(places), 500):
        part = slice(start, start + 500)
        bells = np.exp(-0.5 * ((grid[:, None] - places[None, part]) / sigma) ** 2)
        total += bells @ weights[part]
    density: Floats = total / (sigma * np.sqrt(2 * np.pi))
    return density


def _add_line(
    result: go.Figure, grid: Floats, curve: Floats, floor: float, colour: str, name: str, dash: str = "solid"
) -> None:
    result.add_scatter(
        x=np.round(grid, 8),
        y=np.where(curve > floor, curve, np.nan),
        mode="lines",
        line={"color": colour, "width": 2, "dash": dash},
        name=name,
        hovertemplate="λ = %{x:.4g}<br>density %{y:.3g}<extra></extra>",
    )


def _add_band(result: go.Figure, grid: Floats, curves: Floats, floor: float) -> None:
    low, high = np.maximum(curves.min(0), floor), np.maximum(curves.max(0), floor)
    result.add_scatter(
        x=np.concatenate([grid, grid[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=faded(COLOURS[0], 0.2),
        name="range over the random vectors",
        hoverinfo="skip",
    )


def _add_stems(result: go.Figure, arrays: Arrays, peak: float, floor: float) -> None:
    order = np.argsort(-np.abs(arrays["outliers"]))[:STEMS]
    values, bounds = arrays["outliers"][order], arrays["outlier_bounds"][order]
    if not len(values):
        return
    x = np.repeat(values, 3)
    y = np.tile([floor, peak, np.nan], len(values))
    result.add_scatter(
        x=x, y=y, mode="lines", line={"color": COLOURS[1], "width": 1.5}, showlegend=False, hoverinfo="skip"
    )
    result.add_scatter(
        x=values,
        y=np.full(len(values), peak),
        mode="markers",
        marker={"color": COLOURS[1], "size": 7},
        name=f"converged eigenvalues, each of weight 1/P ({len(arrays['outliers'])})",
        customdata=bounds,
        hovertemplate="λ = %{x:.6g} ± %{customdata:.1e}<extra></extra>",
    )
