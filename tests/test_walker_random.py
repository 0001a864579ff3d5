"""Five hundred random honest checkpoints: the walker reads each as torch.load does, bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_walker import equal

from probes.formats.files import open_contents

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    raw = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
    dtype = draw(st.sampled_from(DTYPES))
    size = torch.empty(0, dtype=dtype).element_size()
    tensor = (raw[..., 0] > 127) if dtype == torch.bool else raw[..., :size].contiguous().view(dtype)[..., 0]
    if tensor.dim() and draw(st.booleans()):
        tensor = tensor.movedim(0, -1)
    if tensor.dim() and draw(st.booleans()):
        tensor = tensor[draw(st.integers(0, 2)) :: draw(st.integers(1, 3))]
    return torch.nn.Parameter(tensor) if tensor.is_floating_point() and draw(st.booleans()) else tensor


names = st.text("abcd.λ0", min_size=1, max_size=8)
plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=12)
values = st.recursive(
    tensors() | plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(names, values, min_size=1, max_size=5), st.booleans(), st.sampled_from((2, 3)))
def test_it_is_what_torch_loads(value: dict[str, Any], legacy: bool, protocol: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pt"
        torch.save(value, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
        expected = torch.load(path, weights_only=protocol == 2)
        assert equal(open_contents(path, "x.pt").value, expected)
