"""Figures and tables of influence: they show the numbers of the result, and nothing from files is taken for markup."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from curvature_oracles import mlp
from series_runs import a_run, moved

from analyzers._base import Quiet
from analyzers.influence import Influence


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    module, data = mlp()
    ids = (*tuple(f"<b>{row}</b> $x$" for row in range(12)), "<b>0</b> $x$")
    data = replace(data, classes=("<i>cat</i>", "dog", "%{x}"), ids=ids)
    objective, checkpoints = a_run(tmp_path_factory.mktemp("run"), module, moved(module, 3, 0.2), data)
    objective.about["model"] = "<b>net</b>"
    ask = Influence(top=4, null_examples=3, example="7", learning_rates="0.5")
    return ask.run(objective, checkpoints, Quiet())


def test_bars_and_diamonds_are_the_listed_examples(hostile) -> None:
    drawn = hostile.figures()["influence"]
    bars = {each.name: each for each in drawn.data}
    listed = hostile.values["examples"]
    for name in ("helped", "hurt"):
        mine = sorted(each["influence"] for each in listed if each["group"] == name)
        assert sorted(bars[name.capitalize()].x) == pytest.approx(mine)
    typical = bars["Mean on 3 random examples"]
    assert sorted(typical.x) == pytest.approx(sorted(each["typical_influence"] for each in listed))
    assert len(set(typical.y)) == len(listed)
    assert list(drawn.layout.yaxis.categoryarray) == list(typical.y)[::-1]


def test_the_distribution_is_of_all_but_the_example_itself(hostile) -> None:
    drawn = hostile.figures()["influence_distribution"]
    null, own, helped, hurt = drawn.data
    assert sum(own.y) == pytest.approx(1.0)
    assert sum(null.y) == pytest.approx(1.0)
    assert min(own.x) - own.width / 2 <= np.nanmin(hostile.arrays["null"])
    assert len(helped.x) + len(hurt.x) == len(hostile.values["examples"])
    assert min(helped.y) > 0  # on a logarithmic axis


def test_the_way_over_the_run_is_the_running_sum(hostile) -> None:
    helped, hurt, both = hostile.figures()["influence_over_time"].data
    np.testing.assert_allclose(helped.y, np.cumsum(hostile.values["contributions_helped"]))
    assert both.y[-1] == pytest.approx(hostile.values["influence_sum"])
    assert (np.diff(hurt.y) <= 0).all()
    assert list(helped.x) == hostile.values["times"]


def test_nothing_from_files_is_taken_for_markup(hostile) -> None:
    for drawn in hostile.figures().values():
        text = drawn.to_json()
        assert "<b>" not in text.replace("\\u003c", "<")
        assert "<i>" not in text.replace("\\u003c", "<")
        assert "$x$" not in text


def test_tables_hold_every_example_and_every_checkpoint(hostile) -> None:
    tables = hostile.tables()
    assert set(tables) == set(hostile.figures())
    everything = tables["influence_distribution"]
    assert len(everything) == 13
    assert (np.diff(everything["influence"]) <= 0).all()
    assert len(tables["influence_over_time"]) == 3
    assert next(iter(tables["influence"]["influence"])) == pytest.approx(everything["influence"].drop(
        everything.index[everything["row"] == 7]).iloc[0])  # fmt: skip


def test_one_checkpoint_has_no_way(tmp_path) -> None:
    module, data = mlp()
    objective, checkpoints = a_run(tmp_path, module, moved(module, 1), data)
    for ask in (Influence(null_examples=2), Influence(null_examples=2, method="inverse fisher")):
        found = ask.run(objective, checkpoints, Quiet())
        assert set(found.figures()) == {"influence", "influence_distribution"}
    said = Influence(null_examples=2).run(objective, checkpoints, Quiet()).caveats
    assert any("one checkpoint only" in each for each in said)
    assert any("learning rates are 1" in each for each in said)
