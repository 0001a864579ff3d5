"""What has been measured of the training run on the bench, by analysis, and the questions that would fill the holes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analyzers import catalogue
from analyzers._run_figures import Curve, Panel
from probes.errors import ProbeError
from probes.series import series
from ui.questions import inspection, name_of
from ui.ready import Laid, Ready
from ui.runs import history, question
from ui.state import answer, answer_of
from ui.timeline import Named, Timeline
from workspace.jobs import Job, JobSpec

Values = Mapping[str, Any]
Point = Mapping[str, tuple[float | None, float | None]]  # quantity -> value and error
LOSS, ACCURACY, TOP, TRACE, NOISE = "loss", "accuracy", "largest eigenvalue", "trace", "noise scale"
PUBLISHED = ("mean alignment", "GWA")
EXACT = ("mean alignment without rounding", "GWA without rounding")


@dataclass(frozen=True)
class Part:
    """One analysis of the run. found: checkpoint -> what was measured there; asked: what would measure the rest.

    why: why the rest cannot be measured now, as raw text; "" where it can.
    """

    title: str
    found: Mapping[str, Point]
    asked: tuple[JobSpec, ...]
    why: str = ""

    def values(self, line: Timeline, name: str) -> tuple[float | None, ...]:
        """Return one quantity in the order of time, None where it has not been measured."""
        return tuple(self.found.get(text, {}).get(name, (None, None))[0] for text in line.checkpoints)

    def curve(self, line: Timeline, name: str, factor: float = 1.0) -> Curve:
        """Return one quantity over time, times a factor."""
        pairs = [self.found.get(text, {}).get(name, (None, None)) for text in line.checkpoints]
        values = tuple(None if value is None else factor * value for value, _ in pairs)
        return Curve(name, values, tuple(None if error is None else factor * error for _, error in pairs))


def gates(what: Ready | str, line: Timeline) -> Part:
    """Return loss and accuracy, from the gate at each checkpoint."""
    title = "Loss and accuracy"
    if isinstance(what, str):
        return Part(title, {}, (), what)
    found = {text: answer(what.gate(text)) for text in line.checkpoints}
    points = {
        text: {name: (_number(each.get(name)), _number(each.get(f"{name}_stderr"))) for name in (LOSS, ACCURACY)}
        for text, each in found.items()
        if each
    }
    return Part(title, points, tuple(what.gate(text) for text in line.checkpoints if text not in points))


def spectra(what: Ready | str, line: Timeline) -> Part:
    """Return the largest eigenvalue and the trace of the Hessian: with the usual options, else of any finished run."""
    analyzer = catalogue()["hessian_spectrum"]
    if isinstance(what, str):
        return Part(analyzer.title, {}, (), what)
    specs = {text: question(analyzer(), what, [text]) for text in line.checkpoints}
    points = {}
    for text, spec in specs.items():
        same = (job.id for job in history(analyzer) if job.state == "done" and _same(job, spec, [text]))
        found = answer(spec) or next(filter(None, map(answer_of, same)), None)
        if found:
            points[text] = _ends(found["values"])
    return Part(analyzer.title, points, tuple(spec for text, spec in specs.items() if text not in points))


def of_series(name: str, what: Laid | str, line: Timeline) -> Part:
    """Return what an analyzer of series has measured: of the whole run, else of as many of its checkpoints as any."""
    analyzer = catalogue()[name]
    if isinstance(what, str):
        return Part(analyzer.title, {}, (), what)
    options: dict[str, Any] = {"times": line.typed}
    spec = question(analyzer(**options), what, line.checkpoints)
    if found := answer(spec):
        return Part(analyzer.title, _over_time(name, found["values"], line.checkpoints), ())
    runs = [job for job in history(analyzer) if job.state == "done" and _same(job, spec, line.checkpoints)]
    longest = max(runs, key=lambda job: len(job.payload["checkpoints"]), default=None)
    earlier = answer_of(longest.id) if longest else None
    if longest is None or earlier is None:
        return Part(analyzer.title, {}, (spec,))
    points = _over_time(name, earlier["values"], in_time(longest, earlier["values"]["checkpoints"]))
    return Part(analyzer.title, points, () if len(points) == len(line.checkpoints) else (spec,))


def panels(parts: Mapping[str, Part], line: Timeline, rates: Sequence[float]) -> list[Panel]:
    """Return all that can be drawn; rates: the learning rate at each checkpoint, () where it is not known."""
    curve = lambda part, name, factor=1.0: parts[part].curve(line, name, factor)
    edge = Curve("2 / learning rate", tuple(2 / each for each in rates), (), "mark") if rates else None
    top = curve("hessian_spectrum", TOP)
    alignment = tuple(curve("gradient_alignment", each) for each in (*PUBLISHED, *EXACT))
    bound = replace(curve("gradient_statistics", f"{NOISE} at least"), kind="bound")
    return [
        Panel("Loss", (curve("gate", LOSS),)),
        Panel("Accuracy (%)", (curve("gate", ACCURACY, 100),), is_linear=True),
        Panel("Rotation 1 − cos,<br>mean over layers", (curve("layer_rotation", "mean rotation"),), is_linear=True),
        Panel("Alignment", alignment, is_linear=True),
        Panel("Largest λ<br>(loss / parameter²)", (top, edge) if edge else (top,)),
        Panel("Trace of H<br>(loss / parameter²)", (curve("hessian_spectrum", TRACE),)),
        Panel("Noise scale<br>(examples)", (curve("gradient_statistics", NOISE), bound)),
    ]


def _same(job: Job, spec: JobSpec, checkpoints: Sequence[str]) -> bool:
    """Tell whether a run asked about these checkpoints, or some of them, with the same model, data and loss."""
    alike = all(job.payload.get(each) == spec.payload.get(each) for each in ("version", "model", "data", "loss"))
    return alike and set(job.payload["checkpoints"]) <= set(checkpoints)


def in_time(job: Job, names: Sequence[str]) -> tuple[str, ...]:
    """Return the checkpoints of a run in the order in which its result has them; () where that is not known.

    names: of the files, in the order of the result.
    """
    texts = tuple(job.payload["checkpoints"])
    by_name = {name_of(text): text for text in texts}
    if len(by_name) == len(texts) and set(by_name) == set(names):
        return tuple(by_name[name] for name in names)
    known = [answer(inspection(text)) for text in texts]
    given = [Named(str(each["name"]), each["facts"]) for each in known if each]
    try:
        order = series(given, job.payload["options"]["times"]).order
    except ProbeError:
        return ()
    return tuple(texts[place] for place in order) if len(order) == len(texts) else ()


def _over_time(name: str, values: Values, checkpoints: Sequence[str]) -> dict[str, Point]:
    return {text: READERS[name](values, place) for place, text in enumerate(checkpoints)}


def _ends(values: Values) -> Point:
    top = (next(iter(values["eigenvalues"]), None), next(iter(values["eigenvalue_residuals"]), None))
    return {TOP: top, TRACE: (_number(values.get("trace")), _number(values.get("trace_stderr")))}


def _rotation(values: Values, place: int) -> Point:
    return {"mean rotation": (_at(values, "mean_rotation", place), None)}


def _alignment(values: Values, place: int) -> Point:
    """Return mean and GWA as published, and where rounding moves them what they are without it."""
    point = {}
    for prefix, names in (("", PUBLISHED), *((("exact_", EXACT),) if any(values.get("rounded", ())) else ())):
        undefined = bool(values[f"{prefix}gwa_undefined"][place])
        point[names[0]] = _pair(values, f"{prefix}mean", place)
        point[names[1]] = (None, None) if undefined else _pair(values, f"{prefix}gwa", place)
    return point


def _noise(values: Values, place: int) -> Point:
    least = _at(values, "noise_scale_at_least", place) if _at(values, "noise_scale", place) is None else None
    return {NOISE: _pair(values, "noise_scale", place), f"{NOISE} at least": (least, None)}


def _pair(values: Values, name: str, place: int) -> tuple[float | None, float | None]:
    return _at(values, name, place), _at(values, f"{name}_stderr", place)


def _at(values: Values, name: str, place: int) -> float | None:
    return _number(values[name][place]) if values.get(name) else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


READERS: Mapping[str, Callable[[Values, int], Point]] = {
    "layer_rotation": _rotation,
    "gradient_alignment": _alignment,
    "gradient_statistics": _noise,
}
