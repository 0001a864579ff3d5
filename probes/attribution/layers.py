"""Attributions of the units of an inner layer, shown on the input where they lie: on patches, on tokens, on features.

Layer and neuron conductance: Dhamdhere, Sundararajan and Yan (2019). Integrated gradients of a layer: the path runs
straight between the layer's outputs for the baseline and for the example (Captum's LayerIntegratedGradients).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.attribution.baselines import default_baseline
from probes.attribution.errors import AttributionError
from probes.attribution.gradients import integrated_gradients, references_of
from probes.attribution.integration import LOOSE
from probes.attribution.layer_outputs import Layer, cuts, evaluated, layer_of, layers_of
from probes.attribution.layer_paths import conductance, inner_case, through
from probes.attribution.layer_places import spread
from probes.attribution.maps import Map, completeness_error, make_map
from probes.attribution.methods import Method, Settings, Tick

if TYPE_CHECKING:
    from probes.attribution.case import Case

_TRIED = 24  # layers that are asked whether they cut the net, at most
_REACHED = 0.5


@dataclass(frozen=True)
class _Found:
    """The attribution of a layer's entries (1, ...), the totals of its units (K,) and what it cost."""

    values: Tensor
    units: Tensor
    evaluations: int
    change: float = float("nan")


def unit_layers(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the layers whose units can be looked at, with the shapes of their outputs, in the order they run in."""
    return {each.name: each.shape for each in layers_of(case).values() if each.calls == 1 and each.reached > 0}


def default_unit_layer(case: Case, *, placed: bool = False) -> str:
    """Return the latest layer with places that the gradient reaches at more than half of them, one that cuts the net
    if there is any; of models without such layers the last before the outputs.

    placed: only layers with places will do. Raises AttributionError where there is none.
    """
    known = [each for each in layers_of(case).values() if each.calls == 1 and not each.inner]
    found = [each.name for each in known if each.layout and each.reached > _REACHED][::-1]
    flat = [] if placed else [each.name for each in known if each.reached > 0 and len(each.shape) == 2][::-1]
    names = found or flat[1:] or flat
    if not names:
        raise AttributionError(
            "No layer that runs once gives tokens or a picture that the score depends on; choose integrated_gradients."
        )
    return next((name for name in islice(names, _TRIED) if cuts(case, name)), names[0])


def layer_conductance(case: Case, name: str, references: Tensor, settings: Settings) -> _Found:
    """Return the conductance of a layer, averaged over references (R, ...)."""
    closed = case.once(("cuts", name), lambda: cuts(case, name))
    flows = [
        conductance(case, name, each, settings.steps, settings.tolerance, closed=closed) for each in references.split(1)
    ]
    values = torch.cat([each.values for each in flows]).mean(0, keepdim=True)
    spent, change = sum(each.evaluations for each in flows), max(each.change for each in flows)
    return _Found(values, _units(layer_of(case, name), values), spent, change)


def neuron_conductance(case: Case, name: str, references: Tensor, settings: Settings, pick: Tensor | None) -> _Found:
    """Return what each feature gives to the score through a layer's units that pick (...) marks; None: through all."""
    flows = [through(case, name, each, settings.steps, settings.tolerance, pick) for each in references.split(1)]
    values = torch.cat([each.values for each in flows]).mean(0, keepdim=True)
    spent, change = sum(each.evaluations for each in flows), max(each.change for each in flows)
    return _Found(values, values.sum()[None], spent, change)


def _run_conductance(case: Case, settings: Settings, tick: Tick) -> Map:
    _check(settings)
    layer = layer_of(case, settings.layer or default_unit_layer(case))
    references = references_of(case, settings.baseline, settings.seed)
    found = layer_conductance(case, layer.name, references, settings)
    tick(0.5, f"conductance of {layer.name}")
    closed = case.once(("cuts", layer.name), lambda: cuts(case, layer.name))
    about = {**_told(case, settings, layer, found), "cuts": closed}
    notes = () if closed else (_BESIDE.format(layer.name), *_unsettled(found, settings.tolerance))
    if layer.layout is not None:
        return _placed(case, "layer_conductance", layer, found, references, about, notes, complete=closed)
    passed, spent = _passed(case, layer.name, references, settings, tick, closed=closed)
    about["evaluations"] = found.evaluations + spent
    score = _mean_score(case, references)
    return make_map(case, "layer_conductance", passed, complete=closed, baseline_score=score, about=about,
                    notes=(*notes, _FLAT))  # fmt: skip


def _passed(
    case: Case, name: str, references: Tensor, settings: Settings, tick: Tick, *, closed: bool
) -> tuple[Tensor, int]:
    """Return what each feature gives through all units of a layer, and the gradients spent."""
    if closed:  # all that there is
        path = integrated_gradients(case, references, settings.steps, settings.tolerance, tick)
        return path.values, path.evaluations
    found = neuron_conductance(case, name, references, settings, None)
    return found.values, found.evaluations


def _run_integrated(case: Case, settings: Settings, tick: Tick) -> Map:
    layer = layer_of(case, settings.layer or default_unit_layer(case, placed=True))
    if layer.layout is None:
        raise AttributionError(
            f"The layer {layer.name!r} gives {layer.shape}, which has no places on the input; choose one that has, or "
            "layer_conductance, which follows every layer back to the features."
        )
    references = references_of(case, settings.baseline, settings.seed)
    starts = torch.cat([evaluated(case, layer.name, each)[0] for each in references.split(1)])
    inner = inner_case(case, layer.name)
    path = integrated_gradients(inner, starts, settings.steps, settings.tolerance, tick)
    found = _Found(path.values, _units(layer, path.values), path.evaluations)
    about = {**_told(case, settings, layer, found), "steps": path.steps}
    made = _placed(case, "layer_integrated_gradients", layer, found, references, about, (), complete=False)
    error = completeness_error(float(path.values.sum()), case.score, path.baseline_score)
    return replace(made, completeness_error=error, baseline_score=path.baseline_score)


def _run_neuron(case: Case, settings: Settings, tick: Tick) -> Map:
    _check(settings)
    name, unit = _named(case, settings.layer)
    layer = layer_of(case, name or default_unit_layer(case))
    references = references_of(case, settings.baseline, settings.seed)
    about: dict[str, Any] = {}
    if not unit:
        units = layer_conductance(case, layer.name, references, settings).units
        unit = str(int(units.abs().argmax()))
        about["chosen"] = "the unit of the largest conductance"
        tick(0.5, f"unit {unit} of {layer.name}")
    found = neuron_conductance(case, layer.name, references, settings, _pick(case, layer, unit))
    if not bool(found.values.any()):
        raise AttributionError(
            f"Nothing flows from the features through the unit {unit} of the layer {layer.name!r} to the score, all "
            "along the path from the baseline; choose another unit, or layer_conductance, which lists them all."
        )
    about |= {**_told(case, settings, layer, found), "unit": unit}
    score = _mean_score(case, references)
    note = f"Only what passes through the unit {unit} of the layer {layer.name!r}, not all of the score."
    notes = (note, *_unsettled(found, settings.tolerance))
    return make_map(case, "neuron_conductance", found.values, baseline_score=score, about=about, notes=notes)


def _unsettled(found: _Found, tolerance: float) -> tuple[str, ...]:
    if not found.change > LOOSE * tolerance:
        return ()
    return (
        f"After {found.evaluations} evaluations of the path the values are still sure to {found.change:.2g} of their "
        f"size only (asked: {LOOSE * tolerance:.2g}).",
    )


def _placed(
    case: Case, method: str, layer: Layer, found: _Found, references: Tensor, about: dict[str, Any],
    notes: tuple[str, ...], *, complete: bool,
) -> Map:  # fmt: skip
    """Make the map of a layer that has places: amounts spread over their pixels, or one for each token."""
    if layer.layout is None:
        raise ValueError(f"layer {layer.name!r} has no places")
    placed = layer.layout.laid(found.values)[0].sum(0)
    if case.kind == "image":
        height, width = case.shape[-2:]
        about = {**about, "grid": list(layer.layout.grid), "outside": float(found.values.sum() - placed.sum())}
        placed = spread(placed, (height, width))
    score = _mean_score(case, references)
    made = make_map(case, method, placed, baseline_score=score, about=about, notes=notes)
    error = completeness_error(float(found.values.sum()), case.score, score) if complete else None
    return replace(made, completeness_error=error)


def _mean_score(case: Case, references: Tensor) -> float:
    return float(case.in_chunks(references).double().mean())


def _units(layer: Layer, values: Tensor) -> Tensor:
    return layer.layout.units(values)[0] if layer.layout else values[0].flatten()


def _told(case: Case, settings: Settings, layer: Layer, found: _Found) -> dict[str, Any]:
    name = default_baseline(case) if settings.baseline == "auto" else settings.baseline
    said = {"layer": layer.name, "layer_shape": list(layer.shape[1:]), "units": found.units.tolist()}
    told = {**said, "baseline": name, "seed": settings.seed, "tolerance": settings.tolerance}
    change = {} if found.change != found.change else {"change": found.change}
    return {**told, **change, "evaluations": found.evaluations}


def _named(case: Case, asked: str) -> tuple[str, str]:
    """Split "name:3" into the layer and its unit."""
    name, colon, unit = asked.rpartition(":")
    if not colon:
        return asked, ""
    if not all(each.strip().isdigit() for each in unit.split(",")):
        raise AttributionError(
            f"The unit {unit[:40]!r} is no number; write layer:unit, such as {default_unit_layer(case)}:0."
        )
    return name, unit


def _pick(case: Case, layer: Layer, unit: str) -> Tensor:
    """Mark a unit at all places ("3": a channel), or one entry of the output ("3,1,2")."""
    pick = torch.zeros(layer.shape, dtype=case.features.dtype, device=case.features.device)
    at = tuple(int(each) for each in unit.split(","))
    if len(at) == 1:
        units = layer.layout.units(pick).shape[1] if layer.layout else pick.numel()
        chosen = pick.movedim(1 if layer.layout.kind == "channels first" else -1, -1) if layer.layout else pick.view(-1)
        if at[0] < units:
            chosen[..., at[0]] = 1
            return pick
    elif len(at) == pick.ndim - 1 and all(one < size for one, size in zip(at, layer.shape[1:], strict=True)):
        pick[(0, *at)] = 1
        return pick
    raise AttributionError(
        f"The layer {layer.name!r} gives {layer.shape[1:]} and has no unit {unit}; give the number of a channel or of "
        "an entry, counted from 0."
    )


def _check(settings: Settings) -> None:
    if settings.steps < 1:
        raise AttributionError(f"Conductance was asked for with {settings.steps} steps; give 1 or more.")


def _refuse_tables(case: Case) -> str | None:
    if case.kind != "table":
        return None
    return (
        "The units of a layer have no place in a row of a table; choose layer_conductance or neuron_conductance, which "
        "follow them back to the columns."
    )


_BESIDE = (
    "Paths beside the layer {0!r} lead to the score as well (as in a residual block), so its conductance does not add "
    "up to the difference of the scores."
)
_FLAT = (
    "The layer's units have no places on the input: the map shows what each feature gives through all of them (where "
    "the layer cuts the net, integrated gradients); the units' own totals are told beside it."
)
METHODS = (
    Method("layer_conductance", "Layer conductance", "layer", _run_conductance, complete=True),
    Method("layer_integrated_gradients", "Integrated gradients of a layer", "layer", _run_integrated, complete=True,
           refuse=_refuse_tables),
    Method("neuron_conductance", "Neuron conductance", "layer", _run_neuron),
)  # fmt: skip
