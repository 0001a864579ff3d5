"""The tick: reports never fall and cost little; what is saved is found again, or said to be lost."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

from analyzers import catalogue
from workspace import tick as module
from workspace.tick import FileTick, partial_folder


def _progress(folder: Path) -> dict:
    return json.loads((folder / "progress.json").read_text())


def test_the_last_report_is_always_written(tmp_path: Path) -> None:
    with FileTick(tmp_path) as tick:
        tick(0.2, "one")
        tick(0.4, "two", 7.0)
    assert {**_progress(tmp_path), "at": 0} == {"share": 0.4, "doing": "two", "seconds_left": 7.0, "at": 0}


def test_a_quick_report_is_seen_though_no_other_follows(tmp_path: Path) -> None:
    with FileTick(tmp_path) as tick:
        tick(0.1, "one")
        tick(0.2, "now something long")
        until = time.monotonic() + 5
        while not (tmp_path / "progress.json").exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert _progress(tmp_path)["doing"] == "now something long"


def test_the_share_never_falls_and_stays_a_share(tmp_path: Path) -> None:
    shares = []
    for given in ([0.5], [0.5, 0.3], [0.5, 2.0], [-1.0], [0.25, math.nan]):
        with FileTick(tmp_path) as tick:
            for each in given:
                tick(each, "x")
        shares.append(_progress(tmp_path)["share"])
    assert shares == [0.5, 0.5, 1.0, 0.0, 0.25]


def test_many_reports_are_few_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    monkeypatch.setattr(module, "_replace", lambda path, value: writes.append(value["share"]))
    began = time.monotonic()
    with FileTick(tmp_path) as tick:
        while time.monotonic() < began + 0.6:
            tick(0.5, "x")
    assert 1 <= len(writes) <= 1 + (time.monotonic() - began) / module.SECONDS_BETWEEN


def test_the_time_left_follows_from_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    tick = FileTick(tmp_path)
    tick(0.4, "resumed here")
    assert tick._left is None
    now[0] = 110.0
    tick(0.6, "a fifth in ten seconds")
    assert tick._left == pytest.approx(20.0)


def test_what_is_saved_is_found_by_the_next_attempt(tmp_path: Path) -> None:
    kept = {"a": np.arange(5), "b": np.float64(2.5)}
    FileTick(tmp_path).save("basis", {"a": np.zeros(1)})
    FileTick(tmp_path).save("basis", kept)
    found = FileTick(tmp_path).load("basis")
    assert found is not None
    assert found.keys() == kept.keys()
    assert all(np.array_equal(found[name], kept[name]) for name in kept)
    assert FileTick(tmp_path).load("other") is None
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["basis.npz"]


def test_objects_are_not_saved(tmp_path: Path) -> None:
    FileTick(tmp_path).save("x", {"a": np.ones(1)})
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        FileTick(tmp_path).save("x", {"a": np.array([object()])})
    found = FileTick(tmp_path).load("x")
    assert found is not None
    assert found["a"] == 1


@pytest.mark.parametrize("cut", [0, 10, 100, -30])
def test_a_damaged_state_is_said_and_left_aside(tmp_path: Path, cut: int, capsys: pytest.CaptureFixture[str]) -> None:
    tick = FileTick(tmp_path)
    tick.save("x", {"a": np.arange(100)})
    path = tmp_path / "state" / "x.npz"
    path.write_bytes(path.read_bytes()[:cut])
    assert tick.load("x") is None
    assert "x.npz is damaged" in capsys.readouterr().err


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    tick = FileTick(tmp_path)
    tick.save("x", {"a": np.arange(1000)})
    path = tmp_path / "state" / "x.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert tick.load("x") is None


@pytest.mark.parametrize("key", ["", "../x", "a/b", ".hidden", "a b"])
def test_a_key_is_no_path(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="no key"):
        FileTick(tmp_path).save(key, {})


def test_a_result_so_far_is_whole_and_goes_when_the_attempt_ends(tmp_path: Path) -> None:
    analyzer = catalogue()["layer_rotation"]
    results = [analyzer.result("layer_rotation", {}, {"number": each}, {"x": np.arange(each)}) for each in range(4)]
    assert partial_folder(tmp_path) is None
    with FileTick(tmp_path) as tick:
        for each in results:
            tick.show(each)
            folder = partial_folder(tmp_path)
            assert folder is not None
            seen = analyzer.result.read(folder)
            assert seen.values == each.values
            np.testing.assert_array_equal(seen.arrays["x"], each.arrays["x"])
        assert len(list((tmp_path / "partial").iterdir())) == 2
    assert partial_folder(tmp_path) is None
    assert not (tmp_path / "result.json").exists()
