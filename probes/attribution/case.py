"""One example and the score that is explained, as a function of continuous features.

Images and rows of a table are their own features. Of text the features are the token vectors: they take the place of
the embedding layer's output, while positions, types and the attention mask stay as the ids give them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from probes.attribution.baselines import baselines, default_baseline
from probes.attribution.chunks import rows_at_once
from probes.attribution.embedding import embedded, input_embedding, replaced
from probes.attribution.errors import AttributionError
from probes.attribution.tokens import are_special, column_names, token_names
from probes.memory import is_out_of_memory, measuring
from probes.objective import Objective
from probes.strict import strict

__all__ = ["Case", "Kind", "Target", "baselines", "case_of", "default_baseline", "kind_of"]

Kind = Literal["image", "table", "text", "language_model"]
What = Literal["scores", "logits", "scores_of_raw"]
T = TypeVar("T")
_KEPT = 64


@dataclass(frozen=True)
class Target:
    """Say which score is explained.

    index: a class (a column of the outputs), or, of a language model, the id of a token. position: of a language
    model, the position whose output predicts that token (-1: the last one); -1 for classifiers.
    """

    index: int
    position: int = -1


@dataclass(frozen=True, eq=False)
class Case:
    """One example, its features and its target.

    raw: what the model takes, (1, ...); of a language model the ids up to the target's position. features: images
    (1, C, H, W), tables (1, F), token vectors (1, T, D). names: of tokens or columns, () of images. special: tokens
    set apart ([CLS], padding, …), () of others. embedding: the name of the layer that `features` stand in for.
    Call what differentiates inside `strict()`; modules are never written to and hooks never stay.
    """

    objective: Objective
    kind: Kind
    row: int
    raw: Tensor
    features: Tensor
    target: Target
    names: tuple[str, ...] = ()
    special: tuple[bool, ...] = ()
    embedding: str = ""
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @property
    def module(self) -> nn.Module:
        """The model itself; its layers hold the objective's theta only while it runs within this case."""
        return self.objective.module

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a map of this example: (C, H, W), (F,) or (T,)."""
        return tuple(self.features.shape[1:2] if self.embedding else self.features.shape[1:])

    def outputs(self, features: Tensor) -> Tensor:
        """Run the model on features (B, ...); its own outputs, (B, K) or (B, T, V)."""
        if not self.embedding:
            return self.run(features)
        with replaced(self.module, self.embedding, features):
            return self.run(self.raw.expand(len(features), -1))

    def run(self, raw: Tensor) -> Tensor:
        """Run the model on what it takes, (B, ...), at the objective's theta held constant."""
        found = functional_call(self.module, self.once("values", self._values), (raw,))
        if not isinstance(found, Tensor):
            raise AttributionError(
                f"The model returns a {type(found).__name__}, not a tensor of logits, so there is no score to explain."
            )
        return found

    def logits(self, features: Tensor) -> Tensor:
        """Return the outputs as (B, K): of a language model the logits at the target's position."""
        return self._rows(self.outputs(features))

    def scores(self, features: Tensor) -> Tensor:
        """Return the target's score, (B,): a classifier's logit, a language model's log-probability of the token."""
        return self._chosen(self.logits(features))

    def scores_of_raw(self, raw: Tensor) -> Tensor:
        """Return the target's score of other pixels, rows or token ids, (B, ...) -> (B,)."""
        return self._chosen(self._rows(self.run(raw)))

    def as_module(self) -> nn.Module:
        """Return features (B, ...) -> (B, 1) target score as a module; the model is its child `model`.

        Layers hold the objective's theta while it runs (read weights there, in hooks), and no gradient reaches them.
        """
        return _Scores(self)

    def in_chunks(self, features: Tensor, what: What = "scores") -> Tensor:
        """Evaluate many features or raw inputs (B, ...) without a graph; out of memory halves the chunk."""
        work: Callable[[Tensor], Tensor] = getattr(self, what)

        def whole() -> Tensor:
            return torch.cat([work(part.to(self.objective.device)) for part in self._parts(features)])

        with torch.no_grad(), strict(self.module):
            return self._in_memory(whole)

    def gradients(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and their gradients by the features (B, ...), in chunks; the one loop of all methods."""

        def whole() -> tuple[Tensor, Tensor]:
            pairs = [self._gradients(part) for part in self._parts(features)]
            return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])

        with strict(self.module, order=1):
            return self._in_memory(whole)

    def plain(self) -> tuple[Tensor, Tensor]:
        """Return the score (1,) and gradient (1, ...) at the example itself; computed once, shared by all methods."""
        return self.at(self.features)

    def at(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and gradients at features (B, ...), computed once for the same content."""
        return self.once(("gradient", _hash(features)), lambda: self.gradients(features))

    def score_at(self, features: Tensor) -> float:
        """Return the score of one set of features (1, ...), computed once for the same content."""
        key = _hash(features)
        if ("gradient", key) in self._kept:
            return float(self._kept["gradient", key][0][0])
        return self.once(("score", key), lambda: float(self.in_chunks(features)[0]))

    @property
    def score(self) -> float:
        """The target's score of the example."""
        return self.score_at(self.features)

    def once(self, key: Hashable, work: Callable[[], T]) -> T:
        """Do some work once for this case; the latest results are kept."""
        if key not in self._kept:
            while len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = work()
        return self._kept[key]  # type: ignore[no-any-return]

    def chunk(self) -> int:
        """Return how many rows are run at once: measured on one row, halved where the memory was not enough."""
        if "chunk" not in self._kept:
            self._kept["chunk"] = rows_at_once(self.objective, self.features.shape, self._row_bytes)
        return int(self._kept["chunk"])

    def know(self, features: Tensor, score: Tensor, gradient: Tensor | None = None) -> None:
        """Keep the score () and gradient (...) at features (1, ...) that were found on the way to something else."""
        found: Any = float(score.detach()) if gradient is None else (score.detach()[None], gradient.detach()[None])
        self._kept.setdefault(("score" if gradient is None else "gradient", _hash(features)), found)

    def _values(self) -> dict[str, Tensor]:
        pairs = zip(self.objective.names, self.objective.theta, strict=True)
        return {**self.objective.constants, **{name: each.detach() for name, each in pairs}}

    def _row_bytes(self) -> int:
        """Return the bytes of the graph of one row; its score is kept."""
        features = self.features.detach().requires_grad_()
        with strict(self.module, order=1), measuring(self.objective.theta) as held:
            score = self.scores(features)
        self._kept["score", _hash(self.features)] = float(score.detach()[0])
        return held.bytes

    def _parts(self, features: Tensor) -> tuple[Tensor, ...]:
        """Cut rows into chunks; one row needs no measuring of the memory."""
        return (features,) if len(features) == 1 else features.split(self.chunk())

    def _gradients(self, features: Tensor) -> tuple[Tensor, Tensor]:
        features = features.detach().to(self.objective.device).requires_grad_()
        with torch.enable_grad():
            scores = self.scores(features)
            if not scores.requires_grad:
                raise AttributionError(
                    "The score does not depend on the features by any path that can be differentiated; "
                    "choose a method that only runs the model forward, such as occlusion."
                )
            (found,) = torch.autograd.grad(scores.sum(), features, allow_unused=True, materialize_grads=True)
        return scores.detach(), found

    def _rows(self, outputs: Tensor) -> Tensor:
        if self.kind == "language_model":
            return outputs[:, -1]
        return outputs[:, None] if outputs.ndim == 1 else outputs.flatten(1)

    def _chosen(self, logits: Tensor) -> Tensor:
        rows = torch.log_softmax(logits, -1) if self.kind == "language_model" else logits
        return rows[:, self.target.index]

    def _in_memory(self, work: Callable[[], T]) -> T:
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.chunk() == 1:
                    raise AttributionError(
                        "The memory is not enough for a single example; use a device with more, or smaller examples."
                    ) from error
            self._kept["chunk"] = self.chunk() // 2


class _Scores(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model = case.module
        self._case = [case]  # in a list, so that nothing of it counts as a submodule

    def forward(self, features: Tensor) -> Tensor:
        return self._case[0].scores(features)[:, None]


def kind_of(objective: Objective) -> Kind:
    """Tell images, tables, text for classifiers and text for language models apart."""
    if objective.loss == "causal_lm":
        return "language_model"
    if not objective.inputs.is_floating_point():
        return "text"
    return "image" if objective.inputs.ndim == 4 else "table"


def case_of(objective: Objective, row: int, target: Target | None = None) -> Case:
    """Make the case of one example.

    target: None explains the predicted class; of a language model the likeliest token after the last one that counts.
    Raises AttributionError (no such example, class, token or position; no layer that embeds the ids).
    """
    if not 0 <= row < len(objective.inputs):
        raise AttributionError(f"There is no example {row}; the data has {len(objective.inputs)} (0 to …).")
    kind = kind_of(objective)
    raw = objective.inputs[row : row + 1].to(objective.device)
    if kind == "language_model":
        raw = raw[:, : _position(objective, row, target) + 1]
    case = Case(objective, kind, row, raw, raw, target or Target(0))
    with strict(objective.module, order=1):
        case = _with_features(case)
        return _aimed(case, target)


def _with_features(case: Case) -> Case:
    objective, raw = case.objective, case.raw
    if case.kind in ("image", "table"):
        names = column_names(objective.batches, raw.shape[1]) if raw.ndim == 2 else ()
        return Case(objective, case.kind, case.row, raw, raw.detach(), case.target, names)
    name = input_embedding(case.module, case.run, raw)
    features = embedded(case.module, case.run, name, raw)
    ids = raw[0].tolist()
    names = token_names(objective.batches, ids)
    special = are_special(case.module, names, ids)
    return Case(objective, case.kind, case.row, raw, features, case.target, names, special, name)


def _aimed(case: Case, target: Target | None) -> Case:
    with torch.no_grad():
        logits = case.logits(case.features)[0]
    index = int(logits.argmax()) if target is None else target.index
    if not 0 <= index < len(logits):
        what = "token" if case.kind == "language_model" else "output"
        raise AttributionError(f"There is no {what} {index}; the model has {len(logits)} (0 to {len(logits) - 1}).")
    position = case.raw.shape[1] - 1 if case.kind == "language_model" else -1
    kept = (case.objective, case.kind, case.row, case.raw, case.features)
    return Case(*kept, Target(index, position), case.names, case.special, case.embedding)


def _position(objective: Objective, row: int, target: Target | None) -> int:
    length = objective.inputs.shape[1]
    if target is None or target.position == -1:
        counted = (objective.targets[row] != -100).nonzero()
        return int(counted[-1]) if len(counted) else length - 1
    if not 0 <= target.position < length:
        raise AttributionError(
            f"There is no position {target.position}; the sequence has {length} tokens (0 to {length - 1})."
        )
    return target.position


def _hash(tensor: Tensor) -> str:
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
