"""The examples as one looks at them: small pictures, the beginning of texts, rows of a table, and those to check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analyzers._base import Arrays
from analyzers._examples import class_name, number
from analyzers._gallery import choose

if TYPE_CHECKING:
    from probes.data import Batches

SIDE = 64  # pixels of a small picture at most
BYTES = 32 * 10**6  # of all small pictures
ROWS = 2000  # of texts, or of a table
CHARACTERS = 120
PART = 512


def interesting(arrays: Arrays, most: int) -> list[int]:
    """Return so many rows of the last checkpoint, ascending: the wrong ones first, then those of the smallest gap."""
    count = len(arrays["loss"][-1])
    if most >= count:
        return list(range(count))
    ordered = [*choose(arrays, "surely wrong").rows, *choose(arrays, "uncertain").rows, *range(count)]
    return sorted(list(dict.fromkeys(ordered))[:most])


def shown(batches: Batches, arrays: Arrays) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return arrays and values by which examples are looked at.

    Of images `thumbnails` (n, h, w, 3) uint8; of tables `raw` (n, F) with "columns"; of token ids "texts". Of each
    `shown_rows` (n,), the rows of the data that these are of: all, or the most interesting where that is too much.
    """
    from probes.attribution.tokens import column_names
    from probes.pictures import texts_of

    inputs = batches.inputs
    if inputs.ndim == 4 and inputs.is_floating_point():
        return _thumbnails(batches, arrays), {}
    if inputs.ndim != 2:
        return {}, {}
    rows = interesting(arrays, ROWS)
    kept = {"shown_rows": np.array(rows, dtype=np.int64)}
    if inputs.is_floating_point():
        columns = [str(each)[:CHARACTERS] for each in column_names(batches, inputs.shape[1])]
        return {**kept, "raw": inputs[rows].numpy()}, {"columns": columns}
    return kept, {"texts": texts_of(batches, rows, CHARACTERS) or []}


def listed(
    batches: Batches, arrays: Arrays, classes: Sequence[str], checkpoint: str, count: int
) -> tuple[list[dict[str, Any]], NDArray[np.uint8] | None]:
    """Return the examples to check at the last checkpoint, and their pictures (K, H, W, 3) or None.

    So many of the wrong ones with the highest loss (where nothing is right or wrong, of all), and of the others so many
    with the smallest gap between the two likeliest classes.
    """
    from probes.pictures import pictures_of, texts_of

    if not count:
        return [], None
    wrong = list(choose(arrays, "surely wrong", count=count).rows)
    left = choose(arrays, "uncertain", count=2 * count).rows
    groups = {"most wrong": wrong, "most unsure": [row for row in left if row not in set(wrong)][:count]}
    rows = [row for each in groups.values() for row in each]
    if not rows:
        return [], None
    texts: Sequence[str | None] = texts_of(batches, rows) or [None] * len(rows)
    names = [name for name, each in groups.items() for _ in each]
    at = lambda name, row: number(arrays[name][-1][row])
    found = [
        {
            "id": batches.ids[row],
            "row": row,
            "group": name,
            "checkpoint": checkpoint,
            "label": class_name(_known(arrays["label"][row]), classes),
            "prediction": class_name(_known(arrays["prediction"][-1][row]), classes),
            **{key: at(key, row) for key in ("probability", "loss", "margin", "gap", "entropy")},
            "text": text,
        }
        for row, name, text in zip(rows, names, texts, strict=True)
    ]
    return found, pictures_of(batches, rows)


def _thumbnails(batches: Batches, arrays: Arrays) -> dict[str, NDArray[Any]]:
    from probes.pictures import pictures_of, span_of

    height, width = batches.inputs.shape[2:]
    scale = min(1.0, SIDE / max(height, width))
    each = 3 * max(1, round(height * scale)) * max(1, round(width * scale))
    rows = interesting(arrays, BYTES // each)
    span = span_of(batches, rows)
    parts = [pictures_of(batches, rows[start : start + PART], SIDE, span) for start in range(0, len(rows), PART)]
    pixels = [part for part in parts if part is not None]
    return {"thumbnails": np.concatenate(pixels), "shown_rows": np.array(rows, dtype=np.int64)}


def _known(value: Any) -> float:
    """Return a class or value as a float, NaN for the -1 that stands for none."""
    return float("nan") if np.asarray(value).dtype.kind == "i" and value < 0 else float(value)
