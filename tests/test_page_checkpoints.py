"""The workbench with files that hold several sets of weights, adapters, and models of other sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from probes.specs import ModelSpec
from tests.test_pages import described, finish, page, store, wait  # noqa: F401
from ui import questions
from ui.bench import Bench
from workspace import runs
from workspace.store import Store


def bench_with(store: Store, name: str, **changes: Any) -> tuple[str, AppTest]:  # noqa: F811
    sha256 = store.add_bytes(name.encode(), name).sha256
    finish(store, questions.inspection(sha256), {**described(name), "sha256": sha256, **changes})
    store.save_bench("b", Bench(checkpoints=(sha256,)).to_json())
    return sha256, page(bench="b")


def chosen(test: AppTest, label: str) -> Any:
    return next(each for each in test.selectbox if each.label.startswith(label))


def test_a_moving_average_is_chosen_by_its_name(store: Store) -> None:  # noqa: F811
    sets = {"sets": ["model", "model_ema"], "weights": "model"}
    sha256, test = bench_with(store, "run.pt", **sets)
    choice = chosen(test, "Weights of run")
    assert choice.options == ["model", "model_ema"]
    choice.set_value("model_ema").run()
    assert not test.exception
    assert Bench.from_json(store.bench("b") or {}).checkpoints == (f"{sha256}:model_ema",)
    assert questions.name_of(f"{sha256}:model_ema") == "run.pt (model_ema)"


def test_an_adapter_is_laid_upon_its_base(store: Store) -> None:  # noqa: F811
    base = store.add_bytes(b"base", "base.safetensors").sha256
    finish(store, questions.inspection(base), {**described("base.safetensors"), "sha256": base})
    facts = {"lora": {"base": "some/model", "r": 8}}
    sha256, test = bench_with(store, "adapter.zip", facts=facts)
    choice = chosen(test, "Base of the adapter")
    choice.set_value(base).run()
    assert not test.exception
    assert Bench.from_json(store.bench("b") or {}).checkpoints == (f"{sha256}+{base}",)
    assert questions.name_of(f"{sha256}+{base}") == "adapter.zip on base.safetensors"


def test_the_runner_up_and_what_was_left_behind_are_shown(store: Store) -> None:  # noqa: F811
    mismatch = {"missing": ["head.bias"], "unexpected": [], "shapes": [], "absent": [], "exact": False, "sentence": "x"}
    recognition = {
        **described("a")["recognition"],
        "runner_up": {"title": "LeNet", "mismatch": mismatch, "sentence": "No."},
    }
    _, test = bench_with(store, "run.pt", recognition=recognition, left=["argparse.Namespace"])
    assert any("LeNet" in each.label for each in test.expander)
    assert any("argparse.Namespace" in each.value for each in test.code)


def test_a_model_of_torchvision_is_named(store: Store) -> None:  # noqa: F811
    _, test = bench_with(store, "run.pt")
    ways = next(each for each in test.button_group if "torchvision or timm" in str(each.options))
    ways.set_value("library").run()
    next(each for each in test.text_input if each.label == "Model").set_value("torchvision/resnet18")
    next(each for each in test.number_input if each.label == "Classes").set_value(10)
    next(each for each in test.button if each.label == "Use this model").click().run()
    expected = ModelSpec("library", "torchvision/resnet18", {"num_classes": 10, "in_chans": 3})
    assert Bench.from_json(store.bench("b") or {}).model == expected


def test_the_operators_own_models_are_offered_only_where_there_are_some(
    store: Store,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, test = bench_with(store, "run.pt")
    assert not any("This server's own" in str(each.options) for each in test.button_group)
    canary = tmp_path / "canary"
    file = tmp_path / "ours.py"
    file.write_text(f"open({str(canary)!r}, 'w')\n\ndef build_model():\n    return None\n")
    monkeypatch.setenv("THEODOLITE_MODELS", str(file))
    test = page(bench="b")
    ways = next(each for each in test.button_group if "This server's own" in str(each.options))
    ways.set_value("operator").run()
    next(each for each in test.button if each.label == "Use this model").click().run()
    model = Bench.from_json(store.bench("b") or {}).model
    assert model is not None
    assert model.source == "operator"
    assert not canary.exists()


def test_a_refused_file_is_taken_off_the_bench(store: Store) -> None:  # noqa: F811
    sha256 = store.add_bytes(b"x", "broken.pt").sha256
    spec = questions.inspection(sha256)
    wait(store, spec)
    runs.begin(store, spec.id, 1)
    runs.end(store, spec.id, 1, "failed", "broken.pt is empty.")
    store.save_bench("b", Bench(checkpoints=(sha256,)).to_json())
    test = page(bench="b")
    assert any("broken" in each.value for each in test.error)
    next(each for each in test.button if each.label == "Take off the bench").click().run()
    assert Bench.from_json(store.bench("b") or {}).checkpoints == ()
