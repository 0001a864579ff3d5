"""Figures and tables of mode connectivity: what is drawn of which numbers, while a run goes on and when it is over."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from connectivity_values import BUMPS, LAMBDAS, card, matrix, result
from scipy.cluster.hierarchy import dendrogram

from analyzers._connectivity_matrix import branches, tree
from probes.errors import ProbeError

FIGURES = {
    "loss", "accuracy", "barriers", "restarts", "layers", "variance_ratio", "layer_barriers", "unit_pairs", "curve",
    "curve_place", "curve_plane", "soups", "dropout", "dropout_layers", "dropout_path",
    "matrix_before", "matrix_after", "dendrogram",
}  # fmt: skip
EARLY = ("checkpoints", "examples", "test_examples", "batch_norm", "definition", "lambda", "restarts", "matcher",
         "distance_naive", "permutations")  # fmt: skip


def named(figure, name: str):  # type: ignore[no-untyped-def]
    return next(each for each in figure.data if each.name == name)


def test_a_whole_result_is_drawn_whole() -> None:
    drawn = result().figures()
    assert set(drawn) == FIGURES
    for figure in drawn.values():
        assert figure.layout.template.layout.colorway and figure.layout.title.text
        for words in ("cross-entropy", "n = 40 examples", "eval mode", "float32"):
            assert words in figure.layout.title.subtitle.text
    for name in ("loss", "accuracy", "barriers", "curve", "dropout_path", "matrix_after"):
        assert "20 test examples" in drawn[name].layout.title.subtitle.text
        assert "measured anew" in drawn[name].layout.title.subtitle.text


def test_while_a_run_goes_on_there_is_what_is_known() -> None:
    whole = result()
    early = replace(whole, values={key: whole.values[key] for key in EARLY}, arrays={})
    assert set(early.figures()) == {"restarts"}
    assert set(early.tables()) == {"restarts", "permutations"}
    assert replace(whole, values={"batch_norm": "none"}, arrays={}).figures() == {}


def test_lines_are_grey_and_coloured_solid_on_the_data_and_dashed_on_the_test_data() -> None:
    found = result()
    figure = found.figures()["loss"]
    for stage, name in (
        ("naive", "as they are"),
        ("matched", "after matching"),
        ("repaired", "after matching and REPAIR"),
    ):
        data, test = named(figure, name), named(figure, f"{name}, test data")
        assert list(data.x) == LAMBDAS and list(data.y) == found.values["loss"][stage]
        assert list(test.y) == found.values["test_loss"][stage]
        assert (data.line.dash, test.line.dash) == ("solid", "dash") and data.line.color == test.line.color
    ends = named(figure, "line between the ends")
    assert list(ends.y) == [0.2, 0.3] and ends.line.width == 1
    bands = [each for each in figure.data if each.fill == "toself"]
    assert len(bands) == 3 and max(bands[0].y) == pytest.approx(0.25 + 0.8 + 0.02)
    assert figure.data[1].line.color == "#7B8794"


def test_bars_have_intervals_and_the_threshold() -> None:
    figure = result().figures()["barriers"]
    bars = [each for each in figure.data if each.type == "bar"]
    assert [each.name for each in bars][:3] == ["as they are", "after matching", "after matching and REPAIR"]
    assert len(bars) == 6
    assert list(bars[0].y) == [0.8] * 3
    assert list(bars[0].error_y.array) == pytest.approx([0.02] * 3)
    assert list(bars[0].error_y.arrayminus) == pytest.approx([0.01] * 3)
    assert named(figure, "counts as none up to 0.05").line.dash == "dash"
    (line,) = figure.layout.shapes
    assert line.y0 == line.y1 == 0.05
    edges = sorted((x + bar.offset, x + bar.offset + bar.width) for bar in bars for x in bar.x)
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(edges)), "no bar hides another"


def test_a_barrier_that_is_not_finite_has_no_bar() -> None:
    found = result()
    lost = {end: {**found.values[f"barrier{end}"], "naive": dict.fromkeys(("git_rebasin", "entezari", "midpoint"))}
            for end in ("", "_low", "_high")}  # fmt: skip
    changed = {f"barrier{end}": each for end, each in lost.items()}
    figure = result(**changed).figures()["barriers"]
    assert not [each for each in figure.data if each.name == "as they are"]


def test_the_plane_is_drawn_to_half_again_what_the_ways_reach() -> None:
    contour = result().figures()["curve_plane"].data[0]
    top = 1.5 * (0.25 + 0.8)  # the naive line is highest
    assert [list(row) for row in contour.z] == [[0.2, 0.3], [0.5, pytest.approx(top)]]
    assert "0.2 % of its range" in result().figures()["curve_plane"].layout.title.subtitle.text


def test_pairs_of_units_are_ordered_by_their_cosine_and_name_their_partners() -> None:
    figure = result().figures(layer="nowhere")["unit_pairs"]
    before, after = named(figure, "cosine as they are"), named(figure, "cosine after matching")
    assert list(after.y) == [0.9, 0.8, 0.7, None] and list(before.y) == [0.2, 0.0, 0.1, None]
    assert [list(each) for each in after.customdata] == [[1, 0], [3, 1], [0, 2], [2, 3]]
    assert "correlation after matching" not in [each.name for each in figure.data]


def test_the_layer_of_the_pairs_can_be_chosen() -> None:
    one = result()
    more = {"pairs_b": np.array([[0.0], [1.0], [0.5]]), "permutation_b": np.array([0])}
    both = replace(one, arrays={**one.arrays, **more})
    assert len(both.figures(layer="b")["unit_pairs"].data[0].x) == 1
    assert len(both.figures(layer="0.weight")["unit_pairs"].data[0].x) == 4


def test_the_matrices_share_their_colours_and_tell_intervals() -> None:
    drawn = result().figures()
    before, after = (drawn[name].data[0] for name in ("matrix_before", "matrix_after"))
    assert before.zmax == after.zmax == pytest.approx(0.2) and before.zmin == after.zmin == 0
    assert before.z[0][0] is None and before.z[0][2] == pytest.approx(0.2) and after.z[2][0] == pytest.approx(0.02)
    assert "0.1 (0.09 to 0.11)" in before.customdata[0][1]


def test_the_tree_is_laid_out_as_scipy_lays_it_out() -> None:
    generator = np.random.default_rng(1)
    barriers = generator.random((7, 7))
    barriers = (barriers + barriers.T) / 2
    np.fill_diagonal(barriers, 0)
    links = tree(barriers.tolist())
    assert links is not None
    order, lines = branches(links)
    expected = dendrogram(links, no_plot=True, get_leaves=True)
    assert order == expected["leaves"]
    theirs = sorted(
        (
            sorted(zip(d, (np.array(i) - 5) / 10, strict=True))
            for d, i in zip(expected["dcoord"], expected["icoord"], strict=True)
        )
    )
    ours = sorted(sorted(zip(x, y, strict=True)) for x, y in lines)
    np.testing.assert_allclose(ours, theirs)


def test_two_checkpoints_or_a_barrier_that_is_not_known_make_no_tree() -> None:
    assert tree([[0.0, 1.0], [1.0, 0.0]]) is None
    assert tree([[0.0, 1.0, None], [1.0, 0.0, 1.0], [None, 1.0, 0.0]]) is None
    lost = matrix(["a", "b", "c"])
    for end in ("", "_low", "_high"):
        lost[f"naive{end}"][0][1] = lost[f"naive{end}"][1][0] = None
    drawn = result(matrix=lost).figures()
    assert "not finite" in drawn["matrix_before"].data[0].customdata[0][1]
    assert len(drawn["dendrogram"].data) == 2


def test_tables_hold_what_is_drawn() -> None:
    found = result()
    tables = found.tables()
    assert FIGURES - {"curve_place", "dendrogram"} <= set(tables)
    loss = tables["loss"]
    rows = loss[(loss.stage == "matched") & (loss.of == "data") & ~loss.as_interpolated]
    assert list(rows.loss) == found.values["loss"]["matched"] and list(rows["lambda"]) == LAMBDAS
    assert set(loss[loss.as_interpolated].stage) == {"naive", "matched"}
    barriers = tables["barriers"].set_index(["of", "stage", "definition"])
    assert barriers.loc[("data", "naive", "midpoint"), "high"] == pytest.approx(BUMPS["naive"] + 0.02)
    assert list(tables["unit_pairs"].second) == [2, 0, 3, 1]
    assert list(tables["unit_pairs"].state) == ["dead in both", "", "", ""]
    assert tables["soups"].chosen[0] == "one.pt, two.pt"
    assert list(tables["matrix_after"].barrier) == pytest.approx([0.01, 0.02, 0.01])


def test_pairs_are_drawn_over_one_another_where_they_are_of_the_same_thing() -> None:
    one = result()
    other = replace(one, card=card(checkpoints=["one.pt", "three.pt"]))
    drawn = one.overlay([other])
    assert set(drawn) == {"loss", "accuracy"} and len(drawn["loss"].data) == 6
    assert len({each.name for each in drawn["loss"].data}) == 6
    with pytest.raises(ProbeError, match="examples_sha256: ab against cd"):
        one.overlay([replace(one, card=card(examples_sha256="cd"))])


def test_names_from_files_cannot_write_markup() -> None:
    bad = "<img src=x>$y$%{z}"
    found = result(layer=bad, names=(bad, f"{bad}2"))
    found = replace(found, card=card(checkpoints=[bad, bad]))
    for figure in {
        **found.figures(),
        **{f"over {name}": each for name, each in found.overlay([found]).items()},
    }.values():
        text = figure.to_json()
        assert "<img" not in text and "\\u003cimg" not in text and "%{z}" not in text and "$y" not in text
