"""The checkpoints of a bench on a time axis: what files and names say, what is typed, and what goes to analyzers."""

from __future__ import annotations

from typing import Any

import pytest

from probes.errors import DataError
from probes.series import series
from ui.bench import Bench
from ui.timeline import Named, as_option, timeline, typed_times, written


def run(*epochs: float | None, names: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Describe checkpoints a, b, c, ... of these epochs."""
    texts = "abcdefgh"
    return {
        texts[place]: {
            "name": names[place] if names else f"{texts[place]}.pt",
            "facts": {} if epoch is None else {"epoch": epoch},
        }
        for place, epoch in enumerate(epochs)
    }


def test_files_order_the_checkpoints_and_nothing_is_typed() -> None:
    line = timeline(run(200, 0, 50), {}, "epoch")
    assert (line.checkpoints, line.times) == (("b", "c", "a"), (0, 50, 200))
    assert (line.unit, line.source, line.typed, line.problem, line.doubts) == ("epoch", "file", "", "", ())
    assert line.labels == ("epoch 0", "epoch 50", "epoch 200")
    assert line.sentence == "3 checkpoints, epoch 0 to 200 (from the files)"


def test_without_times_the_order_stays_and_is_doubted() -> None:
    line = timeline(run(None, None), {}, "epoch")
    assert (line.checkpoints, line.times, line.unit) == (("a", "b"), (0, 1), "position")
    assert "order given" in line.doubts[0]
    assert line.labels == ("checkpoint 0", "checkpoint 1")
    assert line.sentence == "2 checkpoints, in the order given (no epochs known)"


def test_what_is_typed_counts_and_goes_to_analyzers_in_the_order_of_time() -> None:
    found = run(None, None, None)
    line = timeline(found, {"a": 3000.0, "b": 0.0, "c": 1234567.0}, "step")
    assert line.checkpoints == ("b", "a", "c")
    assert (line.typed, line.unit, line.source) == ("step 0, 3000, 1234567", "step", "typed")
    assert line.labels[-1] == "step 1234567"
    # An analyzer that is given these checkpoints in this order reads the same times.
    again = series([Named(found[text]["name"], {}) for text in line.checkpoints], line.typed)
    assert (again.order, again.times, again.unit) == ((0, 1, 2), line.times, "step")


def test_what_is_typed_goes_before_the_files_and_files_fill_the_rest() -> None:
    line = timeline(run(1, 2, 9), {"a": 5.0}, "epoch")
    assert (line.checkpoints, line.times, line.typed) == (("b", "a", "c"), (2, 5, 9), "2, 5, 9")


def test_a_checkpoint_without_a_time_is_named_and_what_is_typed_waits() -> None:
    line = timeline(run(None, None), {"a": 5.0}, "epoch")
    assert line.typed == ""
    assert line.unit == "position"
    assert "No epoch is known of b.pt" in line.doubts[0]


def test_two_of_one_typed_time_are_a_problem() -> None:
    line = timeline(run(None, None), {"a": 7.0, "b": 7.0}, "epoch")
    assert "a.pt and b.pt are both of epoch 7" in line.problem
    assert line.checkpoints == ("a", "b")


def test_two_files_of_one_time_are_named() -> None:
    line = timeline(run(7, 3, 7, names=("best.pt", "three.pt", "last.pt")), {}, "epoch")
    assert (line.problem, line.unit) == ("", "position")
    assert "best.pt and last.pt are both of epoch 7" in line.doubts[0]
    mended = timeline(run(7, 3, 7), {"c": 8.0}, "epoch")
    assert (mended.checkpoints, mended.times, mended.doubts) == (("b", "a", "c"), (3, 7, 8), ())


def test_a_text_becomes_times_by_checkpoint() -> None:
    names = {"a": "a.pt", "b": "b.pt"}
    assert typed_times("step 20 10", names) == ({"a": 20.0, "b": 10.0}, "step")
    with pytest.raises(DataError, match="3 epochs or steps for 2 checkpoints"):
        typed_times("1, 2, 3", names)
    with pytest.raises(DataError, match="numbers from 0 on"):
        typed_times("one, two", names)
    with pytest.raises(DataError, match=r"a\.pt and b\.pt are both of epoch 4"):
        typed_times("4 4", names)


def test_numbers_are_written_in_full() -> None:
    assert [written(each) for each in (0.0, 0.5, 12345678.0)] == ["0", "0.5", "12345678"]
    assert as_option([0.0, 2.5], "epoch") == "0, 2.5"


def test_a_bench_keeps_times() -> None:
    bench = Bench(("a",), times={"a": 5.0}, unit="step")
    assert Bench.from_json(bench.to_json()) == bench
    assert Bench.from_json({}).times == {}
