"""CSV and Parquet against pandas frames and sklearn's digits; refusals name the column and the row."""

import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_iris

from probes.data import preview, read_batches
from probes.dataset import tables
from probes.errors import DataError
from probes.specs import DataSpec


def csv(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text)
    return DataSpec((str(tmp_path / name),))


@pytest.fixture
def iris():
    bunch = load_iris(as_frame=True)
    frame = bunch.frame.drop(columns="target")
    return frame.assign(label=np.asarray(bunch.target_names)[bunch.target])


def check_iris(batches, frame):
    features = frame.drop(columns="label")
    assert np.allclose(batches.inputs.numpy(), features.to_numpy(), atol=1e-6) and batches.inputs.shape == (150, 4)
    assert batches.classes == ("setosa", "versicolor", "virginica")
    assert [batches.classes[each] for each in batches.targets.tolist()] == frame["label"].tolist()
    assert batches.about["label"] == "label" and batches.about["features"] == list(features.columns)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_gives_the_frame(tmp_path, iris, delimiter):
    iris.to_csv(tmp_path / "iris.csv", index=False, sep=delimiter)
    batches = read_batches(DataSpec((str(tmp_path / "iris.csv"),)))
    check_iris(batches, iris)
    assert batches.ids[3] == "iris[3]" and batches.about["format"] == "CSV"


def test_packed_csv_and_parquet_give_the_same_as_plain(tmp_path, iris):
    iris.to_csv(tmp_path / "iris.csv", index=False)
    (tmp_path / "iris.csv.gz").write_bytes(gzip.compress((tmp_path / "iris.csv").read_bytes()))
    iris.to_parquet(tmp_path / "iris.parquet", index=False)
    found = [read_batches(DataSpec((str(tmp_path / f"iris.{each}"),))) for each in ("csv", "csv.gz", "parquet")]
    for each in found:
        check_iris(each, iris)
    assert len({each.sha256 for each in found}) == 1


def test_a_table_is_recognised_without_its_name(tmp_path, iris):
    iris.to_csv(tmp_path / "0a1b2c", index=False)
    check_iris(read_batches(DataSpec((str(tmp_path / "0a1b2c"),))), iris)


def test_digits_by_column_and_normalisation(tmp_path):
    from sklearn.datasets import load_digits

    bunch = load_digits(as_frame=True)
    bunch.frame.to_csv(tmp_path / "d.csv", index=False)
    batches = read_batches(DataSpec((str(tmp_path / "d.csv"),), mean=(8.0,), std=(16.0,), examples=100))
    assert np.allclose(batches.inputs.numpy(), (bunch.data.to_numpy()[:100] - 8) / 16)
    assert batches.targets.tolist() == bunch.target.tolist()[:100] and batches.targets.dtype == torch.int64


@pytest.mark.parametrize(
    ("column", "dtype", "values", "classes"),
    [
        (["1", "0", "2"], torch.int64, [1, 0, 2], ("0", "1", "2")),
        (["0.5", "1", "-2"], torch.float32, [0.5, 1.0, -2.0], ()),
        (["yes", "no", "yes"], torch.int64, [1, 0, 1], ("no", "yes")),
        (["True", "False", "True"], torch.int64, [1, 0, 1], ("False", "True")),
        (["b 1", '"a,b"', "c"], torch.int64, [1, 0, 2], ("a,b", "b 1", "c")),
    ],
)
def test_kinds_of_labels(tmp_path, column, dtype, values, classes):
    text = "f,label\n" + "".join(f"{row},{each}\n" for row, each in enumerate(column))
    batches = read_batches(csv(tmp_path, text))
    assert batches.targets.dtype == dtype and batches.targets.tolist() == values and batches.classes == classes


def test_the_label_may_be_named_and_others_become_features_with_a_doubt(tmp_path):
    text = "id,label,price\n0,1,2.5\n1,0,3.5\n"
    batches = read_batches(DataSpec(csv(tmp_path, text).files, label="price"))
    assert batches.targets.tolist() == [2.5, 3.5] and batches.inputs.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert "'id' looks like a row number" in batches.doubts[0] and "'label' is used as a feature" in batches.doubts[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,label\n1,2,0\n1,red,1\n", r"column 'b' is not numeric \('red' in row 2\)"),
        ("a,b,label\n1,2,0\n1,,1\n", "row 2 has no value in column 'b'"),
        ("a,b,label\n1,2,0\n1,NA,1\n", "row 2 has no value in column 'b'"),
        ("a,b,label\n1,2,0\n1,2,\n", "row 2 has no label in column 'label'"),
        ("a,b,label\n1,2,0\n1,inf,1\n", "row 2 has inf in column 'b'"),
        ("a,b,label\n1,2,0\n1,1e300,1\n", r"row 2 has 1e\+300 in column 'b'"),
        ("a,b,c\n1,2,0\n", "no column label, y, target; it has 'a', 'b', 'c'"),
        ("a,label\n", "no rows"),
        ("1,2,3\n4,5,6\n", "first line holds numbers"),
        ("a,a,label\n1,2,0\n", "'a' is empty or repeated"),
        ("label\n1\n", "one column"),
        ("a,label\n1,2,3\n1,2,3\n", "more values than its first line has names"),
        ("a,label\n1,2\n1,2,3\n", "no readable table"),
        ("a,label\n" + "".join(f"1,name{row}\n" for row in range(30)), "30 different strings for 30 examples"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read_batches(csv(tmp_path, text))
    assert str(caught.value).startswith("t.csv")


def test_an_unknown_label_column_is_refused(tmp_path):
    with pytest.raises(DataError, match="no column 'kind'; it has 'a', 'label'"):
        read_batches(DataSpec(csv(tmp_path, "a,label\n1,0\n").files, label="kind"))


def test_a_csv_bomb_is_refused(tmp_path):
    content = b"a,label\n" + b"1,0\n" * 25_000_000
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match="decompression bomb"):
        read_batches(DataSpec((str(tmp_path / "b.csv.gz"),)))


def test_not_utf_8_is_said(tmp_path):
    (tmp_path / "l.csv").write_bytes("a,label\n1,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"l.csv is not UTF-8 \(byte 13\)"):
        read_batches(DataSpec((str(tmp_path / "l.csv"),)))


def parquet(tmp_path, table):
    pq.write_table(table, tmp_path / "t.parquet")
    return DataSpec((str(tmp_path / "t.parquet"),))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": ["x", "y"], "label": [0, 1]}, "'a' is not numeric"),
        ({"a": [[1], [2, 3]], "label": [0, 1]}, r"row 2 has 2 values, row 1 1 in the column 'a'"),
        ({"a": [1.0, None], "label": [0, 1]}, "row 2 has no value in column 'a'"),
        ({"a": [1.0, 2.0], "label": ["u", None]}, "row 2 has no label"),
        ({"a": [1.0, 2.0], "label": [[0], [1, 2]]}, "row 2 has 2 values, row 1 1 in the column 'label'"),
        ({"a": [1.0, 2.0], "b": [0, 1]}, "no column label, y, target"),
    ],
)
def test_parquet_files_that_are_refused(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        read_batches(parquet(tmp_path, pa.table(columns)))


def test_parquet_types(tmp_path):
    table = pa.table({"a": pa.array([1, 2], pa.int8()), "b": [True, False], "label": pa.array(["u", "v"])})
    batches = read_batches(parquet(tmp_path, table))
    assert batches.inputs.tolist() == [[1.0, 1.0], [2.0, 0.0]] and batches.classes == ("u", "v")


def test_damaged_parquet_is_refused(tmp_path):
    spec = parquet(tmp_path, pa.table({"a": np.arange(1000.0), "label": np.arange(1000) % 3}))
    content = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="no readable Parquet file"):
        read_batches(spec)


def test_a_parquet_of_few_bytes_and_many_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_BYTES", 2**28)
    zeros = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int8)), pa.array([0.0]))
    table = pa.table({"label": zeros, **{f"f{index}": zeros for index in range(3)}})
    with pq.ParquetWriter(tmp_path / "t.parquet", table.schema, compression="zstd") as writer:
        for _ in range(9):
            writer.write_table(table)
    assert (tmp_path / "t.parquet").stat().st_size < 2**20
    with pytest.raises(DataError, match="unpacks to more than 256 MiB"):
        read_batches(DataSpec((str(tmp_path / "t.parquet"),)))


def test_preview_shows_the_first_rows(tmp_path):
    seen = preview(csv(tmp_path, "a,b,label\n1,2,u\n3,4,v\n5,6,u\n"))
    assert seen["lines"] == ["a,b,label", "1,2,u", "3,4,v", "5,6,u"] and seen["sheet"] is None
    assert seen["classes"] == [["u", 2], ["v", 1]] and seen["range"] == [1.0, 6.0] and seen["labels"] == ["u", "v", "u"]
    frame = pd.DataFrame({"a": [1.0, 2.0], "label": [0, 1]})
    frame.to_parquet(tmp_path / "p.parquet")
    assert "label" in preview(DataSpec((str(tmp_path / "p.parquet"),)))["lines"][0]
