"""The gate before any analysis: is this the model, and is this its data?

Loss and accuracy here are compared with what the checkpoint stores, else with chance. Stored figures lie within
`SIGMAS` standard errors (binomial, of the examples here) plus a small margin when all is well. Better than stored is
no failure: training examples give that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from probes.checkpoint import Checkpoint
    from probes.data import Batches
    from probes.losses import Evaluation

Verdict = Literal["agrees", "differs", "at chance", "nothing to compare"]

SIGMAS = 3.0
ACCURACY_MARGIN = 0.005  # stored figures are rounded, and computed by other kernels
LOSS_MARGIN = 0.05  # relative: label smoothing and weight decay are often left in
ACCURACY = re.compile(r"acc|prec(?!ision)|top_?1|top@1")
ERROR = re.compile(r"(^|_)err(or)?(_?1|_?rate|_?top_?1)?($|_)")
NOT_TOP_1 = re.compile(r"prec_?@?5|acc_?@?5|top_?@?5|5_acc|err(or)?_?5")
LOSS = re.compile(r"loss|nll|cross_?entropy|perplexity|ppl")
TRAINING = re.compile(r"train|trn")


@dataclass(frozen=True)
class Gate:
    """Tell whether the figures here are those that the checkpoint promises, in one sentence for the page.

    stored: the metric that was compared with, as it stands in the file (empty: none). accuracy and chance are
    fractions; chance is the share of the most frequent class; the standard errors are those of the examples.
    """

    verdict: Verdict
    sentence: str
    stored: Mapping[str, float]
    loss: float
    accuracy: float | None
    examples: int
    chance: float | None
    loss_stderr: float | None = None
    accuracy_stderr: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values."""
        return {**asdict(self), "stored": dict(self.stored)}

    @property
    def caveats(self) -> tuple[str, ...]:
        """Return what a result on these examples has to carry along: nothing when there is no reason to doubt."""
        return (f"Gate: {self.verdict}. {self.sentence}",) if self.verdict in ("differs", "at chance") else ()


@dataclass(frozen=True)
class Stored:
    """A metric of the checkpoint that can be compared: its name, its value there, and as fraction or loss."""

    name: str
    written: float
    value: float


def judge(evaluation: Evaluation, checkpoint: Checkpoint, batches: Batches) -> Gate:
    """Compare an evaluation with the metrics in the checkpoint: accuracy first, then loss, then chance."""
    metrics = checkpoint.facts.get("metrics", {})
    accuracy, loss = stored_accuracy(metrics), stored_loss(metrics)
    if accuracy and evaluation.accuracy is not None:
        accuracy = _of_the_same_split(accuracy, metrics, evaluation, evaluation.accuracy)
        verdict, sentence = _against_accuracy(accuracy, evaluation, evaluation.accuracy, batches)
        return _gate(verdict, sentence, accuracy, evaluation)
    if loss:
        verdict, sentence = _against_loss(loss, evaluation, batches)
        return _gate(verdict, sentence, loss, evaluation)
    verdict, sentence = _against_chance(evaluation, batches)
    return _gate(verdict, sentence, None, evaluation)


def stored_accuracy(metrics: Mapping[str, float]) -> Stored | None:
    """Find the accuracy (top 1) among stored metrics, as a fraction; percent and error rates are recognised."""
    found = []
    for name, written in metrics.items():
        plain = name.lower()
        fraction = written / 100 if written > 1 else written
        if NOT_TOP_1.search(plain) or not 0 <= fraction <= 1:
            continue
        if ACCURACY.search(plain):
            found.append(Stored(name, written, fraction))
        elif ERROR.search(plain):
            found.append(Stored(name, written, 1 - fraction))
    return min(found, key=_trust, default=None)


def stored_loss(metrics: Mapping[str, float]) -> Stored | None:
    """Find the loss among stored metrics; a perplexity is turned into one."""
    found = []
    for name, written in metrics.items():
        plain = name.lower()
        perplexity = "perplexity" in plain or "ppl" in plain
        usable = (1 if perplexity else 0) <= written < 1e6
        if LOSS.search(plain) and usable:
            found.append(Stored(name, written, math.log(written) if perplexity else written))
    return min(found, key=_trust, default=None)


def _trust(stored: Stored) -> tuple[bool, bool, bool, str]:
    """Order metrics: held-out before training, this epoch's before the best so far."""
    name = stored.name.lower()
    return bool(TRAINING.search(name)), "test" not in name and "val" not in name, "best" in name, name


def _of_the_same_split(stored: Stored, metrics: Mapping[str, float], found: Evaluation, accuracy: float) -> Stored:
    """Return the stored training accuracy where the held-out one is exceeded here and the training one is not."""
    training = stored_accuracy({name: each for name, each in metrics.items() if TRAINING.search(name.lower())})
    exceeded = accuracy > stored.value + _tolerance(stored, found)
    return training if training and exceeded and training.value > stored.value else stored


def _tolerance(stored: Stored, found: Evaluation) -> float:
    return SIGMAS * _binomial(stored.value, found) + ACCURACY_MARGIN


def _gate(verdict: Verdict, sentence: str, stored: Stored | None, found: Evaluation) -> Gate:
    kept = {stored.name: stored.written} if stored else {}
    errors = (found.loss_stderr, found.accuracy_stderr)
    return Gate(verdict, sentence, kept, found.loss, found.accuracy, found.examples, found.chance, *errors)


def _against_accuracy(stored: Stored, found: Evaluation, accuracy: float, batches: Batches) -> tuple[Verdict, str]:
    figures = f"{percent(stored.value)} stored ({stored.name}), {percent(accuracy)} here on {_amount(found)}"
    tolerance = _tolerance(stored, found)
    if accuracy < stored.value - tolerance:
        chance = f", no better than chance ({percent(found.chance)})" if _at_chance(found) else ""
        return "differs", f"{figures}{chance}: {_suspects(stored, batches)}"
    if accuracy > stored.value + tolerance:
        return "agrees", f"{figures}: higher than stored: training examples?"
    chance = f", though no better than chance ({percent(found.chance)})" if _at_chance(found) else ""
    return "agrees", f"{figures}: they agree{chance}."


def _against_loss(stored: Stored, found: Evaluation, batches: Batches) -> tuple[Verdict, str]:
    figures = f"loss {stored.value:.4g} stored ({stored.name}), {found.loss:.4g} here on {_amount(found)}"
    tolerance = SIGMAS * found.loss_stderr + LOSS_MARGIN * stored.value
    if found.loss > stored.value + tolerance:
        chance = f", no better than chance ({found.chance_loss:.4g})" if _at_chance(found) else ""
        return "differs", f"{figures}{chance}: {_suspects(stored, batches)}"
    if found.loss < stored.value - tolerance:
        return "agrees", f"{figures}: lower than stored: training examples?"
    return "agrees", f"{figures}: they agree."


def _against_chance(found: Evaluation, batches: Batches) -> tuple[Verdict, str]:
    figures = f"The checkpoint stores nothing to compare with; here {_figures(found)} on {_amount(found)}"
    if math.isnan(found.chance_loss):
        return "nothing to compare", f"{figures}: what chance would reach with this loss is not known."
    if found.chance == 1.0:
        return "nothing to compare", f"{figures}: all are of one class, so the accuracy says nothing. Shuffle them."
    if _at_chance(found):
        return (
            "at chance",
            f"{figures}: no better than chance ({_chance(found)}). An untrained model, or: {_suspects(None, batches)}",
        )
    if found.loss > found.chance_loss + SIGMAS * found.loss_stderr:
        return "nothing to compare", (
            f"{figures}: better than chance in accuracy, but a constant guess has a lower loss "
            f"({found.chance_loss:.4g}): {_suspects(None, batches)}"
        )
    return "nothing to compare", f"{figures}: better than chance ({_chance(found)})."


def _at_chance(found: Evaluation) -> bool:
    """Tell whether neither the loss nor the accuracy is clearly better than that of the best constant guess."""
    if math.isnan(found.chance_loss) or found.loss < found.chance_loss - SIGMAS * found.loss_stderr:
        return False
    if found.accuracy is None or found.chance is None:
        return True
    return found.accuracy <= found.chance + SIGMAS * _binomial(found.chance, found)


def _binomial(share: float, found: Evaluation) -> float:
    """Return the standard error of a share of examples; that of tokens, which are not independent, was measured.

    Two successes and two failures are added, which keeps it above 0 (Agresti and Coull 1998).
    """
    if found.predictions != found.examples and found.accuracy_stderr is not None:
        return found.accuracy_stderr
    smooth = (share * found.examples + 2) / (found.examples + 4)
    return math.sqrt(smooth * (1 - smooth) / (found.examples + 4))


def _suspects(stored: Stored | None, batches: Batches) -> str:
    normalisation = (
        "wrong normalisation" if batches.about.get("mean") else "wrong normalisation (no mean and std given)"
    )
    suspects = [normalisation] if batches.inputs.is_floating_point() else ["another tokenizer"]
    suspects.append("wrong split")
    if batches.inputs.ndim == 4:
        suspects.append("lossy images")
    suspects.append("labels in another order" if stored is None else "another epoch's weights")
    if stored and TRAINING.search(stored.name.lower()):
        suspects.append("or merely that the stored figure is of training examples")
    return ", ".join(suspects) + "?"


def _figures(found: Evaluation) -> str:
    accuracy = f"accuracy {percent(found.accuracy)} and " if found.accuracy is not None else ""
    return f"{accuracy}loss {found.loss:.4g}"


def _chance(found: Evaluation) -> str:
    share = f"{percent(found.chance)}, " if found.accuracy is not None and found.chance is not None else ""
    return f"{share}loss {found.chance_loss:.4g}"


def _amount(found: Evaluation) -> str:
    tokens = f" ({found.predictions:,} tokens)" if found.predictions != found.examples else ""
    return f"{found.examples:,} examples{tokens}"


def percent(share: float | None) -> str:
    """Write a fraction as percent with one digit; "unknown" for None."""
    return "unknown" if share is None else f"{100 * share:.1f} %"
