"""The registry: every method behind one interface, what it promises, and why it cannot run where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from probes.attribution.errors import AttributionError
from probes.attribution.validity import badge_of

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.attribution.maps import Map

Family = Literal[
    "gradient", "backprop", "cam", "perturbation", "decomposition", "mask", "attention", "layer"
]  # fmt: skip
Tick = Callable[[float, str], None]
MODULES = (
    "gradients", "smoothing", "backprop", "cam", "lrp", "perturbation", "shapley", "lime", "rise", "fullgrad",
    "extremal", "attention", "layers",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What the user chooses; each method reads what concerns it.

    baseline: a name of `baselines` or "auto". steps: of a path, to begin with. tolerance: the completeness error (or
    relative standard error) that is asked. samples, noise: of sampling; noise as a share of the example's range.
    window: of occlusion, cells and spans, in pixels or tokens, 0 chooses. layer: "" chooses. over: the inner method of
    smoothing; of methods that replace parts, what is replaced together ("cells" or "regions" of an image, "columns" or
    "groups" of a table, "tokens" or "words" of a text), "" chooses. areas, smoothness, iterations: of extremal masks:
    shares of the image, the width of a spot in 32nds of its shorter side, steps of the search.
    """

    baseline: str = "auto"
    steps: int = 32
    tolerance: float = 1e-3
    samples: int = 25
    noise: float = 0.15
    window: int = 0
    layer: str = ""
    areas: tuple[float, ...] = (0.05, 0.1, 0.2)
    seed: int = 0
    over: str = ""
    smoothness: float = 3.0
    iterations: int = 120


def runs_on_all(case: Case) -> str | None:  # noqa: ARG001  the form of every `refuse`
    """Refuse nothing."""
    return None


@dataclass(frozen=True)
class Method:
    """One method. name: in code and results; title: for people. See `Map` for signed, complete and sampled."""

    name: str
    title: str
    family: Family
    run: Callable[[Case, Settings, Tick], Map]
    signed: bool = True
    complete: bool = False
    sampled: bool = False
    refuse: Callable[[Case], str | None] = runs_on_all


def methods() -> Mapping[str, Method]:
    """Return every method by its name: the METHODS of each module, in their order."""
    found: dict[str, Method] = {}
    for name in MODULES:
        for each in _methods_of(name):
            if each.name in found:
                raise ValueError(f"two methods are called {each.name!r}")
            found[each.name] = each
    return found


def attribute(case: Case, name: str, settings: Settings | None = None, tick: Tick = lambda *_: None) -> Map:
    """Run a method on a case and judge its map; raise AttributionError, in words, where it cannot run."""
    method = methods().get(name)
    if method is None:
        raise AttributionError(f"There is no method {name!r}; choose one of {', '.join(methods())}.")
    reason = method.refuse(case)
    if reason:
        raise AttributionError(reason)
    from probes.strict import strict

    with strict(case.module, order=1):
        found = method.run(case, settings or Settings(), tick)
        return replace(found, badge=badge_of(case, found))


def _methods_of(name: str) -> tuple[Method, ...]:
    return tuple(import_module(f"probes.attribution.{name}").METHODS)
