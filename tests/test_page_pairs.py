"""What pages show of a pair: the verdict, checkpoints to be made, results so far, permutations to be looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from analyzers import catalogue
from tests.laid_pages import finish, full_bench, page, store  # noqa: F401
from tests.test_page_results import MODEL, charts, finished, folder  # noqa: F401
from ui import questions
from ui.state import partial_of
from workspace import runs
from workspace.jobs import Jobs
from workspace.store import Store
from workspace.tasks import TASKS
from workspace.tick import FileTick


def test_the_verdict_stands_first_with_what_it_rests_on(store: Store, folder: Path) -> None:  # noqa: F811
    job = finished(store, "mode_connectivity", folder)
    values = catalogue()["mode_connectivity"].result.read(store.folder(job.id)).values
    test = page("mode_connectivity.py", run=job.id)
    boxes = [each.value for kind in (test.success, test.info, test.error, test.warning) for each in kind]
    said = [each for each in boxes if "barrier is" in each.replace("\\", "")]
    assert said and "restarts" in said[0]
    evidence = next(each.value for each in test.markdown if each.value.startswith("- ") and "Threshold" in each.value)
    assert len(evidence.splitlines()) == len(values["verdict_evidence"])


def test_a_merged_checkpoint_is_made_and_laid_on_the_bench(store: Store, folder: Path) -> None:  # noqa: F811
    job = finished(store, "mode_connectivity", folder)
    spec = questions.merging(job.id, "matched")
    place = store.folder(spec.id)
    place.mkdir(parents=True)
    made_of = {**job.payload, "data": {**job.payload["data"], "files": [_stored(store, folder / "data.csv")]}}
    runs.add(store, id="0" * 24, payload=made_of, task="analysis", title="x", lane="device", priority=5)
    store.folder("0" * 24).symlink_to(store.folder(job.id))
    with FileTick(place) as tick:
        TASKS["merge"].run({"run": "0" * 24, "which": "matched"}, store, place, tick)
    found = json.loads((place / "result.json").read_text())
    ends = [load_file(folder / f"epoch-{epoch}.safetensors") for epoch in (0, 1)]
    merged = load_file(place / found["file"])
    assert merged.keys() == ends[0].keys() == dict(MODEL_SHAPES).keys()
    torch.testing.assert_close(merged["2.bias"], (ends[0]["2.bias"] + ends[1]["2.bias"]) / 2)  # no unit of it moves
    runs.add(store, id=spec.id, payload=spec.payload, task="merge", title="x", lane="device", priority=5)
    test = page("mode_connectivity.py", run=job.id, bench="pair")
    next(each for each in test.button if each.label == "Make this checkpoint").click().run()
    assert not test.exception
    assert any(each.label.startswith("Download (") for each in test.get("download_button"))
    next(each for each in test.button if each.label == "Lay it on the bench").click().run()
    assert not test.exception
    assert [each.name for each in store.files()].count(found["name"]) == 1
    laid = store.bench("pair")
    assert laid is not None and len(laid["checkpoints"]) == 1


MODEL_SHAPES = {"0.weight": (5, 6), "0.bias": (5,), "2.weight": (3, 5), "2.bias": (3,)}


def _stored(store: Store, path: Path) -> str:  # noqa: F811
    return store.add_file(path, path.name).sha256


def test_a_result_so_far_is_drawn_while_the_run_goes_on(store: Store, folder: Path) -> None:  # noqa: F811
    job = finished(store, "loss_path", folder)
    result = catalogue()["loss_path"].result.read(store.folder(job.id))
    other = questions.JobSpec("analysis", {**job.payload, "title": "again"}, "Loss path: again")
    runs.add(store, id=other.id, payload=other.payload, task="analysis", title=other.title, lane="device", priority=5)
    runs.begin(store, other.id, 1)
    with FileTick(store.folder(other.id)) as tick:
        test = page("loss_path.py", run=other.id)
        assert not charts(test)
        tick.show(result)
        test = page("loss_path.py", run=other.id)
        assert len(charts(test)) == len(result.figures())
        assert any("So far" in each.value for each in test.caption)
        found = partial_of(other.id, "loss_path")
        assert found is not None and found.values["loss"] == result.values["loss"]
    assert partial_of(other.id, "loss_path") is None
    assert Jobs(store).status(other.id).is_open  # type: ignore[union-attr]


@pytest.mark.parametrize("edited", [False, True])
def test_permutations_are_derived_from_the_model_or_checked_as_edited(
    store: Store, folder: Path, tmp_path: Path, edited: bool  # noqa: F811
) -> None:  # fmt: skip
    job = finished(store, "mode_connectivity", folder)
    payload = {name: job.payload[name] for name in ("model", "loss")}
    payload |= {"checkpoint": job.payload["checkpoints"][0]}
    payload |= {"data": {**job.payload["data"], "files": [_stored(store, folder / "data.csv")]}}
    with FileTick(tmp_path) as tick:
        TASKS["specification"].run(payload, store, tmp_path, tick)
        found = json.loads((tmp_path / "result.json").read_text())
        assert {(row["tensor"], row["axis"]) for row in found["rows"]} == {
            ("0.weight", 0),
            ("0.bias", 0),
            ("2.weight", 1),
        }
        assert found["error"] < 1e-10
        if edited:
            rows = [dict(row) for row in found["rows"] if row["tensor"] != "0.bias"]
            with pytest.raises(Exception, match="is refused"):
                TASKS["specification"].run({**payload, "rows": rows}, store, tmp_path, tick)
            TASKS["specification"].run({**payload, "rows": found["rows"]}, store, tmp_path, tick)
            again = json.loads((tmp_path / "result.json").read_text())
            assert again["rows"] == found["rows"]
    assert MODEL.source == "text"
