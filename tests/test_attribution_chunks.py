"""How many rows are run at once: bounded by memory and by a CPU's caches, measured once for an objective."""

from __future__ import annotations

import pytest
import torch
from attribution_cases import objective_of

from probes.attribution import case_of, chunks
from probes.attribution.chunks import LARGEST_CHUNK, ON_CPU, ROWS_ON_CPU, rows_at_once
from probes.attribution.methods import Settings, methods

SHAPE = torch.Size((1, 2))


@pytest.mark.parametrize(
    ("row_bytes", "rows"),
    [(0, LARGEST_CHUNK), (1000, LARGEST_CHUNK), (2**15, 128), (2**20, ROWS_ON_CPU), (2**21, 32), (ON_CPU * 2, 1)],
)
def test_rows_follow_the_bytes_of_one(row_bytes, rows, monkeypatch) -> None:
    monkeypatch.setattr(chunks, "spare_bytes", lambda _device: 2**40)
    assert rows_at_once(objective_of("tabular"), SHAPE, lambda: row_bytes) == rows


def test_memory_that_is_short_counts_first(monkeypatch) -> None:
    monkeypatch.setattr(chunks, "spare_bytes", lambda _device: 2**20)
    assert rows_at_once(objective_of("tabular"), SHAPE, lambda: 2**15) == 8  # a quarter of what is spare


def test_rows_are_measured_once_for_an_objective() -> None:
    objective, rows = objective_of("cnn"), []
    hook = objective.module.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    try:
        first, second = case_of(objective, 0), case_of(objective, 1)
        rows.clear()
        chunk = first.chunk()
        assert rows == [1]
        assert second.chunk() == chunk and rows == [1]
        assert first.score == pytest.approx(float(first.in_chunks(first.features)[0]), rel=1e-12)
    finally:
        hook.remove()


def test_occlusion_runs_every_window_once_and_little_else() -> None:
    """Windows, the example, the baseline; the chunk is known from another case."""
    objective, rows = objective_of("cnn"), []
    case_of(objective, 1).chunk()
    case = case_of(objective, 0)
    hook = objective.module.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    try:
        map = methods()["occlusion"].run(case, Settings(window=2), lambda *_: None)
    finally:
        hook.remove()
    assert sum(rows) == map.about["evaluations"] == map.about["windows"] + 2


def test_one_gradient_costs_one_row() -> None:
    objective, rows = objective_of("cnn"), []
    case = case_of(objective, 0)
    hook = objective.module.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    try:
        case.plain()
        assert case.score == float(case.plain()[0][0])
    finally:
        hook.remove()
    assert rows == [1]
