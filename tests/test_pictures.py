"""Examples as one looks at them: pictures with mean and std undone, text without padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from curvature_oracles import batches

from probes.data import read_batches
from probes.pictures import pictures_of, texts_of
from probes.specs import DataSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(pixels: np.ndarray, mean=(), std=()):
    """Batches of uint8 images (N, C, H, W), as the readers make them."""
    values = torch.from_numpy(pixels).float() / 255
    if std:
        values = (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    about = {"mean": list(mean), "std": list(std)}
    return replace(batches(values, torch.zeros(len(values)).long()), about=about)


def test_the_pixels_of_the_file_come_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 9, 7), dtype=np.uint8)
    found = pictures_of(images(pixels, MEAN, STD), [4, 0])
    assert found is not None
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels[[4, 0]].transpose(0, 2, 3, 1))


@pytest.mark.parametrize(("channels", "expected"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_any_number_of_channels_becomes_three(channels, expected) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, channels, 4, 4), dtype=np.uint8)
    found = pictures_of(images(pixels), [0, 1])
    np.testing.assert_array_equal(found, pixels[:, expected].transpose(0, 2, 3, 1))


def test_other_ranges_are_stretched() -> None:
    values = torch.tensor([[-2.0, 0.0], [2.0, 6.0]]).reshape(1, 1, 2, 2)
    found = pictures_of(batches(values, torch.zeros(1).long()), [0])
    assert found[0, :, :, 0].tolist() == [[0, 64], [128, 255]]
    flat = pictures_of(batches(torch.full((1, 1, 2, 2), 7.0), torch.zeros(1).long()), [0])
    assert flat.tolist() == np.zeros((1, 2, 2, 3)).tolist()


def test_large_images_are_reduced_by_averaging() -> None:
    pixels = np.zeros((1, 1, 96, 48), np.uint8)
    pixels[:, :, ::2] = 200
    found = pictures_of(images(pixels), [0])
    assert found.shape == (1, 48, 24, 3)
    assert np.unique(found).tolist() == [100]
    assert pictures_of(images(pixels), []).shape == (0, 96, 48, 3)


def test_what_is_no_image_has_no_picture() -> None:
    assert pictures_of(batches(torch.randn(3, 8), torch.zeros(3).long()), [0]) is None
    assert pictures_of(batches(torch.randint(9, (3, 8)), torch.zeros(3).long()), [0]) is None


def test_bytes_are_read_and_other_tokens_are_listed() -> None:
    text = "hé\n<b>".encode()
    ids = torch.zeros(2, 9, dtype=torch.int64)
    targets = torch.full((2, 9), -100)
    ids[1, : len(text) - 1] = torch.tensor(list(text[:-1]))
    targets[1, : len(text) - 1] = torch.tensor(list(text[1:]))
    targets[0, :9] = 7
    data = replace(batches(ids, targets), about={"tokenizer": "bytes"})
    assert texts_of(data, [1]) == ["hé↵<b>"]
    assert texts_of(replace(data, about={"tokenizer": "tokenizer.json"}), [0]) == ["0 0 0 0 0 0 0 0 0 7"]
    assert texts_of(data, [1], most=3) == ["hé…"]
    assert texts_of(images(np.zeros((1, 1, 2, 2), np.uint8)), [0]) is None


def test_sequences_with_a_label_are_shown_whole() -> None:
    data = batches(torch.tensor([[5, 6, 0]]), torch.tensor([1]))
    assert texts_of(data, [0]) == ["5 6 0"]


def test_tokens_are_shown_as_the_text_that_they_were(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("banana split")
    data = read_batches(DataSpec((str(tmp_path / "t.txt"),), context=6, tokenizer="characters"))
    assert texts_of(data, [0]) == ["banana "]  # with the token that is predicted last
