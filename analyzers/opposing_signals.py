"""Which examples pull against one another between two checkpoints of a training run?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from analyzers._base import (
    Analyzer,
    Result,
    Tick,
    micro_batch_option,
    option,
    precision_option,
    seed_option,
    times_option,
)
from probes.errors import DataError
from probes.series import Series, series

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from probes.checkpoint import Checkpoint
    from probes.objective import Objective
    from probes.opposing import Groups

Array = np.ndarray[Any, Any]
NULLS = ("null_cosines", "null_beside", "null_norms")
LOSSES, PAIRS = 0.3, 0.95  # shares of the work by which the losses, and the pairs, are done
OVER_TIME = ("checkpoints", "times", "loss", "loss_rising", "loss_falling")


@dataclass(frozen=True)
class OpposingSignalsResult(Result):
    """The groups of every pair of neighbouring checkpoints, and the examples of one pair."""

    def figures(self, **_view: Any) -> Mapping[str, go.Figure]:
        """Draw "opposition", "loss_change" and "groups"."""
        from analyzers._opposing_figures import change_figure, group_figure, opposition_figure

        return {
            "opposition": opposition_figure(self.card, self.values),
            "loss_change": change_figure(self.card, self.values, self.arrays),
            "groups": group_figure(self.card, self.values),
        }

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return one row for each pair, each example by its change, each checkpoint, and each listed example."""
        import pandas as pd

        values, changes = self.values, self.arrays["changes"]
        order = np.argsort(-changes, kind="stable")
        words = np.array(["rest", "rising", "falling"])[self.arrays["membership"][order]]
        apart = (*OVER_TIME, "pairs", "examples")
        per_pair = {name: each for name, each in values.items() if isinstance(each, list) and name not in apart}
        return {
            "opposition": pd.DataFrame({"pair": values["pairs"], "time": values["times"][:-1], **per_pair}),
            "loss_change": pd.DataFrame({"row": order, "change": changes[order], "group": words}),
            "groups": pd.DataFrame({name: values[name] for name in OVER_TIME}),
            "examples": pd.DataFrame(values["examples"]),
        }


@dataclass(frozen=True)
class OpposingSignals(Analyzer):
    """The examples whose losses change most between checkpoints, and how their gradients lie to one another."""

    name: ClassVar[str] = "opposing_signals"
    title: ClassVar[str] = "Opposing signals"
    question: ClassVar[str] = "Which examples pull against one another between two checkpoints?"
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = OpposingSignalsResult
    series: ClassVar[bool] = True

    group: int = option(
        0,
        "Examples in a group",
        "How many rise or fall most; 0 takes 1 % of the examples, 32 at least and a quarter of all at most.",
        minimum=0,
        maximum=1_000_000,
    )
    null_groups: int = option(
        50, "Random pairs of groups", "Of the same size, to compare with.", minimum=10, maximum=1000
    )
    pair: int = option(
        0,
        "Pair shown in detail",
        "1 is the first two checkpoints in time; 0 takes the last pair.",
        minimum=0,
        maximum=10_000,
    )
    listed: int = option(
        24, "Examples listed", "How many of each group to show with picture or text.", minimum=1, maximum=500
    )
    times: str = times_option()
    dtype: str = precision_option("float64 is slower; take it for very small steps.")
    micro_batch: int = micro_batch_option()
    seed: int = seed_option("The random groups are drawn from it.")

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> OpposingSignalsResult:
        """Compare every two neighbouring checkpoints in time; gradients are taken at the earlier one.

        Raises DataError (fewer than two checkpoints, too few examples) or ObjectiveError (loss not finite).
        """
        from analyzers._opposing_values import doubts, listed, losses_of_groups, membership, pair_values
        from probes.opposing import group_size, groups_of

        over = self._series(checkpoints)
        objective = objective.converted(self.dtype, self.micro_batch)
        size = group_size(len(objective.inputs), self.group)
        run = _Run(objective, tuple(checkpoints[place] for place in over.order), over.order.index(0))
        losses = _losses(run, tick)
        changes = np.diff(losses, axis=0)
        found = [self._opposed(run, pair, each, size, tick) for pair, each in enumerate(changes)]
        detail = (self.pair or len(changes)) - 1
        groups = groups_of(changes[detail], size)
        tick(PAIRS, "examples of the groups")
        examples, pictures = listed(run.at, objective.batches, detail, groups, losses, self.listed)
        values = {
            "checkpoints": [each.name for each in run.checkpoints],
            "times": list(over.times),
            "unit": over.unit,
            "pairs": [f"{one} to {other}" for one, other in pairwise(over.labels)],
            "pair": detail + 1,
            "group_size": size,
            "null_groups": self.null_groups,
            **pair_values(found, changes, size),
            **losses_of_groups(objective, losses, groups),
            **self._over_time(losses, groups, detail),
            "examples": [{**each, "checkpoint": run.checkpoints[detail].name} for each in examples],
        }
        arrays = {"changes": changes[detail], "membership": membership(groups, losses.shape[1]), **pictures}
        arrays |= {name: np.array([each[name] for each in found]) for name in NULLS}
        caveats = (*objective.caveats, *over.doubts, *doubts(over, values, losses.shape[1]))
        card = objective.card() | {"seed": self.seed, "checkpoint": None}
        return OpposingSignalsResult(self.name, card, values, arrays, caveats)

    def _series(self, checkpoints: tuple[Checkpoint, ...]) -> Series:
        count = len(checkpoints)
        if count < 2:
            raise DataError(f"Losses change between two checkpoints or more; there is {count}. Add others of the run.")
        if self.pair >= count:
            raise DataError(f"Pair {self.pair} was asked for, the last is {count - 1}. Give 1 to {count - 1}, or 0.")
        return series(checkpoints, self.times)

    def _opposed(self, run: _Run, pair: int, changes: Array, size: int, tick: Tick) -> Mapping[str, Array]:
        """Return the fields of the `Opposition` of a pair's groups; from an earlier attempt where there is one."""
        from probes.opposing import groups_of, opposition, random_groups

        kept = tick.load(f"pair_{pair}")
        if kept is None:
            width = (PAIRS - LOSSES) / (len(run.checkpoints) - 1)
            said = lambda share, doing: tick(LOSSES + width * (pair + share), f"{doing}, pair {pair + 1}")
            here, there = run.at(pair), run.at(pair + 1)
            step = (there.flat(there.theta) - here.flat(here.theta)).detach()
            null = random_groups(len(changes), size, self.null_groups, (self.seed, pair))
            found = opposition(here, groups_of(changes, size), null, step, said)
            kept = {name: np.asarray(value) for name, value in vars(found).items()}
            tick.save(f"pair_{pair}", kept)
        return kept

    def _over_time(self, losses: Array, groups: Groups, detail: int) -> dict[str, Any]:
        """Correlate the changes of the groups' losses over the other pairs, beside those of random groups."""
        from analyzers._opposing_values import beside
        from probes.opposing import correlation, random_groups

        size = len(groups.rising)
        null = random_groups(losses.shape[1], size, self.null_groups, (self.seed, detail))
        found = correlation(losses, groups, null, detail)
        if found is None:
            return {"correlation": None}
        return {"correlation_changes": found.changes, **beside("correlation", found.value, found.null)}


@dataclass(frozen=True)
class _Run:
    """A training run in the order of time. first: the place of the checkpoint that the objective holds."""

    objective: Objective
    checkpoints: tuple[Checkpoint, ...]
    first: int

    def at(self, time: int) -> Objective:
        """Return the objective at a checkpoint."""
        return self.objective if time == self.first else self.objective.at(self.checkpoints[time])


def _losses(run: _Run, tick: Tick) -> Array:
    """Return the loss of each example at each checkpoint, (T, N)."""
    count, rows = len(run.checkpoints), []
    for time in range(count):
        kept = tick.load(f"losses_{time}")
        if kept is None:
            said = lambda share, _, time=time: tick(LOSSES * (time + share) / count, f"losses, checkpoint {time + 1}")
            kept = {"losses": run.at(time).example_losses(said)}
            tick.save(f"losses_{time}", kept)
        rows.append(kept["losses"])
    return np.array(rows)
