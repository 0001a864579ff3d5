"""What the preview and `inspect` say, against NumPy, collections.Counter and hashlib; classes mapped by name."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from probes.data import inspect_data, preview, read_batches
from probes.dataset.classes import differs_in_order
from probes.dataset.examples import Own
from probes.errors import DataError
from probes.specs import DataSpec


def npz(path: Path, x: Any, y: Any, **more: Any) -> DataSpec:
    np.savez(path, x=x, y=y, **more)
    return DataSpec((str(path),))


def pixels(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_balance_ranges_and_ten_examples(tmp_path: Path) -> None:
    images, labels = pixels(30, 5, 4, 3), np.random.default_rng(1).integers(0, 4, 30)
    seen = preview(DataSpec(npz(tmp_path / "d.npz", images, labels).files, examples=20))
    assert seen["classes"] == [[str(each), Counter(labels[:20].tolist())[each]] for each in range(4)]
    for channel, found in enumerate(seen["channels"]):
        values = images[:20, :, :, channel] / 255
        for name, value in found.items():
            expected = str(channel) if name == "name" else getattr(values, name)()
            assert found["name"] == expected if name == "name" else abs(value - expected) < 1e-6
    assert len(seen["channels"]) == 3 and seen["kind"] == "images" and seen["targets"] == "classes"
    assert [each["id"] for each in seen["samples"]] == [f"d[{row}]" for row in range(10)]
    assert [each["label"] for each in seen["samples"]] == [str(each) for each in labels[:10]] == seen["labels"]
    json.dumps(seen, allow_nan=False)


def test_columns_are_named_and_numbers_shown(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("width,height,label\n1,10,a\n3,30,b\n")
    seen = preview(DataSpec((str(tmp_path / "t.csv"),)))
    assert seen["channels"][1] == {"name": "height", "mean": 20.0, "std": 10.0, "min": 10.0, "max": 30.0}
    assert seen["samples"][1] == {"id": "t[1]", "label": "b", "text": "3, 30"}


def test_copies_are_counted_and_contradictions_are_loud(tmp_path: Path) -> None:
    images = pixels(8, 3, 3)
    images[5], images[6], images[7] = images[2], images[2], images[0]
    seen = preview(npz(tmp_path / "d.npz", images, np.array(list("abcabcab"))))
    found = seen["duplicates"]
    assert (found["seen"], found["contents"], found["contradictions"]) == (8, 3, 2)
    assert found["first"] == ["d[2]", "d[5]", "c", "c"] and found["first_contradiction"] == ["d[2]", "d[6]", "c", "a"]
    assert seen["doubts"][0].startswith("CONTRADICTION: 2 exact copies") and "d[6] is 'a'" in seen["doubts"][0]
    assert "3 of the first 8 examples are exact copies" in seen["doubts"][1]
    clean = preview(npz(tmp_path / "e.npz", pixels(8, 3, 3), np.arange(8)))
    assert clean["duplicates"]["contents"] == 0 and clean["doubts"] == []


def test_repeated_ids_are_said(tmp_path: Path) -> None:
    spec = npz(tmp_path / "d.npz", pixels(4, 3, 3), np.arange(4), ids=np.array(["u", "v", "u", "u"]))
    seen = preview(spec)
    assert seen["duplicates"]["ids"] == 2 and seen["duplicates"]["first_id"] == ["u", 1, 3]
    batches = read_batches(spec)
    assert batches.ids == ("u", "v", "u", "u") and "2 examples have the id of another" in batches.doubts[0]
    (tmp_path / "t.csv").write_text("id,a,label\nx1,1,0\nx2,2,1\nx1,3,0\n")
    table = read_batches(DataSpec((str(tmp_path / "t.csv"),)))
    assert (
        table.ids == ("x1", "x2", "x1") and table.inputs.shape == (3, 1) and "'x1', examples 1 and 3" in table.doubts[0]
    )


def test_missing_classes_are_named(tmp_path: Path) -> None:
    seen = preview(DataSpec(npz(tmp_path / "d.npz", pixels(4, 3, 3), np.array([0, 3, 3, 1])).files, examples=2))
    assert "2 of 4 classes do not occur among the chosen examples: '1', '2'." in seen["doubts"]


def test_next_tokens_have_no_classes(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abababab")
    seen = preview(DataSpec((str(tmp_path / "t.txt"),), context=2))
    assert seen["targets"] == "next tokens" and seen["classes"] == [] and seen["channels"] == []
    assert seen["duplicates"]["contents"] == 2 and seen["duplicates"]["contradictions"] == 0
    assert seen["samples"][0] == {"id": "t[0]:0", "label": None, "text": "ab"}


# Classes by name


def pets(path: Path, names: tuple[str, ...] = ("cat", "dog", "great_owl")) -> DataSpec:
    with zipfile.ZipFile(path, "w") as archive:
        for row, name in enumerate(names):
            for turn in range(2):
                buffer = io.BytesIO()
                Image.fromarray(pixels(2, 4, 4)[turn] + np.uint8(row)).save(buffer, "PNG")
                archive.writestr(f"{name}/{turn}.png", buffer.getvalue())
    return DataSpec((str(path),))


def test_classes_are_put_into_the_models_order(tmp_path: Path) -> None:
    plain = read_batches(pets(tmp_path / "p.zip"))
    model = ("Great Owl", "fish", "DOG", "cat")
    batches = read_batches(DataSpec((str(tmp_path / "p.zip"),), classes=model))
    assert plain.targets.tolist() == [0, 0, 1, 1, 2, 2] and batches.targets.tolist() == [3, 3, 2, 2, 0, 0]
    assert batches.classes == model and batches.about["class_order"] == list(model)
    assert "put into the model's order by name: 'cat' 0 -> 3, 'dog' 1 -> 2, 'great_owl' 2 -> 0" in batches.doubts[0]
    assert batches.sha256 != plain.sha256
    seen = preview(DataSpec((str(tmp_path / "p.zip"),), classes=model))
    assert seen["classes"] == [["Great Owl", 2], ["fish", 0], ["DOG", 2], ["cat", 2]]


def test_the_same_order_changes_nothing(tmp_path: Path) -> None:
    spec = pets(tmp_path / "p.zip")
    same = read_batches(DataSpec(spec.files, classes=("Cat", "dog", "great-owl")))
    assert same.sha256 == read_batches(spec).sha256 and same.doubts == ()


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (
            ("cat", "dog"),
            ("cat", "fox"),
            "'dog' is none of the model's.*has 'cat', 'dog'; the model has 'cat', 'fox'",
        ),
        (("cat", "dog"), ("dog", "cat", "CAT"), "'cat' and 'CAT', which cannot be told apart"),
        (("big_cat", "big-cat"), ("big cat",), "'big-cat' and 'big_cat', which cannot be told apart"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    tmp_path: Path, names: tuple[str, ...], classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_batches(DataSpec(pets(tmp_path / "p.zip", names).files, classes=classes))


def test_values_and_next_tokens_have_no_order(tmp_path: Path) -> None:
    spec = npz(tmp_path / "d.npz", pixels(2, 3, 3), np.array([0.5, 1.5]))
    with pytest.raises(DataError, match="has no classes"):
        read_batches(DataSpec(spec.files, classes=("a",)))
    (tmp_path / "t.txt").write_text("abab")
    with pytest.raises(DataError, match="has no classes to bring into an order"):
        read_batches(DataSpec((str(tmp_path / "t.txt"),), classes=("a",)))


def test_another_order_in_the_model_is_a_doubt(tmp_path: Path) -> None:
    spec = pets(tmp_path / "p.zip")
    model = ("dog", "Great Owl", "cat")
    batches = read_batches(spec, own_classes=model)
    assert batches.targets.tolist() == [0, 0, 1, 1, 2, 2] and "the same names in another order" in batches.doubts[0]
    assert any("another order" in each for each in preview(spec, own=Own(classes=model))["doubts"])
    assert read_batches(spec, own_classes=("cat", "dog", "great owl")).doubts == ()
    assert read_batches(spec, own_classes=("LABEL_0", "LABEL_1", "LABEL_2")).doubts == ()
    assert differs_in_order(["a", "b"], ["B", "a"]) and not differs_in_order(["a", "b"], ["a", "b", "c"])


def test_older_specs_are_read_and_keep_their_ids() -> None:
    old = {"files": ["a"], "format": "auto", "mean": [], "std": [], "examples": 0, "shuffle": None}
    old |= {"label": "", "tokenizer": "auto", "context": 0}
    spec = DataSpec.from_json(old)
    assert spec == DataSpec(("a",)) and spec.to_json() == old
    new = DataSpec(("a",), split="test", classes=("x", "y"))
    assert DataSpec.from_json(json.loads(json.dumps(new.to_json()))) == new


# For the command line


def test_inspect_says_what_a_file_is(tmp_path: Path) -> None:
    images, labels = pixels(6, 4, 4), np.array([0, 1, 2, 0, 1, 2])
    npz(tmp_path / "d.npz", images, labels)
    found = inspect_data(tmp_path / "d.npz")
    expected = {"name": "d.npz", "kind": "data", "format": "npz", "verdict": "ok", "reason": "", "examples": 6}
    expected |= {"shape": [1, 4, 4], "dtype": "uint8", "classes": [["0", 2], ["1", 2], ["2", 2]], "doubts": []}
    assert {key: found[key] for key in expected} == expected
    assert found["sha256"] == hashlib.sha256((tmp_path / "d.npz").read_bytes()).hexdigest()
    assert found["range"] == [images.min() / np.float32(255), images.max() / np.float32(255)]
    json.dumps(found, allow_nan=False)


def test_inspect_of_a_folder_changes_with_any_file(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    with zipfile.ZipFile(tmp_path / "p.zip") if pets(tmp_path / "p.zip") else None as archive:
        for each in archive.namelist():
            (folder / each).parent.mkdir(parents=True, exist_ok=True)
            (folder / each).write_bytes(archive.read(each))
    first = inspect_data(folder)
    assert first["verdict"] == "ok" and first["format"] == "folder of images" and first["examples"] == 6
    (folder / "cat" / "0.png").rename(folder / "cat" / "9.png")
    assert inspect_data(folder)["sha256"] != first["sha256"]


def test_inspect_warns_and_refuses(tmp_path: Path) -> None:
    npz(tmp_path / "d.npz", np.ones((3, 4, 4), np.uint8), np.array([0, 1, 0]))
    found = inspect_data(tmp_path / "d.npz")
    assert found["verdict"] == "warning" and "CONTRADICTION" in found["reason"]
    for name, content in (("a.csv", b"a,b\n1,2\n"), ("b.npz", b"PK\x03\x04rest"), ("c", b"\0\1")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            inspect_data(tmp_path / name)
    with pytest.raises(DataError, match="does not exist"):
        inspect_data(tmp_path / "nothing")
