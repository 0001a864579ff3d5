"""The steps of mode connectivity in their order: check the permutations, match, measure lines, repair, judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from analyzers import _connectivity_asked as asked
from analyzers import _connectivity_ways as ways
from analyzers._base import Tick
from analyzers._connectivity_dropout import dropout
from analyzers._connectivity_matching import CHOSEN_BY_LOSS, match
from analyzers._connectivity_run import Both, Reports, Run, part_of
from analyzers._connectivity_values import number, numbers, put_line, reduction, stage_of
from probes.errors import DataError
from probes.objective import Objective
from probes.paths import Floats
from probes.permutations import PermutationSpec, rows_of
from probes.points import Point, point_of
from probes.verdict import DEFINITIONS, Grounds, threshold_of, verdict

if TYPE_CHECKING:
    from analyzers.mode_connectivity import ModeConnectivity, ModeConnectivityResult
    from probes.checkpoint import Checkpoint

Step = Callable[[Run, Reports], None]


def steps(
    options: ModeConnectivity, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick
) -> ModeConnectivityResult:
    """Take all steps that the options ask for; after each of them what is known so far is shown."""
    run = begun(options, objective, checkpoints, tick)
    todo = _plan(run)
    total, done = sum(weight for _, weight in todo), 0.0
    for step, weight in todo:
        step(run, part_of(tick, done / total, (done + weight) / total))
        done += weight
        _judge(run)
        tick(done / total, "so far")
        tick.show(_result(run))
    return _result(run)


def begun(options: ModeConnectivity, objective: Objective, checkpoints: tuple[Checkpoint, ...], tick: Tick) -> Run:
    """Put the pair into the dtype of the options and find its permutations; raise DataError or ModelError."""
    if len(checkpoints) < 2:
        raise DataError("Mode connectivity compares two checkpoints; choose a second one.")
    objective = objective.converted(options.dtype, options.micro_batch)
    other = objective.at(checkpoints[1])
    spec = specification_of(options, objective)
    run = Run(options, objective, checkpoints, spec, point_of(objective), point_of(other), tick)
    run.doubt(*objective.caveats, *spec.notes)
    _begin(run)
    return run


def specification_of(options: ModeConnectivity, objective: Objective) -> PermutationSpec:
    """Return the permutations as they were written down, or as the model gives them; raise ModelError."""
    from probes.specifications import from_text, specification

    text = options.specification.strip()
    return from_text(text, objective) if text else specification(objective)


def _begin(run: Run) -> None:
    from probes.specifications import as_text

    treatment = run.options.batch_norm if run.normalises else "none"
    run.values |= {
        "checkpoints": [each.name for each in run.checkpoints],
        "examples": len(run.objective.inputs),
        "test_examples": len(run.test.inputs) if run.test else None,
        "batch_norm": treatment,
        "definition": run.options.definition,
        "lambda": numbers(run.lambdas),
        "specification": as_text(run.spec),
        "specification_source": run.spec.source,
        "specification_notes": list(run.spec.notes),
        "specification_rows": rows_of(run.spec),
        "units": {each.name: each.size for each in run.spec},
    }


def _plan(run: Run) -> list[tuple[Step, float]]:
    """List the steps that are asked for, each with its share of the work."""
    asked_for = run.options
    several = len(run.checkpoints) > 2
    pairs = len(run.checkpoints) * (len(run.checkpoints) - 1) / 2
    plan: list[tuple[Step, float, bool]] = [
        (match, 20.0, True),
        (_lines, 2.0 * len(run.lambdas), True),
        (_repaired, 2.0 * len(run.lambdas), asked_for.repair),
        (asked.layers, 10.0, True),
        (asked.controls, 10.0, asked_for.controls),
        (asked.layer_barriers_step, 40.0, asked_for.layer_barriers),
        (dropout, 60.0, asked_for.dropout_draws > 0),
        (_soups, 20.0 * len(run.checkpoints), asked_for.soup),
        (ways.matrix, 25.0 * pairs, several),
        (ways.curve, 200.0, asked_for.curve != "none"),
    ]
    return [(step, weight) for step, weight, wanted in plan if wanted]


def _lines(run: Run, tick: Reports) -> None:
    """Read the straight lines to the second as it is and as permuted, with BatchNorm both ways where there is one."""
    ways = (("naive", run.b, "line as they are"), ("matched", run.matched, "line after matching"))
    count = 2 * len(ways) if run.anew else len(ways)
    for place, (stage, other, words) in enumerate(ways):
        part = part_of(tick, place / count, (place + 1) / count)
        put_stage(run, stage, run.line(f"line_{stage}", (run.a, other), run.lambdas, part, words))
    for place, (stage, other, words) in enumerate(ways if run.anew else (), len(ways)):
        part, words = part_of(tick, place / count, (place + 1) / count), f"{words}, statistics as interpolated"
        both = run.line(f"uncorrected_{stage}", (run.a, other), run.lambdas, part, words, anew=False, tested=False)
        put_line(run.values.setdefault("uncorrected", {}), stage, both.data, run.lambdas, run.weights)
    _ends(run)


def put_stage(run: Run, stage: str, both: Both) -> None:
    """Write a line's numbers into the values and, for the differences, keep it."""
    run.lines[stage] = both
    put_line(run.values, stage, both.data, run.lambdas, run.weights)
    if both.test is not None:
        put_line(run.values, stage, both.test, run.lambdas, run.test_weights, "test_")
    if stage != "naive":
        found = reduction(run.lines["naive"].data, both.data, run.weights)
        run.values.setdefault("reduction", {})[stage] = found


def _ends(run: Run) -> None:
    """Set the threshold by the losses of the ends and of chance."""
    losses = [run.values["loss"]["naive"][place] for place in (0, -1)]
    if None in losses:
        raise DataError("The loss of one of the two checkpoints is not finite; choose others.")
    chance = asked.chance_loss(run)
    limit = threshold_of(losses, chance, run.options.threshold)
    run.values |= {
        "threshold": limit.value, "threshold_share": run.options.threshold, "threshold_words": limit.words,
        "chance_loss": number(chance), "ends": {"loss": losses},
    }  # fmt: skip
    run.doubt(limit.doubt)
    gap = abs(losses[0] - losses[1]) / 2
    if gap > limit.value and run.options.definition != "entezari":
        run.doubt(
            f"The two differ in loss ({losses[0]:.4g} and {losses[1]:.4g}): above the mean of the ends the barrier is "
            f"{gap:.3g} at least, whatever lies between. The definition entezari measures from the line between them."
        )


def _repaired(run: Run, tick: Reports) -> None:
    """Read the line to the permuted second with REPAIR at every point; half-way without matching, too, as a control."""
    from probes.layer_moments import moments_at
    from probes.repair import repaired

    of_first = moments_at(run.objective, run.a)

    def line(other: Point, lambdas: Floats, part: Reports) -> Both:
        ends, notes = (of_first, moments_at(run.objective, other)), dict[str, None]()

        def point(share: float) -> Point:
            found = repaired(run.objective, run.a, other, share, moments=ends)
            notes.update(dict.fromkeys(found.notes))
            run.middle = found.point if share == 0.5 and other is not run.b else run.middle
            return found.point

        both = run.read(map(point, lambdas.tolist()), len(lambdas), part, "line with REPAIR", anew=False)
        run.doubt(*(f"REPAIR: {each}" for each in notes))
        return both

    put_stage(
        run, "repaired", run.kept("line_repaired", lambda: line(run.matched, run.lambdas, part_of(tick, 0, 0.95)))
    )
    alone = run.kept("repaired_alone", lambda: line(run.b, np.array([0.5]), part_of(tick, 0.95, 1))).data
    accuracy = None if alone.accuracy is None else number(alone.accuracy[0])
    run.values["repair_without_matching"] = {"loss": number(alone.loss[0]), "accuracy": accuracy}


def _soups(run: Run, tick: Reports) -> None:
    from analyzers._connectivity_soups import soups

    soups(run, tick)


def _judge(run: Run) -> None:
    """Write the verdict on what is known so far, once there are both lines; on the test data, too."""
    values, definition = run.values, run.options.definition
    if "threshold" not in values:
        return
    names = [each for each in ("naive", "matched", "repaired") if each in values["barrier"]]
    names += ["curve"] if "curve" in values else []
    grounds = _grounds(run)
    found = verdict([stage_of(values, each, definition) for each in names], grounds)
    values |= {
        "verdict": found.name, "verdict_firm": found.firm, "verdict_sentence": found.sentence,
        "verdict_evidence": list(found.evidence), "definition_words": DEFINITIONS[definition],
    }  # fmt: skip
    if run.test is not None:
        examples = len(run.test.inputs)
        tested = verdict(
            [stage_of(values, each, definition, "test_") for each in names], replace(grounds, examples=examples)
        )
        values |= {
            "test_verdict": tested.name,
            "test_verdict_firm": tested.firm,
            "test_verdict_sentence": tested.sentence,
        }


def _grounds(run: Run) -> Grounds:
    values, restarts = run.values, run.values["restarts"]
    treatments = {
        "none": "The model has no BatchNorm",
        "measured anew": "BatchNorm statistics are measured anew at every point, on the data",
        "as interpolated": "BatchNorm statistics are interpolated like the weights",
    }
    return Grounds(
        threshold_of(values["ends"]["loss"], asked.chance_loss(run), run.options.threshold),
        run.options.definition,
        values["matcher"],
        tuple(each["distance"] for each in restarts),
        min((each["agreement"] for each in restarts), default=1.0),
        values["equivalence_error"],
        values["examples"],
        len(run.weights),
        treatments[values["batch_norm"]],
    )


def _caveats(run: Run) -> tuple[str, ...]:
    """Return the caveats, with what the verdict calls for now."""
    values, more = run.values, []
    if values.get("test_verdict", values.get("verdict")) != values.get("verdict"):
        more.append(f"On the test data the verdict would be another. {values['test_verdict_sentence']}")
    if len(values.get("matchers", ())) > 1 or values.get("matcher") in CHOSEN_BY_LOSS:
        more.append(
            "The permutation was chosen by the loss half-way on these data, so that its barrier is a little too low on "
            "them; test data do not know of the choice."
        )
    return (*run.caveats, *more)


def _result(run: Run) -> ModeConnectivityResult:
    from analyzers.mode_connectivity import ModeConnectivityResult

    card = run.objective.card() | {"seed": run.options.seed, "checkpoint": None}
    card["checkpoints"] = [each.name for each in run.checkpoints[:2]]
    values = {key: each for key, each in run.values.items() if not key.startswith("_")}
    return ModeConnectivityResult("mode_connectivity", card, values, dict(run.arrays), _caveats(run))
