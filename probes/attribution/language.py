"""Causal language models: which tokens of the prompt drove this token, or this sentence, of the answer.

The score of a token is its log-probability after all tokens before it (teacher forcing); that of the answer is their
sum. Rows of the matrix are tokens of the answer, columns the tokens before them, both by their place: a word that
comes twice keeps two columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.attribution.errors import AttributionError
from probes.attribution.language_cache import Feed, context_of, ends, has_cache
from probes.attribution.language_cases import AnswerCase, sequence_of
from probes.attribution.language_cases import Sequence as Text
from probes.attribution.methods import Settings, Tick, attribute, methods
from probes.strict import strict

if TYPE_CHECKING:
    from probes.attribution.maps import Map
    from probes.attribution.validity import Badge
    from probes.objective import Objective

Floats = NDArray[np.float64]
Earlier = Literal["held", "shown", "cut"]
Run = Callable[[AnswerCase, Tick], "Map"]
OF_ALL_TOKENS = ("attention", "layer")  # families of methods that cannot tell the prompt from what follows it


def _quiet(share: float, doing: str) -> None:
    """Report nothing."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """What each token before it did to each token of the answer.

    values: (out, in); row t is of the token at place start + t, column i of the token at place i; 0 where a token
    comes too late to matter. log_probs: (out,). names, special: of all tokens by place. earlier: what became of the
    answer's own tokens (see `token_matrix`). lost: (out,) what was cut off from each row. baseline_scores,
    completeness_errors: (out,), nan where the method has none. stderr: like values, nan where nothing is sampled.
    badges: one a row. about: of the first row's map.
    """

    method: str
    start: int
    values: Floats
    log_probs: Floats
    scores: Floats
    names: tuple[str, ...]
    special: tuple[bool, ...]
    earlier: Earlier
    signed: bool
    lost: Floats
    baseline_scores: Floats
    completeness_errors: Floats
    stderr: Floats
    badges: tuple[Badge, ...]
    notes: tuple[str, ...]
    about: Mapping[str, Any]

    @property
    def sequence(self) -> Floats:
        """The attribution of the whole answer: the sum of the rows, (in,)."""
        return np.asarray(self.values.sum(0))

    @property
    def prompt(self) -> Floats:
        """The columns of the prompt, (out, start)."""
        return self.values[:, : self.start]


def answer_scores(objective: Objective, row: int, start: int, *, use_cache: bool = False) -> Floats:
    """Return the log-probability of each token from place `start` on, (out,), given all tokens before it.

    use_cache: feed the prompt once and then one token after another over the model's cache of keys and values;
    otherwise one pass over all tokens. Raises AttributionError (no language model, no such place, no cache).
    """
    text = sequence_of(objective, row)
    _check(text, start)
    feed = Feed(objective, cached=use_cache)
    fed = text.base.raw
    with torch.no_grad(), strict(objective.module):
        if use_cache:
            parts = [fed[:, :start], *fed[:, start:].split(1, 1)]
            logits = torch.cat([feed(each)[:, -1] for each in parts if each.shape[1]])
        else:
            logits = feed(fed)[0, start - 1 :]
        rows = torch.log_softmax(logits, -1).double()
    found = rows.gather(1, text.ids[start:, None])[:, 0]
    return np.asarray(found.cpu().numpy())


def cache_error(objective: Objective, row: int, start: int) -> float | None:
    """Return how far log-probabilities with the cache are from those without, at most; None without a cache."""
    if not has_cache(objective.module):
        return None
    pair = [answer_scores(objective, row, start, use_cache=each) for each in (False, True)]
    return float(np.abs(pair[0] - pair[1]).max())


def answer_start(objective: Objective, row: int) -> int:
    """Return the place where the answer begins: the first token that counts as a target, else half of the text."""
    text = sequence_of(objective, row)
    counted = (objective.targets[row] != -100).nonzero().flatten()
    first = int(counted[0]) + 1 if len(counted) else 1
    return first if 1 < first < len(text.ids) else max(1, len(text.ids) // 2)


def generate(
    objective: Objective, ids: Tensor | Sequence[int], count: int, *, use_cache: bool | None = None
) -> list[int]:
    """Return the likeliest next tokens one after another, `count` at most, up to a token that ends the text.

    ids: (T,) the prompt. use_cache: None where the model has one. Of equally likely tokens the first is taken.
    Raises AttributionError (an empty prompt, or more tokens than the model's context).
    """
    prompt = torch.as_tensor(ids, dtype=torch.int64).reshape(1, -1)
    most = context_of(objective.module)
    if not prompt.shape[1] or (most and prompt.shape[1] + count - 1 > most):
        raise AttributionError(
            f"The prompt has {prompt.shape[1]} tokens and {count} more are asked for; the model takes 1 to "
            f"{most or 'any number of'} tokens in all. Ask for fewer."
        )
    cached = has_cache(objective.module) if use_cache is None else use_cache
    feed, last, found = Feed(objective, cached=cached), ends(objective.module), list[int]()
    with torch.no_grad(), strict(objective.module):
        new = prompt
        while len(found) < count and not (found and found[-1] in last):
            logits = feed(new)[0, -1]
            found.append(int((logits == logits.max()).nonzero()[0]))
            new = torch.tensor([found[-1:]])
    return found


def answer_case(objective: Objective, row: int, start: int, against: Mapping[int, int] | None = None) -> AnswerCase:
    """Make the case of the whole answer from place `start` on: the sum of its log-probabilities, for one map.

    The prompt's tokens are its features; the answer is held. For methods whose map is linear in the score the map is
    the sum of the rows of `token_matrix`, at the price of one row. against: place -> the token that is compared with.
    """
    text = sequence_of(objective, row)
    _check(text, start)
    _check_against(text, start, against)
    return text.case(start, start, len(text.ids), against)


def token_matrix(
    objective: Objective, row: int, start: int, method: str, settings: Settings | None = None, tick: Tick = _quiet,
    *, earlier: Earlier | None = None, against: Mapping[int, int] | None = None,
) -> Matrix:  # fmt: skip
    """Attribute each token from place `start` on to the tokens before it, by any method.

    earlier: what becomes of the answer's own tokens. "held": they stay as they are, only the prompt is replaced or
    differentiated, each row adds up to what the prompt did, and methods that only run forward share their passes.
    "shown": they are features too and have columns. "cut": as shown, but their columns are left out and `lost` says
    what went with them. None: held, but cut by methods that read the model's own attention or layers, which are those
    of all tokens. against: place -> token; the score is then the difference of the two logits. Raises
    AttributionError.
    """
    if earlier is None:
        known = methods().get(method)
        earlier = "cut" if known is not None and known.family in OF_ALL_TOKENS else "held"
    return matrix_by(
        objective, row, start, method, lambda case, tick: attribute(case, method, settings, tick), tick,
        earlier=earlier, against=against,
    )  # fmt: skip


def matrix_by(
    objective: Objective, row: int, start: int, method: str, run: Run, tick: Tick = _quiet,
    *, earlier: Earlier = "held", against: Mapping[int, int] | None = None,
) -> Matrix:  # fmt: skip
    """Build the matrix by any function that makes a map of a case, as `language_segments.segment_map` does."""
    text = sequence_of(objective, row)
    _check(text, start)
    _check_against(text, start, against)
    places = range(start, len(text.ids))
    cases = text.rows(start, against) if earlier == "held" else [text.case(p, p, p + 1, against) for p in places]
    maps = []
    for number, case in enumerate(cases):
        maps.append(_fitting(case, run(case, _part(tick, number, len(cases)))))
    return _joined(text, start, method, maps, earlier, answer_scores(objective, row, start))


def _joined(text: Text, start: int, method: str, maps: Sequence[Map], earlier: Earlier, log_probs: Floats) -> Matrix:
    width = start if earlier != "shown" else len(text.ids) - 1
    values, stderr = np.zeros((len(maps), width)), np.full((len(maps), width), np.nan)
    lost = np.zeros(len(maps))
    for number, each in enumerate(maps):
        kept = min(width, len(each.values))
        values[number, :kept] = each.values[:kept]
        lost[number] = float(np.sum(each.values[kept:], dtype=np.float64))
        if each.stderr is not None:
            stderr[number, :kept] = each.stderr[:kept]
    return Matrix(
        method, start, values, log_probs, np.array([each.score for each in maps]), text.names, text.special, earlier,
        maps[0].signed, lost, _numbers(each.baseline_score for each in maps),
        _numbers(each.completeness_error for each in maps), stderr, tuple(each.badge for each in maps),
        (*dict.fromkeys(note for each in maps for note in each.notes), *_missing(maps, width)), maps[0].about,
    )  # fmt: skip


def _missing(maps: Sequence[Map], width: int) -> tuple[str, ...]:
    """Say in words what was cut off."""
    lost, whole = (sum(float(np.abs(each.values[first:]).sum()) for each in maps) for first in (width, 0))
    if not lost:
        return ()
    return (
        f"What fell on earlier tokens of the answer itself, {lost / whole:.0%} of the sizes of all values, is left "
        "out, so the rows do not add up to the difference of the scores.",
    )


def _numbers(values: Any) -> Floats:
    return np.array([np.nan if each is None else each for each in values], np.float64)


def _fitting(case: AnswerCase, found: Map) -> Map:
    if found.values.shape != case.shape:
        raise AttributionError(
            f"{found.method} gives values of shape {found.values.shape}, but the prompt has {case.shape[0]} tokens: it "
            "cannot hold the answer. Let the answer's tokens be shown or cut."
        )
    return found


def _check(text: Text, start: int) -> None:
    if not 1 <= start < len(text.ids):
        raise AttributionError(
            f"The answer cannot begin at place {start}; the text has {len(text.ids)} tokens, and the prompt needs one: "
            f"give 1 to {len(text.ids) - 1}."
        )


def _check_against(text: Text, start: int, against: Mapping[int, int] | None) -> None:
    if not against:
        return
    most = text.base.in_chunks(text.base.features, "logits").shape[-1]
    for place, token in against.items():
        if not start <= place < len(text.ids):
            raise AttributionError(
                f"There is no token of the answer at place {place} to compare with another; give {start} to "
                f"{len(text.ids) - 1}."
            )
        if not 0 <= token < most:
            raise AttributionError(f"There is no token {token}; the model has {most} (0 to {most - 1}).")


def _part(tick: Tick, number: int, count: int) -> Tick:
    """Return the tick of one row of several; what it keeps is kept by the whole."""

    def told(share: float, doing: str) -> None:
        tick((number + share) / count, f"token {number + 1} of {count}: {doing}")

    if not hasattr(tick, "load"):
        return told
    return _Keeping(told, tick)


@dataclass(frozen=True)
class _Keeping:
    told: Tick
    whole: Any

    def __call__(self, share: float, doing: str) -> None:
        self.told(share, doing)

    def save(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.whole.save(key, arrays)

    def load(self, key: str) -> Mapping[str, NDArray[Any]] | None:
        return self.whole.load(key)  # type: ignore[no-any-return]
