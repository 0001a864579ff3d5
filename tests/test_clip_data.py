"""Images with captions from zips, folders and arrays, and what a preprocessor_config.json does to them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import clip_cases as cases
import numpy as np
import pytest
from PIL import Image

from probes.data import preview, read_batches
from probes.dataset.captions import from_ids
from probes.dataset.preprocessing import preprocessing_of
from probes.errors import DataError
from probes.specs import DataSpec
from ui import ready
from workspace.opened import own_of


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokenizer.json"
    cases.tokenizer().save(str(path))
    return path


def settings(**more: Any) -> bytes:
    return json.dumps({"image_mean": cases.MEAN, "image_std": cases.STD, **more}).encode()


def written(path: Path, files: dict[str, bytes | str]) -> DataSpec:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return DataSpec((str(path),))


@pytest.mark.parametrize("listed", ["captions.csv", "images/captions.jsonl"])
def test_pairs_are_read_in_the_order_of_the_list(tmp_path: Path, tokenizer: Path, listed: str) -> None:
    pictures, texts = cases.shapes(6)
    spec = DataSpec((str(cases.zipped(tmp_path / "d.zip", pictures, texts, listed)),), examples=4)
    found = read_batches(spec, own_tokenizer=tokenizer)
    assert found.inputs.shape == (4, 3, 16, 16) and found.ids == tuple(f"images/{row}.png" for row in range(4))
    assert np.allclose(found.inputs.numpy(), pictures[:4].transpose(0, 3, 1, 2) / 255, atol=1e-6)
    oracle = cases.tokenizer()
    for row, text in enumerate(texts[:4]):
        ids = oracle.encode(text).ids
        assert found.targets[row].tolist() == ids + [1] * (found.targets.shape[1] - len(ids))
        assert found.captions[row].text == text
        assert [each.text for each in found.captions[row].words] == [*text[:-1].split(), "."]
    assert found.doubts == () and found.classes == ()


def test_a_folder_an_image_twice_and_an_image_without_caption(tmp_path: Path, tokenizer: Path) -> None:
    pictures, _ = cases.shapes(3)
    for row, each in enumerate(pictures):
        (tmp_path / "data" / "sub").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "sub" / f"{row}.png").write_bytes(cases.png(each))
    lines = ["image\ttext", "1.png\ta red, round circle", "0.png\ta square", "1.png\ta circle"]
    (tmp_path / "data" / "captions.tsv").write_text("\n".join(lines))
    found = read_batches(DataSpec((str(tmp_path / "data"),)), own_tokenizer=tokenizer)
    assert found.ids == ("sub/1.png #1", "sub/0.png", "sub/1.png #2")
    assert [each.text for each in found.captions] == ["a red, round circle", "a square", "a circle"]
    assert (found.inputs[0] == found.inputs[2]).all() and not (found.inputs[0] == found.inputs[1]).all()
    assert found.doubts == ("1 of 3 images have no caption and are left out.",)


def test_words_have_their_tokens(tmp_path: Path, tokenizer: Path) -> None:
    pictures, _ = cases.shapes(2)
    texts = ["A Red square-circle's  cross!", "a c"]
    spec = DataSpec((str(cases.zipped(tmp_path / "d.zip", pictures, texts)),))
    found = read_batches(spec, own_tokenizer=tokenizer)
    oracle = cases.tokenizer()
    words = found.captions[0].words
    assert [each.text for each in words] == ["A", "Red", "square-circle's", "cross", "!"]
    made = oracle.encode("A Red square-circle's cross!")
    for word in words:
        spans = [made.offsets[place] for place in range(word.first, word.end)]
        text = "A Red square-circle's cross!"
        assert text[spans[0][0] : spans[-1][1]] == word.text
    assert words[0].first == 1 and words[-1].end == len(made.ids) - 1


def test_long_captions_keep_their_end(tmp_path: Path, tokenizer: Path) -> None:
    pictures, _ = cases.shapes(2)
    spec = DataSpec((str(cases.zipped(tmp_path / "d.zip", pictures, ["a red circle a blue cross", "a circle"])),))
    found = read_batches(spec, {}, 5, tokenizer)
    assert found.targets.shape == (2, 5) and found.targets[0, -1] == 1
    assert [each.text for each in found.captions[0].words] == ["a", "red", "circle"]
    assert found.doubts == ("1 of 2 captions have more than 5 tokens and are cut.",)


def test_arrays_of_images_with_ids_or_strings(tmp_path: Path, tokenizer: Path) -> None:
    pictures, texts = cases.shapes(3)
    oracle = cases.tokenizer()
    rows = [oracle.encode(each).ids for each in texts]
    ids = np.array([[*each, *[1] * (8 - len(each))] for each in rows])
    np.savez(tmp_path / "ids.npz", images=pictures, input_ids=ids)
    np.savez(tmp_path / "texts.npz", images=pictures, captions=np.array(texts))
    own = {"own_tokenizer": tokenizer, "own_preprocessing": preprocessing_of(settings())}
    one, two = (read_batches(DataSpec((str(tmp_path / name),)), **own) for name in ("ids.npz", "texts.npz"))
    assert one.targets.tolist() == ids.tolist() and (one.inputs == two.inputs).all()
    assert one.about["mean"] == cases.MEAN and two.captions[0].text == texts[0]
    assert one.captions[0].text == "a red circle ."
    assert [(each.first, each.end) for each in one.captions[0].words] == [
        (each.first, each.end) for each in two.captions[0].words
    ]
    unknown = read_batches(DataSpec((str(tmp_path / "ids.npz"),)))
    assert [each.text for each in unknown.captions[0].words] == [str(each) for each in rows[0][1:-1]]


def test_ids_are_joined_to_words_at_the_marks_of_the_tokenizer() -> None:
    names = {0: "<s>", 1: "</s>", 5: "circ", 6: "le</w>", 7: "a</w>", 8: "!"}
    (found,) = from_ids(np.array([[0, 7, 5, 6, 8, 1, 1]]), lambda each: names[each])
    assert [(each.text, each.first, each.end) for each in found.words] == [("a", 1, 2), ("circle", 2, 4), ("!", 4, 5)]


@pytest.mark.parametrize("size", [(20, 31), (31, 20), (16, 16), (9, 40)])
def test_images_are_resized_and_cropped_as_transformers_does(size: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessorPil

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    held = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True}
    plan = preprocessing_of(settings(**held))
    assert plan is not None
    theirs = CLIPImageProcessorPil(do_normalize=False, **held)(Image.fromarray(pixels), return_tensors="np")
    own = plan.applied(pixels)
    assert own.shape == (16, 16, 3)
    assert np.abs(own.transpose(2, 0, 1) / 255 - theirs["pixel_values"][0]).max() < 1.01 / 255


def test_small_images_get_black_borders() -> None:
    plan = preprocessing_of(settings(crop_size=6, do_center_crop=True, do_resize=False))
    assert plan is not None and plan.words() == "cut to the middle 6 x 6"
    found = plan.applied(np.full((4, 8, 3), 9, np.uint8))
    assert found.shape == (6, 6, 3) and (found[1:5] == 9).all() and (found[[0, 5]] == 0).all()


@pytest.mark.parametrize(
    "held", [b"", b"[]", b"{", json.dumps({"do_rescale": False}).encode(), b"[" * 100_000]
)  # fmt: skip
def test_settings_that_cannot_be_used_are_none(held: bytes) -> None:
    assert preprocessing_of(held) is None


@pytest.mark.parametrize(
    "changes",
    [{"size": -3}, {"size": {"shortest_edge": "9"}}, {"size": 2**40}, {"image_std": [0, 1, 1]},
     {"image_mean": ["a"] * 3}, {"image_mean": [1.0]}, {"crop_size": None, "do_center_crop": True}, {"resample": 99}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_left_out(changes: dict[str, Any]) -> None:
    plan = preprocessing_of(settings(**changes))
    assert plan is not None and not plan.shortest and not plan.size and not plan.crop
    assert (
        bool(plan.mean) == (not any(each.startswith("image") for each in changes)) and plan.resample.name == "BICUBIC"
    )


def test_the_folder_brings_tokenizer_context_and_normalisation(tmp_path: Path) -> None:
    from probes.checkpoint import read_checkpoint
    from probes.models import recognise

    checkpoint = read_checkpoint(cases.folder(tmp_path / "clip", cases.model()))
    spec = recognise(checkpoint).spec
    assert spec is not None
    own = own_of(spec, checkpoint)
    assert (own.context, own.vocabulary) == (16, 256)
    assert own.tokenizer is not None and own.preprocessing is not None
    assert own.preprocessing.shortest == 16 and own.preprocessing.mean == tuple(cases.MEAN)
    assert not any("preprocessor" in each for each in checkpoint.left)
    pictures, texts = cases.shapes(4, side=24)
    data = DataSpec((str(cases.zipped(tmp_path / "p.zip", pictures, texts)),))
    seen = preview(data, own=own)
    assert seen["targets"] == "captions" and seen["shape"] == [3, 16, 16] and seen["about"]["mean"] == cases.MEAN
    assert [each["text"] for each in seen["samples"]] == texts and seen["labels"] == []
    chosen = DataSpec(data.files, mean=(0.5,), std=(0.5,))
    assert preview(chosen, own=own)["about"]["mean"] == [0.5]


def test_the_loss_is_chosen_by_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"targets": "captions", "about": {}, "classes": [], "labels": []}
    monkeypatch.setattr(ready, "look", lambda _bench: "asked")
    monkeypatch.setattr(ready, "answer", lambda _asked: found)
    assert ready.usual_loss(ready.Bench()) == "caption_distance"


IMAGE = {"a/0.png": cases.png(cases.shapes(1)[0][0]), "a/1.png": cases.png(cases.shapes(2)[0][1])}


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("file,caption\nx.png,a circle\n", "row 1 names 'x.png', which is not there"),
        ("file,caption\n0.png,\n", "row 1 has '' where a text is needed"),
        ("file,title\n0.png,a\n", "has no captions"),
        ("name,caption\n0.png,a\n", "has no file names"),
        ("file,caption\n0.png,a, b\n", "need quotes"),
        ("file,caption\n", "lists no captions"),
        ("file,caption\n0.png," + "a" * 3000 + "\n", "at most 2000"),
    ],
)
def test_lists_with_mistakes_are_refused_by_row(tmp_path: Path, tokenizer: Path, listed: str, words: str) -> None:
    spec = written(tmp_path / "d.zip", {**IMAGE, "a/captions.csv": listed})
    with pytest.raises(DataError, match=words):
        read_batches(spec, own_tokenizer=tokenizer)


def test_what_cannot_be_pairs_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    line = "file,caption\n0.png,a circle\n"
    with pytest.raises(DataError, match=r"need the tokenizer of the model"):
        read_batches(written(tmp_path / "a.zip", {**IMAGE, "captions.csv": line}))
    with pytest.raises(DataError, match="2 lists of captions"):
        both = {**IMAGE, "captions.csv": line, "a/captions.csv": line}
        read_batches(written(tmp_path / "b.zip", both), own_tokenizer=tokenizer)
    with pytest.raises(DataError, match="is not UTF-8"):
        read_batches(written(tmp_path / "c.zip", {**IMAGE, "captions.csv": b"file,caption\n0.png,\xff\n"}),
                     own_tokenizer=tokenizer)  # fmt: skip
    with pytest.raises(DataError, match="row 1 is no JSON"):
        read_batches(written(tmp_path / "d.zip", {**IMAGE, "captions.jsonl": "{"}), own_tokenizer=tokenizer)
    with pytest.raises(DataError, match="lone surrogate"):
        read_batches(
            written(tmp_path / "e.zip", {**IMAGE, "captions.jsonl": '{"file": "0.png", "caption": "\\ud800"}'}),
            own_tokenizer=tokenizer,
        )
    np.savez(tmp_path / "f.npz", images=np.zeros((2, 4, 4, 3), np.uint8), input_ids=np.zeros((3, 4), np.int64))
    with pytest.raises(DataError, match="one caption each"):
        read_batches(DataSpec((str(tmp_path / "f.npz"),)))
    np.savez(tmp_path / "g.npz", images=np.zeros((2, 4, 4, 3), np.uint8), input_ids=np.zeros((2, 4)))
    with pytest.raises(DataError, match="give whole numbers"):
        read_batches(DataSpec((str(tmp_path / "g.npz"),)))
    np.savez(tmp_path / "h.npz", images=np.zeros((2, 4, 4, 3), np.uint8), captions=np.zeros(2))
    with pytest.raises(DataError, match="give one string each"):
        read_batches(DataSpec((str(tmp_path / "h.npz"),)))
