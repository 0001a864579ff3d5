"""The gallery of examples on the page of attributions: by prediction, by class, by other analyses, by row."""

# ruff: noqa: F811

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from curvature_oracles import batches
from streamlit.testing.v1 import AppTest
from torch import nn

from analyzers import catalogue
from analyzers._base import Quiet
from probes.objective import Objective
from probes.specs import DataSpec
from tests.laid_pages import MODEL, VERDICT, finish, full_bench, page, store  # noqa: F401
from ui import questions
from workspace.jobs import Jobs
from workspace.requests import analysis
from workspace.store import Store

CLASSES = ("<b>cat</b>", "dog", "=1+1")


class Point:
    """A checkpoint by its name."""

    name, sha256, facts = "weights.safetensors", "0" * 64, {}


def told(store: Store) -> np.ndarray:
    """Lay a bench and the predictions for 60 examples; return which of them are wrong, the surest first."""
    weights, data = full_bench(store)
    spec = DataSpec((data,), examples=500)
    finish(store, questions.gate(weights, MODEL, spec, "cross_entropy"), VERDICT)
    torch.manual_seed(0)
    inputs, labels = torch.randn(60, 4), torch.randint(3, (60,))
    module = nn.Sequential(nn.Linear(4, 3))
    data_of = replace(batches(inputs, labels), classes=CLASSES)
    objective = Objective(module, data_of, "cross_entropy", micro_batch=60)
    lay(store, "predictions", [weights], spec, objective)
    with torch.no_grad():
        chances = module(inputs).softmax(1)
    guess = chances.argmax(1)
    wrong = torch.nonzero(guess != labels)[:, 0]
    return wrong[(chances[wrong, labels[wrong]]).argsort()].numpy()


def lay(store: Store, name: str, texts: list[str], data: DataSpec, objective: Objective) -> None:
    analyzer = catalogue()[name]()
    spec = analysis(analyzer, texts, MODEL, data, "cross_entropy", f"{analyzer.title}: for the gallery")
    analyzer.run(objective, (Point(),), Quiet()).save(store.folder(spec.id))  # type: ignore[arg-type]
    Jobs(store).enqueue(spec)


def way(test: AppTest) -> Any:
    return next(each for each in test.selectbox if each.label == "Examples")


def asked(test: AppTest) -> str:
    return next(each.value for each in test.caption if "Asked about" in each.value)


def test_the_wrong_ones_come_first_and_the_first_is_asked_about(store: Store) -> None:
    wrong = told(store)
    test = page("attribution.py", bench="b1")
    table = test.dataframe[0].value
    assert table["Row"].tolist() == wrong[:48].tolist() and set(table["Label"]) <= set(CLASSES)
    assert (table["Label"] != table["Predicted"]).all()
    assert f"row {table['Row'][0]} (the first, as none is ticked)" in asked(test)
    assert f"{len(wrong)} examples match" in asked(test)
    next(each for each in test.button if each.label == "Run").click().run()
    assert not test.exception
    job = next(each for each in Jobs(store).list(9) if each.payload.get("analyzer") == "attribution")
    assert job.payload["options"]["examples"] == str(table["Row"][0])


@pytest.mark.parametrize("label", CLASSES)
def test_a_class_and_a_pair_are_chosen_by_name(store: Store, label: str) -> None:
    told(store)
    test = page("attribution.py", bench="b1")
    way(test).set_value("class").run()
    next(each for each in test.selectbox if each.label == "Label").set_value(CLASSES.index(label)).run()
    assert not test.exception
    assert set(test.dataframe[0].value["Label"]) == {label}
    way(test).set_value("pair").run()
    assert not test.exception


def test_other_analyses_that_named_none_and_rows_by_hand(store: Store) -> None:
    told(store)
    test = page("attribution.py", bench="b1")
    way(test).set_value("found").run()
    assert not test.exception
    assert any("No other analysis has named examples" in each.value for each in test.info)
    way(test).set_value("By their rows").run()
    rows = next(each for each in test.text_input if each.label == "Rows")
    rows.set_value("3, 7-9").run()
    next(each for each in test.button if each.label == "Run").click().run()
    job = next(each for each in Jobs(store).list(9) if each.payload.get("analyzer") == "attribution")
    assert job.payload["options"]["examples"] == "3, 7-9"


def test_examples_that_another_analysis_has_named(store: Store) -> None:
    told(store)
    weights, data = (next(each.sha256 for each in store.files() if each.name == name)
                     for name in ("weights.safetensors", "data.csv"))  # fmt: skip
    torch.manual_seed(1)
    objective = Objective(nn.Sequential(nn.Linear(4, 3)), batches(torch.randn(60, 4), torch.randint(3, (60,))),
                          "cross_entropy", micro_batch=60)  # fmt: skip
    lay(store, "gradient_alignment", [weights], DataSpec((data,), examples=500), objective)
    test = page("attribution.py", bench="b1")
    way(test).set_value("found").run()
    assert not test.exception
    chosen = next(each for each in test.selectbox if each.label == "Found by")
    assert len(chosen.options) == 1 and chosen.options[0].startswith("Gradient-weight alignment")
    assert len(test.dataframe[0].value) and "Asked about" in asked(test)
