"""The analyzer of captions: its values from their definitions, figures, restarts, and a model trained on shapes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import clip_cases as cases
import numpy as np
import pytest
import torch
from curvature_oracles import mlp

from analyzers._base import Arrays, Quiet
from analyzers.caption_misalignment import CaptionMisalignment, MisalignmentResult
from probes.attribution import AttributionError, clip
from probes.clip import CLIP
from probes.data import read_batches
from probes.objective import Objective
from probes.specs import DataSpec, ModelSpec
from ui.example_numbers import captions
from ui.text import percent
from workspace.jobs import JobSpec
from workspace.requests import analysis
from workspace.store import Store
from workspace.tasks import TASKS

HOSTILE = "<i>red $x$ %{z}"


@pytest.fixture(scope="module")
def objective(tmp_path_factory: pytest.TempPathFactory) -> Objective:
    pictures, texts = cases.shapes(9)
    return cases.objective(tmp_path_factory.mktemp("clip"), cases.model(), pictures, [*texts[:8], HOSTILE])


@pytest.fixture(scope="module")
def result(objective: Objective) -> MisalignmentResult:
    return CaptionMisalignment(top=5, null_images=3, tolerance=0.05).run(objective, (), Quiet())


def test_values_are_what_their_names_say(objective: Objective, result: MisalignmentResult) -> None:
    values = result.values
    own = clip.scores(objective, clip.image_vectors(objective), objective.targets,
                      [each.words for each in objective.batches.captions])  # fmt: skip
    assert values["pairs"] == 9 and len(values["rows"]) == 9
    for row, scores in zip(values["rows"], own.words, strict=True):
        assert row["scores"] == pytest.approx(scores)
        letters = [place for place, word in enumerate(row["words"]) if any(map(str.isalnum, word))]
        worst = min(letters, key=lambda place: scores[place])
        assert (row["worst_word"], row["worst_score"]) == (row["words"][worst], pytest.approx(scores[worst]))
        assert row["misaligned"] == (scores[worst] < -5e-5)
        assert row["f_clip_score"] == pytest.approx(row["cosine"] + sum(each for each in scores if each < 0))
    assert values["worst_word"] == [each["worst_word"] for each in values["rows"]]
    order = np.argsort(result.arrays["worst"], kind="stable")
    assert values["listed"] == order[:5].tolist()
    json.dumps(result.to_json(), allow_nan=False)


def test_what_stands_above_the_figures_agrees_with_the_values(result: MisalignmentResult) -> None:
    cells = {each.label: each for each in captions(result.values)}
    assert cells["Misaligned pairs"].text == str(sum(row["misaligned"] for row in result.values["rows"]))
    preferred, found = result.values["lower_on_others_f_clip_score"], result.values["swaps"]
    assert cells["Own image preferred"].text == percent(preferred["mean"])
    assert cells["Swapped words found"].text == percent(found["hit_rate"])
    assert f"By chance: {percent(found['chance'])}." in cells["Swapped words found"].help
    assert cells["Swapped words found"].note == f"[{percent(found['low'])}, {percent(found['high'])}]"


def test_the_null_is_the_same_caption_on_other_images(objective: Objective, result: MisalignmentResult) -> None:
    images, captions = result.arrays["null_images"], result.arrays["null_captions"]
    texts = [each.text for each in objective.batches.captions]
    assert len(images) == 27 and all(texts[a] != texts[b] for a, b in zip(images, captions, strict=True))
    vectors = clip.image_vectors(objective)
    words = [objective.batches.captions[row].words for row in captions]
    again = clip.scores(objective, vectors[torch.from_numpy(images)], objective.targets[captions], words)
    assert result.arrays["null_cosines"] == pytest.approx(again.cosines, abs=1e-6)
    row = result.values["rows"][4]
    mine = np.stack([each for each, caption in zip(again.words, captions, strict=True) if caption == 4])
    assert row["typical"] == pytest.approx(mine.mean(0), abs=1e-7)
    share = [np.mean(again.cosines[captions == each] < result.arrays["cosines"][each]) for each in range(9)]
    assert result.values["lower_on_others_cosine"]["mean"] == pytest.approx(np.mean(share))


def test_a_model_of_random_weights_is_said_to_tell_nothing(result: MisalignmentResult) -> None:
    found = result.values["lower_on_others_worst"]
    assert found["low"] <= 0.5 <= found["high"]
    assert any("do not tell a fitting caption" in each for each in result.caveats)
    assert any("could be given a swapped word" in each for each in result.caveats)


def test_figures_and_tables_survive_saving_and_hostile_captions(result: MisalignmentResult, tmp_path: Path) -> None:
    result.save(tmp_path)
    again = MisalignmentResult.read(tmp_path)
    figures, tables = again.figures(), again.tables()
    assert set(figures) == {"captions", "gallery", "patches", "scores", "swaps"}
    assert set(tables) <= set(figures)
    for drawn in figures.values():
        text = drawn.to_json()
        assert "<i>" not in text and "\\u003ci\\u003e" not in text and "$x$" not in text
    cells = figures["captions"].data[0]
    assert np.nanmax(np.abs(np.array(cells.z, float))) == pytest.approx(cells.zmax) == -cells.zmin
    first = result.values["rows"][result.values["listed"][0]]
    assert first["words"][0] in cells.text[0][0] and f"{first['scores'][0]:+.1e}" in cells.text[0][0]
    assert len(tables["captions"]) == result.values["words"] and len(tables["scores"]) == 9
    assert result.arrays["patches"].shape == (5, 4, 4) and result.arrays["pictures"].shape == (5, 16, 16, 3)


def test_options_leave_out_what_is_not_asked_for(objective: Objective) -> None:
    asked = CaptionMisalignment(swaps=False, patches=False, order="order of the data", top=3, blocks=1)
    found = asked.run(objective, (), Quiet())
    assert found.values["listed"] == [0, 1, 2] and set(found.figures()) == {"captions", "gallery", "scores"}
    lowest = CaptionMisalignment(swaps=False, patches=False, order="F-CLIPScore", top=9).run(objective, (), Quiet())
    assert np.all(np.diff(lowest.arrays["f_clip"][lowest.values["listed"]]) >= 0)
    strict = CaptionMisalignment(swaps=False, patches=False, threshold=-1.0).run(objective, (), Quiet())
    assert strict.values["misaligned_pairs"] == 0 and strict.values["misaligned_words"]["mean"] == 0


class _Keeping(Quiet):
    def __init__(self) -> None:
        self.kept: dict[str, Arrays] = {}
        self.shares: list[float] = []

    def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
        self.shares.append(share)

    def save(self, key: str, arrays: Arrays) -> None:
        self.kept[key] = arrays

    def load(self, key: str) -> Arrays | None:
        return self.kept.get(key)


def test_a_killed_run_goes_on(
    objective: Objective, result: MisalignmentResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, tick = CaptionMisalignment(top=5, null_images=3, tolerance=0.05), _Keeping()
    asked.run(objective, (), tick)
    assert tick.shares == sorted(tick.shares) and tick.shares[0] >= 0 and tick.shares[-1] <= 1
    monkeypatch.setattr(clip, "scores", lambda *_: pytest.fail("scored again"))
    again = asked.run(objective, (), tick)
    assert again.values == result.values


def test_pairs_that_are_all_alike_have_no_null(tmp_path: Path) -> None:
    pictures, _ = cases.shapes(3)
    found = CaptionMisalignment(patches=False).run(
        cases.objective(tmp_path, cases.model(), pictures, ["a red circle"] * 3), (), Quiet()
    )
    assert found.values["lower_on_others_worst"] is None and found.values["swaps"] is None
    assert any("Nothing is known of what these scores are by chance" in each for each in found.caveats)
    assert set(found.figures()) == {"captions", "gallery", "scores"}


def test_other_models_are_refused_in_words() -> None:
    net, data = mlp()
    with pytest.raises(AttributionError, match="needs a CLIP model"):
        CaptionMisalignment().run(Objective.of(net, data, "cross_entropy", device="cpu"), (), Quiet())


def _ready(tmp_path: Path, seed: int) -> Any:
    """A CLIP trained on 640 coloured shapes for some seconds."""
    pictures, texts = cases.shapes(640, seed)
    path = cases.zipped(tmp_path / "train.zip", pictures, texts)
    cases.folder(tmp_path / "start", made := cases.model(seed, width=32, layers=3))
    from probes.dataset.preprocessing import preprocessing_of

    plan = preprocessing_of((tmp_path / "start" / "preprocessor_config.json").read_bytes())
    data = read_batches(DataSpec((str(path),)), {}, 16, tmp_path / "start" / "tokenizer.json", own_preprocessing=plan)
    groups = torch.tensor([sorted(set(texts)).index(each) for each in texts])
    cases.train(made, data.inputs, data.targets, groups, 300, seed)
    return made


def test_a_trained_model_finds_the_swapped_word(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = _ready(tmp_path, 0)
    finally:
        torch.set_num_threads(threads)
    assert type(made).__name__ == CLIP
    objective = cases.objective(tmp_path, made, *cases.shapes(160, 100))
    found = CaptionMisalignment(patches=False, null_images=4).run(objective, (), Quiet()).values
    swaps = found["swaps"]
    assert swaps["captions"] == 160 and swaps["chance"] == pytest.approx(1 / 3)
    assert swaps["low"] > max(swaps["chance"], swaps["unchanged"])
    for name in ("cosine", "f_clip_score"):
        assert found[f"lower_on_others_{name}"]["low"] > 0.6


def test_an_upload_goes_all_the_way_to_the_result(tmp_path: Path) -> None:
    store = Store(tmp_path / "workspace")
    cases.folder(tmp_path / "clip", cases.model())
    shutil.make_archive(str(tmp_path / "model"), "zip", tmp_path / "clip")
    cases.zipped(tmp_path / "pairs.zip", *cases.shapes(6, side=24))
    model, pairs = (store.add_file(tmp_path / name, name).sha256 for name in ("model.zip", "pairs.zip"))

    def ask(spec: JobSpec) -> Any:
        folder = store.folder(spec.id)
        folder.mkdir(parents=True, exist_ok=True)
        TASKS[spec.task].run(json.loads(json.dumps(spec.payload)), store, folder, Quiet())
        return json.loads((folder / "result.json").read_text())

    found = ask(JobSpec("inspect", {"file": model}, ""))
    spec, data = ModelSpec.from_json(found["recognition"]["spec"]), DataSpec((pairs,))
    assert spec == ModelSpec("hugging_face", folder=model) and found["recognition"]["title"].startswith("CLIPModel")
    seen = ask(JobSpec("preview", {"data": data.to_json(), "checkpoint": model, "model": spec.to_json()}, ""))
    assert seen["targets"] == "captions" and seen["shape"] == [3, 16, 16] and seen["about"]["std"] == cases.STD
    both = {"model": spec.to_json(), "data": data.to_json(), "loss": "caption_distance"}
    gate = ask(JobSpec("gate", {"checkpoint": model, **both}, ""))
    assert gate["verdict"] == "nothing to compare" and gate["accuracy"] is None
    asked = analysis(CaptionMisalignment(patches=False), [model], spec, data, "caption_distance", "")
    result = ask(asked)["values"]
    assert result["pairs"] == 6 and result["mean_cosine"] == pytest.approx(1 - gate["loss"], abs=1e-5)
    assert result["rows"][0]["caption"] == "a red circle."
