"""Bit patterns against torch's own isfinite, type by type and over every pattern of the small types."""

import numpy as np
import pytest
import torch

from probes.formats.contents import ITEM_BYTES
from probes.formats.statistics import Seen, doubts_of, look

SMALL = [name for name, size in ITEM_BYTES.items() if size <= 2 and name.startswith(("float", "bfloat"))]
LARGE = ["float32", "float64", "complex32", "complex64", "complex128"]


def raw_of(tensor: torch.Tensor) -> np.ndarray:
    return np.frombuffer(bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes()), np.uint8)


def wider_than(tensor: torch.Tensor) -> torch.dtype:
    return torch.complex64 if tensor.dtype is torch.complex32 else torch.float64


def expected(tensor: torch.Tensor) -> Seen:
    wide = tensor if tensor.dtype in (torch.complex64, torch.complex128) else tensor.to(wider_than(tensor))
    return Seen(int((~wide.isfinite()).sum()), bool(tensor.numel()) and bool((wide == 0).all()))


@pytest.mark.parametrize("dtype", SMALL)
def test_every_pattern_of_a_small_type(dtype: str) -> None:
    item = ITEM_BYTES[dtype]
    patterns = np.arange(256**item, dtype=np.uint8 if item == 1 else np.uint16)
    tensor = torch.from_numpy(patterns).view(getattr(torch, dtype))
    wrong = look(patterns.view(np.uint8), dtype).nonfinite
    assert wrong == expected(tensor).nonfinite > 0
    for index in range(0, len(patterns), 1 if item == 1 else 97):
        one = patterns[index : index + 1]
        assert look(one.view(np.uint8), dtype) == expected(torch.from_numpy(one).view(getattr(torch, dtype))), one


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", LARGE)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, float("inf"), -float("inf"), float("nan"), 5e-324, 1e-45, 6e4])
def test_a_value_among_zeros(dtype: str, value: float) -> None:
    tensor = torch.zeros(3, 5, dtype=torch.complex64 if dtype == "complex32" else getattr(torch, dtype))
    tensor[1, 2] = value
    tensor = tensor.to(getattr(torch, dtype))
    assert look(raw_of(tensor), dtype) == expected(tensor)
    if tensor.is_complex():
        imaginary = torch.complex(torch.zeros(4), torch.full((4,), value)).to(tensor.dtype)
        assert look(raw_of(imaginary), dtype) == expected(imaginary)


def test_both_parts_of_a_complex_number_count_once() -> None:
    both = torch.complex(torch.tensor([float("nan"), 1.0]), torch.tensor([float("inf"), 1.0]))
    assert look(raw_of(both), "complex64").nonfinite == 1


def test_a_long_tensor_is_looked_at_to_its_end() -> None:
    tensor = torch.zeros(9_000_000, dtype=torch.bfloat16)
    tensor[-1] = float("inf")
    assert look(raw_of(tensor), "bfloat16") == Seen(1, False)
    assert look(raw_of(torch.zeros(9_000_000, dtype=torch.bfloat16)), "bfloat16") == Seen(0, True)


@pytest.mark.parametrize("dtype", [each for each in ITEM_BYTES if each.startswith(("int", "uint", "bool"))])
def test_whole_numbers_are_neither(dtype: str) -> None:
    assert look(np.zeros(64, np.uint8), dtype) == Seen()


def test_an_empty_tensor_is_neither() -> None:
    assert look(np.empty(0, np.uint8), "float32") == look(np.empty(0, np.uint8), "float8_e5m2") == Seen()


def test_the_doubts_name_the_tensors() -> None:
    assert doubts_of({"a.weight": Seen(), "a.bias": Seen(0, True)}) == []
    one = doubts_of({"a.weight": Seen(1), "b.weight": Seen(0, True)})
    assert one[0].startswith("1 tensor holds 1 value that is infinite or not a number (a.weight)")
    assert one[1].startswith("1 tensor is nothing but zeros (b.weight)")
    many = doubts_of({f"layer{index}.weight": Seen(2) for index in range(5)})
    assert many[0].startswith(
        "5 tensors hold 10 values that are infinite or not a number (layer0.weight, layer1.weight"
    )
    assert "layer4" not in many[0]
