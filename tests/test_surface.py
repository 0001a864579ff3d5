"""A surface from few evaluations: how near it is to the whole grid, and what it says of its own error."""

from __future__ import annotations

import numpy as np
import pytest

from probes.errors import ObjectiveError
from probes.surface import Goal, axis, column, surveyed

GRID = axis(-1, 1, 51)
X, Y = np.meshgrid(GRID, GRID)
SMOOTH = {
    "quadratic": 3 * X**2 + 0.1 * Y**2 + X * Y,
    "Rosenbrock": 100 * (1.5 * Y - (1.5 * X) ** 2) ** 2 + (1 - 1.5 * X) ** 2,
    "exponential": np.exp(6 * (X + 0.5 * Y)),
    "cross-entropy": np.log1p(np.exp(8 * np.abs(X) - 4)) + np.maximum(0, Y - 0.1) ** 2,
    "waves": 20 + 9 * (X**2 + Y**2) - 10 * np.cos(3 * np.pi * X) - 10 * np.cos(3 * np.pi * Y),
    "narrow well": 1 - np.exp(-((X - 0.3) ** 2 + (Y + 0.4) ** 2) / 0.02),
    "front": np.tanh(4 * (X + Y * Y - 0.3)),
}


def looked_up(cells, calls=None):
    """A function that knows the cells of the grid only, and notes what it is asked."""

    def evaluate(x, y):
        place = round(25 * (y + 1)), round(25 * (x + 1))
        assert abs(GRID[place[1]] - x) < 1e-12 and abs(GRID[place[0]] - y) < 1e-12
        if calls is not None:
            calls.append(place)
        return [cells[place], float(cells[place] > 1)]

    return evaluate


def last(*args, **kwargs):
    return list(surveyed(*args, **kwargs))[-1]


@pytest.mark.parametrize("name", SMOOTH)
def test_the_whole_grid_is_met_within_half_a_percent_of_the_range_in_a_fifth_of_the_evaluations(name: str) -> None:
    cells, calls = SMOOTH[name], []
    found = last(looked_up(cells, calls), GRID, GRID, Goal())
    true = np.abs(found.values - cells).max() / np.ptp(cells)
    assert len(calls) == len(set(calls)) == len(found.at) <= 520
    assert found.error <= 0.005 and true < 0.005
    assert true <= 1.5 * found.error  # the stated error is an estimate
    assert found.held == 80 and found.complete


def test_what_was_evaluated_is_drawn_as_it_is_and_the_model_is_at_the_centre() -> None:
    cells = SMOOTH["front"]
    found = last(looked_up(cells), GRID, GRID, Goal(0.05))
    assert (found.values[found.evaluated] == cells[found.evaluated]).all()
    assert found.evaluated.sum() == len(found.at)
    assert found.evaluated[25, 25] and GRID[25] == 0
    assert not (found.values[~found.evaluated] == cells[~found.evaluated]).all()


def test_a_rough_function_spends_the_budget_and_says_what_error_remains() -> None:
    cells = np.abs(X + 0.5 * Y - 0.2) + 0.05 * np.random.default_rng(0).standard_normal(X.shape)
    found = last(looked_up(cells), GRID, GRID, Goal())
    true = np.abs(found.values - cells).max() / np.ptp(cells)
    assert len(found.at) == 520
    assert found.error > 0.02 and 0.5 * true < found.error < 2 * true


def test_the_budget_is_kept_whatever_it_is() -> None:
    for budget in (60, 121, 170):
        assert len(last(looked_up(SMOOTH["waves"]), GRID, GRID, Goal(1e-9, budget)).at) == budget


def test_no_error_is_stated_before_it_was_put_to_the_test() -> None:
    steps = list(surveyed(looked_up(SMOOTH["waves"]), GRID, GRID, Goal()))
    assert [len(each.at) for each in steps[:3]] == [81, 121, 161]
    assert [each.error is None for each in steps[:3]] == [True, True, False]
    assert [each.complete for each in steps] == [False] * (len(steps) - 1) + [True]
    assert steps[2].error > steps[-1].error


def test_the_stated_error_is_that_of_predictions_made_before() -> None:
    cells = SMOOTH["waves"]
    steps = list(surveyed(looked_up(cells), GRID, GRID, Goal()))
    misses = []
    for before, after in zip(steps[-3:-1], steps[-2:], strict=True):
        new = after.evaluated & ~before.evaluated
        misses.append(np.abs(before.values - cells)[new].max() / np.ptp(cells[before.evaluated | new]))
    assert steps[-1].error == pytest.approx(1.25 * max(misses), rel=0.02)


def test_a_constant_is_known_after_the_first_look() -> None:
    found = last(looked_up(np.full((51, 51), 2.5)), GRID, GRID, Goal())
    assert found.error == pytest.approx(0, abs=1e-3) and len(found.at) <= 161
    assert found.values == pytest.approx(np.full((51, 51), 2.5))


@pytest.mark.filterwarnings("error")
def test_around_values_that_are_not_finite_nothing_is_drawn() -> None:
    cells = np.where(X + Y > 1.2, np.inf, 1 + X**2)
    cells[0, 0] = np.nan
    found = last(looked_up(cells), GRID, GRID, Goal())
    assert np.isnan(found.values[50, 50]) and np.isnan(found.values[0, 0])
    known = np.isfinite(found.values) & np.isfinite(cells)
    assert known.sum() > 0.9 * np.isfinite(cells).sum()
    assert np.abs(found.values - cells)[known].max() < 0.005
    assert found.range == (1.0, 2.0)
    with pytest.raises(ObjectiveError, match="finite at 1 of 81 points"):
        last(looked_up(np.where(X**2 + Y**2 < 0.05, 1.0, np.nan)), GRID, GRID, Goal())


def test_marks_off_the_grid_are_evaluated_and_help() -> None:
    asked = []

    def evaluate(x, y):
        asked.append((x, y))
        return [x**2 + y]

    marks = [(0.123, 0.456), (0.3 + 1e-12, -0.2), (0.123, 0.456 + 1e-6)]
    found = last(evaluate, GRID, GRID, Goal(), marks)
    assert marks[0] in [pytest.approx(each, abs=1e-9) for each in asked]
    assert len(found.at) == len(set(map(tuple, found.at))) == len(found.rows)
    rows = {tuple(at): row[0] for at, row in zip(found.at, found.rows, strict=True)}
    assert all(value == pytest.approx(x**2 + y, abs=1e-9) for (x, y), value in rows.items())
    assert found.error <= 0.005
    assert found.values == pytest.approx(X**2 + Y, abs=1e-3)


def test_other_columns_are_drawn_with_their_own_error() -> None:
    found = last(looked_up(SMOOTH["front"] + 1), GRID, GRID, Goal())
    cells, error = column(found, 1)
    assert cells.min() == 0 and cells.max() == 1  # never beyond what was seen
    assert (cells[found.evaluated] == found.rows[:, 1][_order(found)]).all()
    assert 0 < error <= 1.25


def _order(found):
    places = {(x, y): row for row, (x, y) in enumerate(map(tuple, found.at))}
    rows, columns = np.nonzero(found.evaluated)
    return [places[found.x[column], found.y[row]] for row, column in zip(rows, columns, strict=True)]


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-2.3, 11.9), (-0.1, 7), (-5, 0.2)])
def test_an_axis_has_a_node_at_zero_and_moves_by_half_a_step_at_most(low: float, high: float) -> None:
    found = axis(low, high, 51)
    step = (high - low) / 50
    assert (found == 0).sum() == 1 and len(found) == 51
    assert np.diff(found) == pytest.approx(np.full(50, step))
    assert abs(found[0] - low) <= step / 2 + 1e-12


def test_windows_need_not_be_square() -> None:
    x, y = axis(-2, 9, 51), axis(-1, 3, 41)
    f = lambda a, b: [np.sin(a / 3) * b]
    found = last(f, x, y, Goal(0.005, 400))
    assert found.values.shape == (41, 51)
    assert found.values == pytest.approx(y[:, None] * np.sin(x / 3)[None], abs=0.03)
