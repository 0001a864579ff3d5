"""Data sets that the `datasets` library saved to disk, compared with what that library itself reads back."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, disable_progress_bars
from datasets import load_from_disk as owner_reads
from PIL import Image as Pillow

from probes.data import preview, read_batches
from probes.errors import DataError
from probes.specs import DataSpec

disable_progress_bars()

NAMES = ["cat", "dog", "owl"]


def pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(data: Any, folder: Path, zipped: bool = False, **options: Any) -> DataSpec:
    data.save_to_disk(folder, **options)
    if not zipped:
        return DataSpec((str(folder),))
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for each in sorted(folder.rglob("*")):
            target.write(each, Path(folder.name) / each.relative_to(folder))
    return DataSpec((str(archive),))


def changed(spec: DataSpec, file: str, **values: Any) -> None:
    path = Path(spec.files[0]) / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def pictures() -> Dataset:
    images = [Pillow.fromarray(pixels(6, 5, 3, seed=row)) for row in range(7)]
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"image": images, "label": [0, 1, 2, 0, 1, 2, 1]}, features=features)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_images_and_class_names(tmp_path: Path, pictures: Dataset, zipped: bool, shards: int) -> None:
    spec = saved(pictures, tmp_path / "pets", zipped, num_shards=shards)
    batches = read_batches(DataSpec(spec.files, shuffle=2, examples=5))
    order = np.random.default_rng(2).permutation(7)[:5]
    theirs = owner_reads(tmp_path / "pets")
    expected = np.stack([np.asarray(theirs[int(row)]["image"]) for row in order]).transpose(0, 3, 1, 2) / 255
    assert np.allclose(batches.inputs.numpy(), expected, atol=1e-7)
    assert batches.classes == tuple(NAMES) and batches.targets.tolist() == [theirs[int(row)]["label"] for row in order]
    assert batches.ids == tuple(f"pets[{row}]" for row in order)
    assert batches.about["format"] == "Hugging Face dataset" and batches.about["of"] == 7 and batches.doubts == ()


def test_what_was_selected_and_shuffled_is_saved_so(tmp_path: Path, pictures: Dataset) -> None:
    chosen = pictures.shuffle(seed=4).select(range(3))
    batches = read_batches(saved(chosen, tmp_path / "few"))
    assert batches.targets.tolist() == chosen["label"]


@pytest.mark.parametrize("zipped", [False, True])
def test_splits_are_chosen_by_name_and_listed(tmp_path: Path, pictures: Dataset, zipped: bool) -> None:
    both = DatasetDict({"train": pictures.select([0, 1]), "test": pictures.select([4, 2, 3])})
    spec = saved(both, tmp_path / "both", zipped)
    batches = read_batches(DataSpec(spec.files, split="test"))
    assert batches.targets.tolist() == [1, 2, 0] and batches.doubts == ()
    assert batches.about["split"] == "test" and batches.about["splits"] == ["test", "train"]
    unsaid = read_batches(spec)
    assert unsaid.targets.tolist() == [0, 1]
    assert "splits 'test', 'train': 'train' is taken" in unsaid.doubts[0]
    with pytest.raises(DataError, match="no split 'dev'; it has 'test', 'train'"):
        read_batches(DataSpec(spec.files, split="dev"))


def test_a_single_data_set_has_no_splits(tmp_path: Path, pictures: Dataset) -> None:
    spec = saved(pictures, tmp_path / "pets")
    with pytest.raises(DataError, match="has no splits, but 'test'"):
        read_batches(DataSpec(spec.files, split="test"))


def test_token_ids_with_labels_and_mask(tmp_path: Path) -> None:
    rows = {
        "input_ids": [[5, 6, 7, 8], [9, 8]],
        "attention_mask": [[1, 1, 1, 0], [1, 1]],
        "labels": [[-100, 6, 7, 8], [9, 8]],
        "id": ["a", "b"],
    }
    batches = read_batches(DataSpec(saved(Dataset.from_dict(rows), tmp_path / "t").files, context=3))
    assert batches.inputs.tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batches.targets.tolist() == [[6, 7, -100], [8, -100, -100]] and batches.ids == ("a:0", "b:0")
    assert batches.about["largest_id"] == 9


def test_token_ids_with_one_label_each_are_classified(tmp_path: Path) -> None:
    features = Features({"input_ids": List(Value("int32")), "label": ClassLabel(names=["bad", "good"])})
    data = Dataset.from_dict({"input_ids": [[5, 6, 7], [9], [4, 4]], "label": [1, 0, 1]}, features=features)
    spec = saved(data, tmp_path / "t")
    batches = read_batches(spec)
    assert batches.inputs.tolist() == [[5, 6, 7], [9, 0, 0], [4, 4, 0]] and batches.targets.tolist() == [1, 0, 1]
    assert batches.classes == ("bad", "good") and "filled with the token 0" in batches.doubts[0]
    cut = read_batches(spec, own_context=2)
    assert cut.inputs.tolist() == [[5, 6], [9, 0], [4, 4]] and "1 of 3 texts have more than 2 tokens" in cut.doubts[0]


def test_text_with_a_label_and_text_alone(tmp_path: Path) -> None:
    data = Dataset.from_dict({"text": ["abc", "b"], "label": ["yes", "no"]})
    batches = read_batches(DataSpec(saved(data, tmp_path / "l").files, tokenizer="bytes"))
    assert batches.inputs.tolist() == [[97, 98, 99], [98, 0, 0]] and batches.classes == ("no", "yes")
    alone = saved(data.remove_columns("label"), tmp_path / "a")
    assert read_batches(DataSpec(alone.files, context=2)).targets.tolist() == [[1, 2]]
    named = DataSpec(saved(data, tmp_path / "n").files, label="text", context=2)
    assert read_batches(named).targets.tolist() == [[1, 2]]


def test_arrays_keep_their_shape(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 2, 3, 4)).astype(np.float32)
    features = Features({"x": Array3D((2, 3, 4), "float32"), "y": Value("float32")})
    data = Dataset.from_dict({"x": values, "y": np.arange(40.0)}, features=features)
    spec = saved(data, tmp_path / "arrays", num_shards=3)
    batches = read_batches(DataSpec(spec.files, shuffle=1))
    order = np.random.default_rng(1).permutation(40)
    assert np.array_equal(batches.inputs.numpy(), values[order])
    assert batches.targets.tolist() == order.tolist() and batches.classes == ()


def test_numbers_are_a_table(tmp_path: Path) -> None:
    features = Features({"a": Value("int8"), "b": Value("float64"), "class": ClassLabel(names=["x", "y"])})
    data = Dataset.from_dict({"a": [1, 2], "b": [0.5, -1.5], "class": [1, 0]}, features=features)
    batches = read_batches(saved(data, tmp_path / "t"))
    assert batches.inputs.tolist() == [[1, 0.5], [2, -1.5]] and batches.classes == ("x", "y")


def test_parquet_with_images_as_the_hub_has_them(tmp_path: Path, pictures: Dataset) -> None:
    pictures.to_parquet(str(tmp_path / "pets.parquet"))
    batches = read_batches(DataSpec((str(tmp_path / "pets.parquet"),)))
    expected = np.stack([np.asarray(each["image"]) for each in pictures]).transpose(0, 3, 1, 2) / 255
    assert np.allclose(batches.inputs.numpy(), expected, atol=1e-7)
    assert batches.classes == tuple(NAMES) and batches.targets.tolist() == pictures["label"]


def test_the_preview_shows_pictures_and_names(tmp_path: Path, pictures: Dataset) -> None:
    seen = preview(saved(pictures, tmp_path / "pets"))
    assert seen["classes"] == [["cat", 2], ["dog", 3], ["owl", 2]] and seen["sheet"].startswith("data:image/png")
    assert [each["id"] for each in seen["samples"]] == [f"pets[{row}]" for row in range(7)]
    json.dumps(seen, allow_nan=False)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"x": [[1.0, 2.0], [3.0]]}, "row 2 has 1 values, row 1 2 in the column 'x'"),
        ({"x": [[1.0, None], [3.0, 4.0]]}, "row 1 misses a value in the column 'x'"),
        ({"x": [[1.0], [float("nan")]]}, r"number 1 of example t\[1\] \(row 2\) is not finite"),
        ({"x": [1.0, float("inf")]}, "row 2 has inf in column 'x'"),
        ({"x": [1.0, None]}, "row 2 has no value in the column 'x'"),
        ({"x": ["red", "blue"]}, "the column 'x' is not numeric"),
        ({"input_ids": [[1, 2], [3, None]]}, "row 2 misses a value in the column 'input_ids'"),
        ({"input_ids": [[1, 2], [3, -4]]}, "position 1 of row 2 is -4"),
    ],
)
def test_values_that_are_refused_by_row(tmp_path: Path, column: dict[str, Any], message: str) -> None:
    spec = saved(Dataset.from_dict({**column, "label": [0, 1]}), tmp_path / "t")
    with pytest.raises(DataError, match=message):
        read_batches(spec)


def test_labels_outside_of_the_classes_are_refused_by_row(tmp_path: Path, pictures: Dataset) -> None:
    data = pictures.select(range(3)).cast_column("label", Value("int64"))
    table = data.data.table.set_column(1, "label", pa.array([0, -1, 2]))
    spec = saved(Dataset(pa.table(table)), tmp_path / "t")
    changed(spec, "dataset_info.json", features={"label": {"names": NAMES, "_type": "ClassLabel"}})
    with pytest.raises(DataError, match="row 2 has the label -1, of classes 0 to 2"):
        read_batches(spec)


def test_images_that_are_only_paths_are_refused(tmp_path: Path) -> None:
    Pillow.fromarray(pixels(3, 3)).save(tmp_path / "a.png")
    features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}, "label": Value("int64")})
    data = Dataset.from_dict({"image": [{"bytes": None, "path": "/etc/passwd"}], "label": [0]}, features=features)
    with pytest.raises(DataError, match="row 1 holds only the path '/etc/passwd'"):
        read_batches(saved(data, tmp_path / "t"))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("state.json", {"_data_files": [{"filename": "../secret.arrow"}]}, "names the file '../secret.arrow'"),
        ("state.json", {"_data_files": [{"filename": "/etc/passwd"}]}, "names the file '/etc/passwd'"),
        ("state.json", {"_data_files": [{"filename": "data-9.arrow"}]}, "'data-9.arrow', which is not there"),
        ("state.json", {"_data_files": [{"filename": 3}]}, "names the file '3'"),
        ("state.json", {"_data_files": []}, "names no arrow files"),
        ("state.json", {"_data_files": None}, "no list of files"),
        ("state.json", {"_indices_data_files": [{"filename": "indices.arrow"}]}, "keeps an order of its rows apart"),
    ],
)
def test_descriptions_that_lead_astray(
    tmp_path: Path, pictures: Dataset, file: str, values: dict[str, Any], message: str
) -> None:
    spec = saved(pictures, tmp_path / "d")
    (tmp_path / "secret.arrow").write_bytes((tmp_path / "d" / "data-00000-of-00001.arrow").read_bytes())
    changed(spec, file, **values)
    with pytest.raises(DataError, match=message):
        read_batches(spec)


def test_files_that_are_missing_cut_or_of_another_data_set(tmp_path: Path, pictures: Dataset) -> None:
    spec = saved(pictures, tmp_path / "d", num_shards=2)
    last = tmp_path / "d" / "data-00001-of-00002.arrow"
    whole = last.read_bytes()
    for cut in (whole[:-8], whole[: len(whole) // 2], whole[:3], b""):  # the first lacks only the mark of the end
        last.write_bytes(cut)
        with pytest.raises(DataError, match="cut-off arrow file"):
            read_batches(spec)
    saved(Dataset.from_dict({"z": [1]}), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "data-00000-of-00001.arrow", last)
    with pytest.raises(DataError, match="has other columns"):
        read_batches(spec)
    last.unlink()
    with pytest.raises(DataError, match=r"'data-00001-of-00002\.arrow', which is not there"):
        read_batches(spec)
