"""Data that a module of the operator builds: taken as it is, with its ids."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from probes.data import preview, read_batches
from probes.errors import DataError
from probes.specs import DataSpec


def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> DataSpec:
    (tmp_path / "mine.py").write_text(f"import torch\ndef build_data():\n    {body}\n")
    monkeypatch.setenv("THEODOLITE_MODELS", str(tmp_path / "mine.py"))
    return DataSpec(("mine",), format="operator")


def test_inputs_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = module(
        tmp_path, monkeypatch, "return torch.arange(24).reshape(4, 2, 3).double(), torch.tensor([1, 0, 1, 1])"
    )
    batches = read_batches(spec)
    assert torch.equal(batches.inputs, torch.arange(24.0).reshape(4, 2, 3))
    assert batches.targets.tolist() == [1, 0, 1, 1] and batches.classes == ("0", "1")
    assert batches.about["source"] == ["mine"] and batches.doubts == ()
    assert read_batches(DataSpec(("mine",), format="operator", examples=1)).inputs.shape == (1, 2, 3)


def test_bytes_are_not_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = module(tmp_path, monkeypatch, "return torch.full((2, 4, 4, 3), 200, dtype=torch.uint8), torch.zeros(2)")
    batches = read_batches(spec)
    assert batches.inputs.shape == (2, 4, 4, 3) and batches.inputs.unique().tolist() == [200.0]


def test_tokens_with_next_tokens_or_with_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = "x = torch.tensor([[5, 6, 7], [7, 8, 9]]); return"
    following = read_batches(
        module(tmp_path, monkeypatch, f"{ids} x[:, :-1], x[:, 1:].masked_fill(x[:, 1:] == 9, -100)")
    )
    assert following.targets.tolist() == [[6, 7], [8, -100]] and following.inputs.dtype == torch.int64
    labelled = module(tmp_path, monkeypatch, f"{ids} x, torch.tensor([1, 0])")
    assert read_batches(labelled).targets.tolist() == [1, 0]
    with pytest.raises(DataError, match="mine: the token at position 1 of row 2 is 8"):
        read_batches(labelled, own_vocabulary=8)


def test_ids_of_the_module_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import types; return types.SimpleNamespace(inputs=torch.ones(2, 3), targets=torch.ones(2), ids=['a', 'b'])"
    seen = preview(module(tmp_path, monkeypatch, body))
    assert [each["id"] for each in seen["samples"]] == ["a", "b"] and seen["targets"] == "values"


def test_targets_may_have_any_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = "torch.arange(8).reshape(2, 2, 2)"
    batches = read_batches(module(tmp_path, monkeypatch, f"return torch.ones(2, 3), {maps}"))
    assert torch.equal(batches.targets, torch.arange(8).reshape(2, 2, 2)) and batches.classes == ()
    with pytest.raises(DataError, match=r"example 0 \(row 1\) is not finite"):
        read_batches(module(tmp_path, monkeypatch, f"return torch.ones(2, 3), {maps} / 0"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return torch.tensor([[float('nan')], [1.0]]), torch.ones(2)",
            r"number 1 of example 0 \(row 1\) is not finite",
        ),
        ("return torch.ones(2, 3), torch.tensor([1.0, float('inf')])", "label of example 1 is inf"),
        ("return torch.ones(2, 3, dtype=torch.complex64), torch.ones(2)", "complex64"),
        ("raise ValueError('no such folder')", "no such folder"),
    ],
)
def test_what_a_module_gets_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_batches(module(tmp_path, monkeypatch, body))


def test_one_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, monkeypatch, "pass")
    with pytest.raises(DataError, match="2 modules were named"):
        read_batches(DataSpec(("mine", "yours"), format="operator"))
    with pytest.raises(DataError, match="yours"):
        read_batches(DataSpec(("yours",), format="operator"))


def test_a_file_that_has_changed_since_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, monkeypatch, "return torch.ones(2, 3), torch.ones(2)")
    sha256 = hashlib.sha256((tmp_path / "mine.py").read_bytes()).hexdigest()
    spec = DataSpec((f"mine@{sha256[:12]}",), format="operator")
    assert read_batches(spec).about["source"] == ["mine"]
    module(tmp_path, monkeypatch, "return torch.zeros(2, 3), torch.ones(2)")
    with pytest.raises(DataError, match="mine has changed since its data was chosen"):
        read_batches(spec)
