"""How much do the gradients of single examples differ, and what batch and gap does that make?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from probes.series import Series, series

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from probes.checkpoint import Checkpoint
    from probes.gradient_noise import Blocks, Noise
    from probes.objective import Objective

LOSS = 0.1  # share of the work at a checkpoint that its loss takes
ROUGH = 16  # blocks below which a standard error is off by a quarter and more
SEEN = ("loss", "loss_stderr", "accuracy", "accuracy_stderr")


@dataclass(frozen=True)
class GradientStatisticsResult(Result):
    """Norm, covariance and noise scale of the gradient over time, for each layer and for all together."""

    def figures(self, **_view: Any) -> Mapping[str, go.Figure]:
        """Draw "gradient_noise", "layers" and "gap_growth"."""
        from analyzers._gradient_figures import gap_figure, layer_figure, noise_figure

        return {
            "gradient_noise": noise_figure(self.card, self.values),
            "layers": layer_figure(self.card, self.values),
            "gap_growth": gap_figure(self.card, self.values),
        }

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return one row for each checkpoint, and one for each layer at each checkpoint."""
        import pandas as pd

        values = self.values
        head = {name: values[name] for name in ("checkpoints", "times")}
        lists = {name: each for name, each in values.items() if isinstance(each, list) and name not in head}
        rows = [
            pd.DataFrame(
                {"layer": name, **head, **{key: each for key, each in layer.items() if isinstance(each, list)}}
            )
            for name, layer in values["layers"].items()
        ]
        gap = {name: values[name] for name in ("gap_growth", "gap_growth_stderr")}
        return {
            "gradient_noise": pd.DataFrame(head | lists),
            "layers": pd.concat(rows, ignore_index=True),
            "gap_growth": pd.DataFrame(head | gap),
        }


@dataclass(frozen=True)
class GradientStatistics(Analyzer):
    """Mean and covariance of the gradients of single examples, and what follows for the batch and the gap."""

    name: ClassVar[str] = "gradient_statistics"
    title: ClassVar[str] = "Gradient statistics"
    question: ClassVar[str] = "How much do the gradients of single examples differ, and what batch does that call for?"
    version: ClassVar[int] = 1
    result: ClassVar[type[Result]] = GradientStatisticsResult
    series: ClassVar[bool] = True

    method: str = option(
        "ghost",
        "Taken from",
        "ghost: the norm of each example's gradient; batches: the gradients of small and large batches, cheaper and "
        "with larger errors.",
        choices=("ghost", "batches"),
    )
    theta: float = option(
        1.0,
        "θ of the norm test",
        "A batch is adequate when the noise in its gradient is at most θ times the gradient.",
        minimum=0.01,
        maximum=100.0,
    )
    learning_rate: float = option(
        0.0,
        "Learning rate",
        "For the growth of the gap; 0 gives it per unit of learning rate.",
        minimum=0.0,
        maximum=1e6,
    )
    training_examples: int = option(
        0,
        "Training examples",
        "How many the network is trained on, for the growth of the gap; 0 takes the number of those given.",
        minimum=0,
        maximum=10**12,
    )
    blocks: int = option(
        64,
        "Random blocks",
        "The examples are dealt into so many blocks: their spread gives the standard errors, and is what the method "
        "batches measures.",
        minimum=4,
        maximum=4096,
        advanced=True,
    )
    times: str = times_option()
    dtype: str = precision_option("float64 is slower.", advanced=True)
    micro_batch: int = micro_batch_option()
    seed: int = seed_option("The blocks are drawn from it.")

    def run(self, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> GradientStatisticsResult:
        """Measure at each checkpoint, in the order of time.

        Raises DataError (too few examples), ObjectiveError (loss or gradient not finite, out of memory).
        """
        from probes.gradient_noise import layers_of, noise

        over = series(checkpoints, self.times)
        objective = objective.converted(self.dtype, self.micro_batch)
        layers, count = layers_of(objective.names), len(over.order)
        losses, blocks = [], []
        for time, place in enumerate(over.order):
            said = lambda share, doing, time=time: tick((time + share) / count, f"{doing}, {over.labels[time]}")
            at = lambda place=place: objective if place == 0 else objective.at(checkpoints[place])
            loss, found = self._measured(at, time, said, tick)
            losses.append(loss)
            blocks.append(found)
        training = self.training_examples or len(objective.inputs)
        row = lambda found: self._row(found, training)
        values = {
            "checkpoints": [checkpoints[place].name for place in over.order],
            "times": list(over.times),
            "unit": over.unit,
            "blocks": len(blocks[0].sizes),
            **self._asked(training),
            **_lists(losses),
            **_lists([row(noise(each)) for each in blocks]),
            "layers": {
                name: {
                    "parameters": _size(objective, columns),
                    **_lists([row(noise(each, columns)) for each in blocks]),
                }
                for name, columns in layers.items()
            },
        }
        doubts = dict.fromkeys(doubt for each in blocks for doubt in each.doubts)
        caveats = (*objective.caveats, *over.doubts, *doubts, *_doubts(over, values, self.training_examples))
        card = objective.card() | {"seed": self.seed, "checkpoint": None}
        return GradientStatisticsResult(self.name, card, values, {}, caveats)

    def _asked(self, training: int) -> dict[str, Any]:
        rate = self.learning_rate or None
        return {"method": self.method, "theta": self.theta, "learning_rate": rate, "training_examples": training}

    def _measured(
        self, at: Callable[[], Objective], time: int, said: Callable[[float, str], None], tick: Tick
    ) -> tuple[Mapping[str, float | None], Blocks]:
        """Return loss and blocks of a checkpoint; from an earlier attempt where there are some."""
        from probes.gradient_noise import Blocks, gradient_blocks

        kept = tick.load(f"checkpoint_{time}")
        if kept is None:
            objective, ghost = at(), self.method == "ghost"
            seen = objective.evaluate(lambda share, doing: said(LOSS * share, doing))
            further = lambda share, doing: said(LOSS + (1 - LOSS) * share, doing)
            found = gradient_blocks(objective, self.blocks, ghost=ghost, seed=self.seed, tick=further)
            kept = {name: np.array(each) for name, each in vars(found).items() if each is not None}
            numbers = [getattr(seen, name) for name in SEEN]
            kept |= {"seen": np.array([math.nan if each is None else each for each in numbers])}
            tick.save(f"checkpoint_{time}", kept)
        again = {name: kept[name] for name in ("sizes", "norms", "dots", "halves")}
        blocks = Blocks(**again, squares=kept.get("squares"), doubts=tuple(map(str, kept["doubts"])))
        return dict(zip(SEEN, map(_finite, kept["seen"]), strict=True)), blocks

    def _row(self, found: Noise, training: int) -> dict[str, float | None]:
        """Return what is kept of some parameters at a checkpoint, each with its standard error."""
        squared, trace, scale = found.squared, found.trace, found.scale
        norm = math.sqrt(squared.value) if squared.value > 0 else None
        rate, batch = (self.learning_rate or 1.0) / training, self.theta**-2
        return {
            "gradient_norm": norm,
            "gradient_norm_stderr": squared.stderr / (2 * norm) if norm else None,
            "gradient_norm_raw": math.sqrt(found.raw),
            "gradient_squared": squared.value,
            "gradient_squared_stderr": squared.stderr,
            "covariance_trace": trace.value,
            "covariance_trace_stderr": trace.stderr,
            "noise_scale": scale.value if scale else None,
            "noise_scale_stderr": scale.stderr if scale else None,
            "noise_scale_at_least": found.scale_at_least,
            "adequate_batch_at_least": batch * found.scale_at_least if found.scale_at_least else None,
            "adequate_batch": batch * scale.value if scale else None,
            "adequate_batch_stderr": batch * scale.stderr if scale else None,
            "gap_growth": rate * trace.value,
            "gap_growth_stderr": rate * trace.stderr,
            "half_cosine": found.half_cosine,
        }


def _lists(rows: Sequence[Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _size(objective: Objective, columns: Sequence[int]) -> int:
    return sum(objective.theta[column].numel() for column in columns)


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _doubts(over: Series, values: Mapping[str, Any], typed: int) -> list[str]:
    """Say what these numbers cannot tell; typed: the number of training examples as the user gave it."""
    found = [
        "The growth of the gap holds to first order, for parameters that do not depend on which examples were drawn: "
        "early in training, or for examples that the network was not trained on. For examples that it has fitted it "
        "is no prediction."
    ]
    if not typed:
        count = values["training_examples"]
        found.append(f"The growth of the gap is for {count} training examples, the number given: type the real one.")
    lost = [label for label, each in zip(over.labels, values["noise_scale"], strict=True) if each is None]
    if lost:
        found.append(
            f"At {', '.join(lost)} the gradient does not stand out of its own noise: noise scale and adequate batch "
            "have only a lower bound. More examples would tell."
        )
    if values["blocks"] < ROUGH:
        found.append(f"The standard errors come from {values['blocks']} blocks and are themselves rough.")
    return found
