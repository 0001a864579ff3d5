"""Change one example and look again: other tokens or words, a region taken out of an image, other values in a table.

Each function returns a new objective at the same theta, which holds the changed example in the same row; the one that
was given stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from probes.attribution.baselines import baselines
from probes.attribution.case import case_of, kind_of
from probes.attribution.errors import AttributionError
from probes.attribution.language_cache import context_of
from probes.attribution.language_cases import aligned, tokens_of
from probes.attribution.language_spelling import spelled
from probes.attribution.tokens import are_special, column_names, special_id, token_names
from probes.attribution.words import Pieces, Word, pieces_of, words_in
from probes.data import hash_of
from probes.losses import IGNORED, counted

if TYPE_CHECKING:
    from probes.objective import Objective

Box = tuple[int, int, int, int]
Units = Literal["model", "file"]
Spans = Mapping[tuple[int, int], Sequence[int]]  # [first, stop) -> the ids that take their place


def with_tokens(objective: Objective, row: int, tokens: Mapping[int, int]) -> Objective:
    """Put other tokens at places of a text: place -> id.

    Of a language model the last place may be that of the token that is predicted last. Raises AttributionError (no
    text, no such place, no such token).
    """
    return _spliced(objective, row, {(place, place + 1): [token] for place, token in tokens.items()})


def with_words(objective: Objective, row: int, words: Mapping[int, str]) -> Objective:
    """Put other words in the place of words of a text: the number of a word (see `words`) -> its new text.

    The new word is cut into tokens by the vocabulary; it may have more or fewer of them than the old one, and "" takes
    a word out. Raises AttributionError (the tokenizer is not known, or has no tokens for the word).
    """
    ids, pieces, known = text_of(objective, row)
    spans: dict[tuple[int, int], Sequence[int]] = {}
    doubts = []
    for number, text in words.items():
        if not 0 <= number < len(known):
            raise AttributionError(f"There is no word {number}; the text has {len(known)} (0 to {len(known) - 1}).")
        word = known[number]
        before = ids[max(0, word.first - 1) : word.first]
        raw = "".join(pieces.texts[word.first : word.stop])
        lead = raw[: len(raw) - len(raw.lstrip())]
        found = spelled(objective.batches, before, lead + text, _vocabulary(objective, row)) if text else None
        spans[word.first, word.stop] = found.ids if found else ()
        doubts += [found.doubt] if found and found.doubt else []
    made = _spliced(objective, row, spans)
    made.caveats += doubts
    return made


def with_sequence(objective: Objective, row: int, ids: Sequence[int], counted_from: int = 1) -> Objective:
    """Put another text in the place of one of a language model's: all its tokens, the last predicted one too.

    counted_from: the place of the first token that counts as a target. Raises AttributionError.
    """
    if kind_of(objective) != "language_model":
        raise AttributionError("Only examples of language models can be replaced by a sequence; edit tokens or words.")
    if len(ids) < 2:
        raise AttributionError(f"A text of {len(ids)} tokens was given; it needs 2, a prompt and what follows it.")
    _check_tokens(objective, row, ids)
    counts = [place >= counted_from for place in range(len(ids))]
    return _with_text(objective, row, list(ids), counts)


def with_mask(
    objective: Objective, row: int, boxes: Sequence[Box], baseline: str = "zero", seed: int = 0
) -> Objective:  # fmt: skip
    """Fill boxes of an image, (y0, x0, y1, x1) in half-open pixels, by a baseline of the same place.

    Raises AttributionError (no image, or a box that is empty or not within it).
    """
    case = case_of(objective, row)
    if case.kind != "image":
        raise AttributionError("Only images have regions to take out; edit tokens, words or values.")
    height, width = case.shape[-2:]
    filling = baselines(case, baseline, seed=seed)[0]
    image = case.features[0].clone()
    for y0, x0, y1, x1 in boxes:
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise AttributionError(
                f"The box {(y0, x0, y1, x1)} is empty or not within the image of {height} x {width} pixels; give y0, "
                "x0, y1, x1 with y0 < y1 and x0 < x1."
            )
        image[:, y0:y1, x0:x1] = filling[:, y0:y1, x0:x1]
    return _with_rows(objective, row, image, objective.targets, {"mask": [list(each) for each in boxes]})


def with_values(
    objective: Objective, row: int, values: Mapping[int | str, float], units: Units = "model"
) -> Objective:  # fmt: skip
    """Put other values into a row of a table: the number or name of a column -> value.

    units: "model": as the model takes them; "file": as they stand in the file, before they were normalised.
    Raises AttributionError (no table, no such column, a value that is not finite).
    """
    if kind_of(objective) != "table" or objective.inputs.ndim != 2:
        raise AttributionError("Only rows of a table have columns to change; edit a mask, tokens or words.")
    changed = _row(objective, row).clone()
    names = column_names(objective.batches, len(changed))
    for column, value in values.items():
        place = _column(column, names)
        if not math.isfinite(value):
            raise AttributionError(f"The value of {names[place][:60]!r} is {value}; give a finite number.")
        changed[place] = value if units == "model" else _normalised(objective, value, place, len(changed))
    return _with_rows(objective, row, changed, objective.targets, {"values": {str(k): v for k, v in values.items()}})


def text_of(objective: Objective, row: int) -> tuple[list[int], Pieces, tuple[Word, ...]]:
    """Return the tokens of an example of text, what they say, and its words; of a language model with the last one."""
    if kind_of(objective) not in ("text", "language_model"):
        raise AttributionError("Only texts have tokens and words; edit a mask or values.")
    ids = (_row(objective, row) if kind_of(objective) == "text" else tokens_of(objective, row)).tolist()
    names = token_names(objective.batches, ids)
    pieces = pieces_of(objective.batches, ids, names)
    return ids, pieces, words_in(pieces, are_special(objective.module, names, ids))


def _spliced(objective: Objective, row: int, spans: Spans) -> Objective:
    """Put tokens in the place of others, and as many targets with them."""
    ids = text_of(objective, row)[0]
    wrong = next((span for span in spans if not 0 <= span[0] < span[1] <= len(ids)), None)
    if wrong is not None:
        raise AttributionError(f"There is no token at place {wrong[0]}; the text has {len(ids)} (0 to {len(ids) - 1}).")
    _check_tokens(objective, row, [each for new in spans.values() for each in new])
    counts = _counts(objective, row, len(ids))
    for (first, stop), new in sorted(spans.items(), reverse=True):
        counts[first:stop] = [counts[first]] * len(new)
        ids[first:stop] = new
    if kind_of(objective) == "text":
        return _with_padding(objective, row, ids)
    if _predicts(objective, row):
        return _with_text(objective, row, ids, counts)
    return _with_same_length(objective, row, ids)


def _with_text(objective: Objective, row: int, ids: Sequence[int], counts: Sequence[bool]) -> Objective:
    """Make tokens an example of a language model: each but the first is a target where it counts."""
    if len(ids) < 2:
        raise AttributionError("The text would have fewer than 2 tokens; leave more of it.")
    _check_length(objective, len(ids) - 1)
    width = max(objective.inputs.shape[1], len(ids) - 1)
    inputs, targets = _wide(objective.inputs, width, 0), _wide(objective.targets, width, IGNORED)
    text = torch.tensor(ids, dtype=torch.int64, device=inputs.device)
    counted_ones = torch.tensor(counts, device=inputs.device)[1:]
    inputs[row, : len(text) - 1], inputs[row, len(text) - 1 :] = text[:-1], 0
    targets[row] = IGNORED
    targets[row, : len(text) - 1] = torch.where(counted_ones, text[1:], torch.full_like(text[1:], IGNORED))
    return _with_all(objective, inputs, targets, {"tokens": list(ids)}, row)


def _with_padding(objective: Objective, row: int, ids: list[int]) -> Objective:
    """Make tokens an example of a classifier, as wide as it needs to be."""
    width = objective.inputs.shape[1]
    pad = special_id(objective.module, objective.batches, "pad", _vocabulary(objective, row))
    while pad is not None and len(ids) > width and ids[-1] == pad:
        ids = ids[:-1]
    if len(ids) != width and pad is None:
        raise AttributionError(
            f"The text would have {len(ids)} tokens and not {width}, but the token that fills short texts is not "
            "known; give as many tokens as there were."
        )
    _check_length(objective, len(ids))
    inputs = _wide(objective.inputs, max(width, len(ids)), pad or 0)
    inputs[row] = pad or 0
    inputs[row, : len(ids)] = torch.tensor(ids, dtype=inputs.dtype, device=inputs.device)
    return _with_all(objective, inputs, objective.targets, {"tokens": ids}, row)


def _with_same_length(objective: Objective, row: int, ids: Sequence[int]) -> Objective:
    before = len(tokens_of(objective, row))
    if len(ids) != before:
        raise AttributionError(
            f"The targets of this text are not its next tokens, so it cannot become {len(ids)} tokens in place of "
            f"{before}; give as many tokens as there were."
        )
    inputs = objective.inputs.clone()
    inputs[row, : len(ids)] = torch.tensor(ids, dtype=inputs.dtype, device=inputs.device)
    return _with_all(objective, inputs, objective.targets, {"tokens": list(ids)}, row)


def _with_rows(objective: Objective, row: int, changed: Tensor, targets: Tensor, said: Mapping[str, Any]) -> Objective:
    inputs = objective.inputs.clone()
    inputs[row] = changed.to(inputs)
    return _with_all(objective, inputs, targets, said, row)


def _with_all(
    objective: Objective, inputs: Tensor, targets: Tensor, said: Mapping[str, Any], row: int
) -> Objective:  # fmt: skip
    other = objective.chosen(range(len(objective.inputs)))
    other.inputs, other.targets = inputs, targets
    other.units = int(counted(objective.loss, targets).sum())
    other.caveats = list(objective.caveats)
    batches = objective.batches
    told = {**batches.about, "edited": {"row": row, **said}}
    held = (_as_read(inputs, batches.inputs), _as_read(targets, batches.targets))
    if len(batches.inputs) != len(inputs):  # the objective holds some of the examples that were read
        held = batches.inputs, batches.targets
    other.batches = replace(batches, inputs=held[0], targets=held[1], sha256=hash_of(inputs.cpu(), targets.cpu()),
                            about=told)  # fmt: skip
    return other


def _as_read(now: Tensor, read: Tensor) -> Tensor:
    """Bring examples to the form and type in which they were read."""
    now = now.detach().cpu().to(read.dtype)
    return now.reshape(read.shape) if now.numel() == read.numel() else now


def _wide(rows: Tensor, width: int, filling: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=filling).clone()


def _counts(objective: Objective, row: int, length: int) -> list[bool]:
    """Tell of each token whether it counts as a target; the first never does."""
    if kind_of(objective) == "text" or not _predicts(objective, row):
        return [True] * length
    return [True, *(objective.targets[row, : length - 1] != IGNORED).tolist()]


def _predicts(objective: Objective, row: int) -> bool:
    """Tell whether the targets of a row are its next tokens, and not none or other ones."""
    targets = objective.targets[row]
    return bool((targets != IGNORED).any()) and aligned(objective.inputs[row], targets)


def _row(objective: Objective, row: int) -> Tensor:
    if not 0 <= row < len(objective.inputs):
        raise AttributionError(f"There is no example {row}; the data has {len(objective.inputs)} (0 to …).")
    return objective.inputs[row]


def _vocabulary(objective: Objective, row: int) -> int:
    case = case_of(objective, row)
    return int(case.module.get_submodule(case.embedding).weight.shape[0])  # type: ignore[index, arg-type]


def _check_tokens(objective: Objective, row: int, ids: Sequence[int]) -> None:
    most = _vocabulary(objective, row)
    wrong = next((each for each in ids if not 0 <= each < most), None)
    if wrong is not None:
        raise AttributionError(f"There is no token {wrong}; the model has {most} (0 to {most - 1}).")


def _check_length(objective: Objective, length: int) -> None:
    most = context_of(objective.module)
    if most and length > most:
        raise AttributionError(f"The text would have {length} tokens; the model takes {most} at most. Take words out.")


def _column(column: int | str, names: Sequence[str]) -> int:
    if isinstance(column, str) and column in names:
        return names.index(column)
    number = int(column) if isinstance(column, int) or column.isdecimal() else -1
    if not 0 <= number < len(names):
        raise AttributionError(
            f"There is no column {str(column)[:60]!r}; give a name, or a number from 0 to {len(names) - 1}."
        )
    return number


def _normalised(objective: Objective, value: float, place: int, count: int) -> float:
    about = objective.batches.about
    mean, std = ([float(each) for each in about.get(name) or ()] for name in ("mean", "std"))
    centre = mean[place] if len(mean) == count else mean[0] if len(mean) == 1 else 0.0
    scale = std[place] if len(std) == count else std[0] if len(std) == 1 else 1.0
    return (value - centre) / scale
