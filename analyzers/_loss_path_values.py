"""What a line's readings say in numbers: curves with bands, Delta, plateau, area, Gauss length. No torch on import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from probes.line_readings import LineReadings
    from probes.paths import Readings

Floats = NDArray[np.float64]
DRAWS = 1000  # resamples of the examples
AT_ONCE = 50  # of them in memory
NAMED = 6  # places that a caveat names


def curve_values(alpha: Floats, found: Readings, seed: int, prefix: str = "") -> dict[str, Any]:
    """Return a curve of a line with its bands and what it says of [0, 1]; lists are by place, None where not finite.

    The same resamples of the examples at all places: Delta has the error of a difference.
    """
    losses, accuracy, inside = found.loss, found.accuracy, on_line(alpha)
    known = np.array(np.isfinite(found.losses).all(axis=1))
    accuracy = np.full(len(alpha), np.nan) if accuracy is None else np.where(known, accuracy, np.nan)
    bands = _bands(found.taken(np.flatnonzero(known).tolist()), known, inside, seed)
    scalars = _scalars(alpha[inside], losses[inside]) if known[inside].all() else dict.fromkeys(SCALARS)
    named = {
        "loss": numbers(np.where(known, losses, np.nan)),
        "accuracy": numbers(accuracy) if found.right is not None else None,
        **bands,
        **scalars,
    }
    return {f"{prefix}{name}": each for name, each in named.items()}


SCALARS = ("delta", "delta_from", "delta_to", "plateau", "area")


def bare_values(alpha: Floats, losses: Floats, accuracy: Floats | None, prefix: str = "") -> dict[str, Any]:
    """Return a curve without bands, and its Delta on [0, 1]."""
    from probes.lines import monotonicity

    inside, known = on_line(alpha), np.isfinite(losses)
    delta = float(monotonicity(losses[inside])) if known[inside].all() else None
    shown = None if accuracy is None else numbers(np.where(known, accuracy, np.nan))
    named = {"loss": numbers(losses), "accuracy": shown, "delta": delta}
    return {f"{prefix}{name}": each for name, each in named.items()}


def single_values(found: Readings, prefix: str = "") -> dict[str, float | None]:
    """Return loss and accuracy of readings of one point; None where not finite or where there is none."""
    (loss,), accuracy = numbers(found.loss), found.accuracy
    right = None if accuracy is None or loss is None else float(accuracy[0])
    return {f"{prefix}loss": loss, f"{prefix}accuracy": right}


def uncorrected_values(found: LineReadings) -> dict[str, Any] | None:
    """Return the curves with BatchNorm's statistics as interpolated, where they were read."""
    if found.uncorrected is None:
        return None
    loss, accuracy, test_loss, test_accuracy = found.uncorrected.T
    given = lambda each, readings: None if readings is None or readings.right is None else each
    values = {"alpha": numbers(found.alpha), **bare_values(found.alpha, loss, given(accuracy, found.data))}
    if found.test is not None:
        values |= bare_values(found.alpha, test_loss, given(test_accuracy, found.test), "test_")
    return values


def gauss_values(found: LineReadings) -> dict[str, Any]:
    """Return the mean Gauss length of the outputs on [0, 1] with its standard error, and of how many predictions."""
    from probes.lines import gauss_lengths

    nothing = {"gauss_length": None, "gauss_length_stderr": None, "gauss_predictions": 0}
    if found.outputs is None:
        return nothing
    outputs = found.outputs[on_line(found.alpha)]
    finite = np.isfinite(outputs).all(axis=(0, 2))
    if not finite.any():
        return nothing
    lengths = gauss_lengths(outputs[:, finite])
    stderr = float(lengths.std(ddof=1) / np.sqrt(len(lengths))) if len(lengths) > 1 else None
    return {
        "gauss_length": float(lengths.mean()),
        "gauss_length_stderr": stderr,
        "gauss_predictions": len(lengths),
    }


def not_finite(values: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    """Say where which curve is not finite; names: the key of a list of losses -> what to call it."""
    for key, words in names.items():
        lost = [a for a, each in zip(values["alpha"], values.get(key) or (), strict=False) if each is None]
        if lost:
            shown = ", ".join(f"{each:.4g}" for each in lost[:NAMED])
            more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
            tail = " Delta is not given." if any(0 <= each <= 1 for each in lost) else ""
            yield f"{words} is not finite at alpha = {shown}{more}: those places are left out.{tail}"


def on_line(alpha: Floats) -> NDArray[np.bool_]:
    """Tell which places lie between the checkpoints, these among them."""
    return (alpha >= 0) & (alpha <= 1)


def numbers(values: Floats | Sequence[float]) -> list[float | None]:
    """Return plain numbers, None for what is not finite."""
    return [number(each) for each in values]


def number(value: float) -> float | None:
    """Return a plain number, None for what is not finite."""
    return float(value) if np.isfinite(value) else None


def _scalars(alpha: Floats, losses: Floats) -> dict[str, Any]:
    from probes.lines import area, greatest_rise, monotonicity, plateau

    low, high = greatest_rise(losses)
    return {
        "delta": float(monotonicity(losses)),
        "delta_from": float(alpha[low]),
        "delta_to": float(alpha[high]),
        "plateau": plateau(alpha, losses) if losses[0] > 0 else None,
        "area": area(alpha, losses),
    }


def _bands(found: Readings, known: NDArray[np.bool_], inside: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    """Return the 95 % intervals of loss, accuracy and Delta; found: the places that are known."""
    from probes.lines import monotonicity
    from probes.paths import interval, resampled, resamples

    drawn: dict[str, list[Floats]] = {"loss": [], "accuracy": []}
    for block in range(DRAWS // AT_ONCE if known.any() else 0):
        weights = resamples(len(found.counts), seed * DRAWS + block, AT_ONCE)
        drawn["loss"].append(resampled(found.losses, found.counts, weights))
        if found.right is not None:
            drawn["accuracy"].append(resampled(found.right, found.counts, weights))
    values: dict[str, Any] = {"delta_low": None, "delta_high": None}
    for name, blocks in drawn.items():
        ends = interval(np.concatenate(blocks)) if blocks else (None, None)
        for side, end in zip(("low", "high"), ends, strict=True):
            values[f"{name}_{side}"] = None if end is None else numbers(_spread(end, known))
    if known[inside].all() and drawn["loss"]:
        low, high = interval(monotonicity(np.concatenate(drawn["loss"])[:, inside[known]]))
        values |= {"delta_low": float(low), "delta_high": float(high)}
    return values


def _spread(values: Floats, known: NDArray[np.bool_]) -> Floats:
    full = np.full(len(known), np.nan)
    full[known] = values
    return full
