"""The answer of a language model as a function of its prompt: one token of it, or all of it, by teacher forcing.

The tokens that follow the prompt are fed as they are and held: only the prompt's vectors are features. So one pass
gives the log-probabilities of all tokens of the answer, and what a method finds for each of them adds up to what the
prompt did to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.attribution.baselines import baselines
from probes.attribution.case import Case, Target, What, case_of, kind_of
from probes.attribution.embedding import replaced
from probes.attribution.errors import AttributionError
from probes.attribution.tokens import are_special, token_names
from probes.strict import strict

if TYPE_CHECKING:
    from probes.objective import Objective

_REMEMBERED = 2**16  # evaluations whose token scores are kept


@dataclass(frozen=True, eq=False)
class AnswerCase(Case):
    """The log-probability of the last `scored` tokens of an answer, of which the tokens before it are the prompt.

    raw, features, names, special: of the prompt, (1, P) and (1, P, D). after: the ids fed behind it, (1, A), and
    held: their vectors. answer: (scored,) the tokens whose log-probabilities are added up. against: tokens whose
    log-probabilities are taken away again (a difference of logits), -1 for none. shared: scores that rows share.
    """

    after: Tensor = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.int64))
    held: Tensor = field(default_factory=lambda: torch.zeros(1, 0, 1))
    answer: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    against: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    shared: Shared | None = None

    def outputs(self, features: Tensor) -> Tensor:
        """Run the model on the prompt's vectors (B, P, D) and what follows; (B, P + A, V)."""
        count = len(features)
        vectors = torch.cat([features, self.held.to(features).expand(count, -1, -1)], 1)
        ids = torch.cat([self.raw, self.after], 1).expand(count, -1)
        with replaced(self.module, self.embedding, vectors):
            return super().run(ids)

    def run(self, raw: Tensor) -> Tensor:
        """Run the model on other ids of the prompt, (B, P), and what follows."""
        return super().run(torch.cat([raw, self.after.expand(len(raw), -1)], 1))

    def scores(self, features: Tensor) -> Tensor:
        """Return the log-probability of the answer, less that of what it is set against; (B,)."""
        return self.token_scores(features).sum(-1)

    def token_scores(self, features: Tensor) -> Tensor:
        """Return the score of each token of the answer, (B, scored)."""
        return self._told(self.outputs(features))

    def scores_of_raw(self, raw: Tensor) -> Tensor:
        """Return the score for other ids of the prompt, (B, P) -> (B,)."""
        return self._told(self.run(raw)).sum(-1)

    def in_chunks(self, features: Tensor, what: What = "scores") -> Tensor:
        """Evaluate many features without a graph; rows of one answer share what they ran."""
        if what != "scores" or self.shared is None:
            return super().in_chunks(features, what)
        return self.shared.scores(features)[:, self.after.shape[1] - self.shared.whole.before]

    def all_in_chunks(self, features: Tensor) -> Tensor:
        """Return the scores of the answer's tokens for many features, (B, scored), without a graph."""

        def every() -> Tensor:
            return torch.cat(
                [self.token_scores(part.to(self.objective.device)) for part in features.split(self.chunk())]
            )

        with torch.no_grad(), strict(self.module):
            return self._in_memory(every)

    @property
    def before(self) -> int:
        """The tokens behind the prompt that are not scored, but fed."""
        return self.after.shape[1] + 1 - len(self.answer)

    def _told(self, outputs: Tensor) -> Tensor:
        rows = torch.log_softmax(outputs[:, -len(self.answer) :], -1)
        found = _picked(rows, self.answer)
        counts = self.against >= 0
        return found - torch.where(counts, _picked(rows, self.against.clamp(min=0)), torch.zeros_like(found))


class Shared:
    """The scores of all tokens of an answer for any features of the prompt, each run once."""

    def __init__(self, whole: AnswerCase) -> None:
        self.whole = whole
        self._known: dict[bytes, Tensor] = {}

    def scores(self, features: Tensor) -> Tensor:
        """Return the scores, (B, scored)."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        rows = features.detach().cpu().contiguous()
        keys = [hashlib.sha256(each.numpy().data).digest() for each in rows]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            found = self.whole.all_in_chunks(features[list(new.values())])
            self._known.update(zip(new, found, strict=True))
        return torch.stack([self._known[key] for key in keys])


@dataclass(frozen=True, eq=False)
class Sequence:
    """One example of a language model as a prompt and its answer.

    ids: (n,) all its tokens, the last predicted one too. names, special: of each of them, by place. base: the case of
    the last token, whose features are the vectors of all tokens before it.
    """

    objective: Objective
    row: int
    ids: Tensor
    names: tuple[str, ...]
    special: tuple[bool, ...]
    base: Case

    def case(self, prompt: int, first: int, stop: int, against: Mapping[int, int] | None = None) -> AnswerCase:
        """Make the case of the tokens [first, stop), of which the first `prompt` tokens are the features."""
        base, fed = self.base, stop - 1
        answer = self.ids[first:stop]
        others = torch.tensor([(against or {}).get(place, -1) for place in range(first, stop)], device=answer.device)
        made = AnswerCase(
            self.objective, base.kind, self.row, base.raw[:, :prompt], base.features[:, :prompt],
            Target(int(answer[-1]), stop - 2), self.names[:prompt], self.special[:prompt], base.embedding,
            after=base.raw[:, prompt:fed], held=base.features[:, prompt:fed], answer=answer, against=others,
        )  # fmt: skip
        return self._knowing(made)

    def rows(self, start: int, against: Mapping[int, int] | None = None) -> list[AnswerCase]:
        """Make a case for each token from `start` on, of the same prompt; forward passes are shared among them."""
        shared = Shared(self.case(start, start, len(self.ids), against))
        made = [self.case(start, place, place + 1, against) for place in range(start, len(self.ids))]
        return [replace(each, shared=shared) for each in made]

    def _knowing(self, made: AnswerCase) -> AnswerCase:
        """Give a case what is the same for all: the mean of the vocabulary and how many rows are run at once."""
        mean = self.base.once("mean of the vocabulary", lambda: baselines(self.base, "mean embedding")[:, :1])
        made.once("mean embedding", lambda: mean)
        made.once("chunk", self.base.chunk)
        return made


def sequence_of(objective: Objective, row: int) -> Sequence:
    """Read an example as prompt and answer; raise AttributionError where it is none of a language model's."""
    if kind_of(objective) != "language_model":
        raise AttributionError(
            "Prompts and answers are those of causal language models, but this model is a classifier; choose a class."
        )
    ids = tokens_of(objective, row).to(objective.device)
    if len(ids) < 2:
        raise AttributionError(f"Example {row} has {len(ids)} tokens; a prompt and an answer need 2. Choose another.")
    base = case_of(objective, row, Target(int(ids[-1]), len(ids) - 2))
    numbers = ids.tolist()
    names = token_names(objective.batches, numbers)
    return Sequence(objective, row, ids, names, are_special(objective.module, names, numbers), base)


def tokens_of(objective: Objective, row: int) -> Tensor:
    """Return the ids of an example without padding, (n,): with the token that is predicted last, where targets tell."""
    if not 0 <= row < len(objective.inputs):
        raise AttributionError(f"There is no example {row}; the data has {len(objective.inputs)} (0 to …).")
    inputs, targets = objective.inputs[row], objective.targets[row]
    counted = (targets != -100).nonzero().flatten()
    if not len(counted):
        return inputs
    last = int(counted[-1])
    return torch.cat([inputs[: last + 1], targets[last : last + 1]]) if aligned(inputs, targets) else inputs[: last + 1]


def aligned(inputs: Tensor, targets: Tensor) -> bool:
    """Tell whether the targets of a row are its next tokens; the last of them stands in no input."""
    counted = (targets != -100).nonzero().flatten()[:-1]
    return bool((inputs[counted + 1] == targets[counted]).all())


def _picked(rows: Tensor, ids: Tensor) -> Tensor:
    return rows.gather(-1, ids.to(rows.device)[None, :, None].expand(len(rows), -1, 1))[..., 0]
