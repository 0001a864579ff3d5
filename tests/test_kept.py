"""Arrays kept in files: found again in other runs, damaged ones left aside, the longest unread thrown away."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from workspace.kept import Kept
from workspace.tick import FileTick


def test_what_a_run_shares_another_finds(tmp_path: Path) -> None:
    with FileTick(tmp_path / "one", tmp_path / "shared") as tick:
        tick.share("map-1", {"map": np.arange(3.0)})
        tick.save("own", {"x": np.ones(1)})
    other = FileTick(tmp_path / "two", tmp_path / "shared")
    found = other.shared("map-1")
    assert found is not None and found["map"].tolist() == [0, 1, 2]
    assert other.load("own") is None and other.shared("own") is None
    alone = FileTick(tmp_path / "three")
    alone.share("map-1", {"map": np.ones(1)})
    assert alone.shared("map-1") is None


def test_what_was_read_longest_ago_goes_first(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "shared")
    kept.trim(0)  # of a folder that is not there
    for place, key in enumerate("abc"):
        kept.save(key, {"x": np.zeros(100)})
        os.utime(kept.folder / f"{key}.npz", (place, place))
    size = (kept.folder / "a.npz").stat().st_size
    kept.trim(3 * size)
    assert kept.load("a") is not None  # read just now: b is the oldest
    kept.trim(2 * size)
    assert kept.load("b") is None and kept.load("a") is not None and kept.load("c") is not None
    kept.trim(0)
    assert not list(kept.folder.iterdir())


def test_damaged_files_are_left_aside_and_keys_are_no_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = Kept(tmp_path)
    kept.save("a", {"x": np.zeros(100)})
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    assert kept.load("a") is None and "damaged" in capsys.readouterr().err
    for key in ("../a", "", ".a", "a/b"):
        with pytest.raises(ValueError, match="no key"):
            kept.load(key)
