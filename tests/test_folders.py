"""A folder becomes one file, the same whenever the folder is, with all that its readers need."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from probes.checkpoint import read_checkpoint
from probes.errors import ProbeError
from workspace.folders import zip_of


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_keeps_its_index(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as distributed

    state = {"model": {"weight": torch.randn(3, 2)}}
    distributed.save(state, checkpoint_id=tmp_path / "step-5", no_dist=True)
    (tmp_path / "step-5" / ".cache").mkdir()
    (tmp_path / "step-5" / ".cache" / "x").write_text("hidden")
    zip_of(tmp_path / "step-5", tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert ".metadata" in archive.namelist()
        assert not any("cache" in each for each in archive.namelist())
    loaded = read_checkpoint(tmp_path / "a.zip").load()
    assert torch.equal(loaded["weight"], state["model"]["weight"])


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "x.txt").write_text("x")
        (folder / "link").symlink_to("inner")
        zip_of(folder, tmp_path / f"{name}.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProbeError, match="holds no files"):
        zip_of(tmp_path / "empty", tmp_path / "c.zip")
