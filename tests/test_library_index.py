"""The index of the libraries agrees with what is installed, and is small and written in one way only."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

from index_models import all_names, described, packed, runs, table_of

from probes.architecture.index import PATH, read_index

SAMPLE = [
    "torchvision/resnet18", "torchvision/vit_b_16", "torchvision/regnet_x_400mf", "torchvision/googlenet",
    "timm/resnet18", "timm/vit_tiny_patch16_224", "timm/deit_tiny_patch16_224", "timm/deit_tiny_distilled_patch16_224",
    "timm/convnext_atto", "timm/tresnet_m", "timm/xcit_nano_12_p16_224", "timm/swin_tiny_patch4_window7_224",
]  # fmt: skip


def test_the_index_is_that_of_the_installed_libraries() -> None:
    index = read_index()
    for library, version in index.versions.items():
        assert importlib.metadata.version(library).split("+")[0] == version, "run scripts/index_models.py"
    assert sorted(name for entry in index.entries for name in set(entry.names)) == sorted(
        [*all_names(), "torchvision/googlenet", "torchvision/inception_v3"]  # with and without auxiliary classifiers
    )


def test_a_sample_of_the_index_is_what_the_libraries_build_now() -> None:
    index = read_index()
    entries = {entry.names[0]: entry for entry in index.entries if not entry.arguments}
    entries |= {name: entry for entry in index.entries if not entry.arguments for name in entry.names}
    for model in described([(name, {}) for name in SAMPLE]):
        entry = entries[model["names"][0]]
        assert index.tensors_of(entry) == model["tensors"], model["names"]
        assert [list(each) for each in entry.classes] == model["classes"]
        assert [list(each) for each in entry.channels] == model["channels"]
        assert list(entry.headless) == model["headless"]
        assert (list(entry.image) if entry.image else None) == model.get("image")


def test_the_index_is_small_and_holds_no_time_of_writing() -> None:
    content = PATH.read_bytes()
    assert len(content) < 2 * 10**6
    assert content[4:8] == bytes(4)  # gzip's time stamp


def test_equal_models_are_written_once_and_in_one_way() -> None:
    models = described([("timm/vit_tiny_patch16_224", {}), ("timm/deit_tiny_patch16_224", {}), ("timm/resnet10t", {})])
    assert [model["names"] for model in models] == [
        ["timm/vit_tiny_patch16_224", "timm/deit_tiny_patch16_224"],
        ["timm/resnet10t"],
    ]
    value = packed(models, {"timm": "1"})
    assert json.dumps(value) == json.dumps(packed(models, {"timm": "1"}))
    assert value["models"][0]["image"] == [1, 1, 1, 16]  # a class token beside 14 x 14 patches of 16 x 16


@pytest.mark.parametrize(("places", "written"), [([5, 6, 7, 9], [5, 3, 9, 1]), ([], []), ([3, 3], [3, 1, 3, 1])])
def test_runs(places: list[int], written: list[int]) -> None:
    assert runs(places) == written


def test_tables_of_positions_that_are_no_grid_are_not_marked() -> None:
    assert table_of(14 * 14 + 2, 28 * 28 + 2, 224) == (2, 16)
    assert table_of(196, 300, 224) is None
    assert table_of(196, 196, 224) is None
