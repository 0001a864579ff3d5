"""The data step of the workbench, clicked through without a browser: what a preview says is shown and can be chosen."""

from __future__ import annotations

from typing import Any

from probes.specs import DataSpec
from tests.test_pages import PREVIEW, all_markdown, described, finish, page, store  # noqa: F401
from ui import questions
from ui.bench import Bench
from ui.text import as_text
from workspace.jobs import Jobs
from workspace.store import Store

SEEN: dict[str, Any] = {
    **PREVIEW,
    "kind": "images",
    "targets": "classes",
    "channels": [{"name": "0", "mean": 0.47, "std": 0.25, "min": 0.0, "max": 1.0}],
    "samples": [{"id": "cat/1.png", "label": "a", "text": ""}, {"id": "cat/2.png", "label": "b", "text": ""}],
    "duplicates": {
        "seen": 500,
        "contents": 2,
        "first": ["cat/1.png", "cat/2.png", "a", "a"],
        "contradictions": 1,
        "first_contradiction": ["cat/1.png", "[x](y).png", "a", "b"],
        "ids": 1,
        "first_id": ["cat/1.png", 1, 3],
    },
    "own_classes": [],
}


def bench(store: Store, seen: dict[str, Any], **options: Any) -> DataSpec:  # noqa: F811
    spec = DataSpec((store.add_bytes(b"zip", "pets.zip").sha256,), **options)
    store.save_bench("b1", Bench(data=spec, files=spec.files).to_json())
    finish(store, questions.preview(spec), seen)
    return spec


def in_use(store: Store) -> DataSpec:  # noqa: F811
    spec = Bench.from_json(store.bench("b1") or {}).data
    assert spec
    return spec


def test_balance_ranges_and_copies_are_tables_and_sentences(store: Store) -> None:  # noqa: F811
    bench(store, SEEN)
    test = page(bench="b1")
    tables = {tuple(each.value.columns): each.value for each in test.dataframe}
    assert list(tables["Class", "Examples", "Share"]["Share"]) == [40.0, 60.0]
    assert list(tables["Example", "Label"]["Example"]) == ["cat/1.png", "cat/2.png"]
    assert tables["Channel", "Mean", "Standard deviation", "Least", "Greatest"].iloc[0]["Mean"] == "0.47"
    written = " ".join(all_markdown(test))
    assert as_text("Exact copies among the first 500 examples: 2 (first: cat/1.png and cat/2.png)") in written
    assert as_text("Copies with another label: 1 (first: cat/1.png is a, [x](y).png is b)") in written


def test_contradictions_are_louder_than_other_doubts(store: Store) -> None:  # noqa: F811
    bench(store, {**SEEN, "doubts": ["CONTRADICTION: 1 exact copy.", "JPEG is lossy."]})
    test = page(bench="b1")
    assert [as_text("CONTRADICTION: 1 exact copy.") in each.value for each in test.error] == [True]
    assert any("JPEG is lossy" in each.value for each in test.warning)
    assert not any("CONTRADICTION" in each.value for each in test.warning)


def test_a_split_is_chosen_among_those_there_are(store: Store) -> None:  # noqa: F811
    bench(store, {**SEEN, "about": {"of": 500, "splits": ["test", "train"], "split": "train"}})
    test = page(bench="b1")
    split = next(each for each in test.selectbox if each.label == "Split")
    assert split.value is None and split.options == ["test", "train"]
    split.set_value("train").run()
    assert not test.exception and in_use(store).split == "train"
    asked = next(job for job in Jobs(store).list() if job.task == "preview")
    assert asked.payload["data"]["split"] == "train"


def test_the_models_order_of_classes_is_offered_and_can_be_undone(store: Store) -> None:  # noqa: F811
    spec = bench(store, {**SEEN, "own_classes": ["B", "A"]})
    test = page(bench="b1")
    assert any("in another order: B, A" in each.value for each in test.error)
    next(each for each in test.button if each.label == "Use the model's order of classes").click().run()
    assert not test.exception and in_use(store).classes == ("B", "A")
    finish(store, questions.preview(in_use(store)), SEEN)
    test = page(bench="b1")
    assert not any("another order" in each.value for each in test.error)
    assert next(each for each in test.text_area if each.label.startswith("The model's names")).value == "B\nA"
    next(each for each in test.button if each.label == "Use the data's own order of classes").click().run()
    assert in_use(store) == spec


def test_names_of_classes_can_be_written(store: Store) -> None:  # noqa: F811
    bench(store, SEEN, split="test")
    test = page(bench="b1")
    next(each for each in test.text_area if each.label.startswith("The model's names")).input(" b\n\na ")
    next(each for each in test.button if each.label == "Use this data").click().run()
    assert not test.exception and in_use(store).classes == ("b", "a") and in_use(store).split == "test"


def test_the_preview_is_asked_in_the_light_of_a_hugging_face_checkpoint(store: Store) -> None:  # noqa: F811
    weights = store.add_bytes(b"weights", "model.zip").sha256
    data = DataSpec((store.add_bytes(b"text", "t.txt").sha256,))
    store.save_bench("b1", Bench((weights,), data=data, files=data.files).to_json())
    finish(store, questions.inspection(weights), described("model.zip", facts={"hugging_face": {"model_type": "gpt2"}}))
    page(bench="b1")
    asked = next(job for job in Jobs(store).list() if job.task == "preview")
    assert asked.payload == {"data": data.to_json(), "checkpoint": weights}


def test_answers_from_before_are_still_shown(store: Store) -> None:  # noqa: F811
    bench(store, PREVIEW)
    test = page(bench="b1")
    assert any("500 of 1 000 examples" in each.value.replace("\\", "") for each in test.success)


def test_data_of_a_module_are_offered(store: Store, tmp_path: Any, monkeypatch: Any) -> None:  # noqa: F811
    (tmp_path / "mine.py").write_text("def build_model():\n    ...\ndef build_data():\n    ...\n")
    monkeypatch.setenv("THEODOLITE_MODELS", str(tmp_path / "mine.py"))
    test = page(bench="b1")
    next(each for each in test.button if each.label == "Use its data").click().run()
    assert not test.exception and in_use(store).format == "operator"
    assert in_use(store).files[0].startswith("mine@") and len(in_use(store).files[0]) == 17
    (job,) = Jobs(store).list()
    assert job.task == "preview"
