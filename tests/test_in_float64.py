"""Models that go down to float32 on their own keep float64, and nothing else changes."""

from __future__ import annotations

import torch
from family_nets import objective_of
from torch import nn

from probes.in_float64 import InFloat64


def test_what_is_float64_stays_so() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    with InFloat64():
        assert x.float() is x
        kept = [x.to(torch.float32), x.to(dtype=torch.float32), x.type(torch.float32), x.softmax(-1, torch.float32)]
        kept += [nn.functional.softmax(x, dim=-1, dtype=torch.float32), torch.sum(input=x, dim=0, dtype=torch.float32)]
        assert {each.dtype for each in kept} == {torch.float64}
        assert torch.equal(nn.functional.softmax(x, dim=-1, dtype=torch.float32), x.softmax(-1))
    assert x.float().dtype == torch.float32


def test_everything_else_is_converted_as_ever() -> None:
    with InFloat64():
        whole = torch.arange(3)
        assert whole.float().dtype == whole.to(torch.float32).dtype == torch.float32
        assert whole.float().to(torch.float64).dtype == torch.float64
        assert torch.ones(2, dtype=torch.float64).to(torch.bfloat16).dtype == torch.bfloat16
        assert torch.zeros(2, dtype=torch.float32).dtype == torch.float32


def test_a_llama_in_float64_is_as_exact_as_its_norm_by_hand() -> None:
    objective = objective_of("llama")
    norm = objective.module.model.norm.double()
    x = torch.randn(2, 3, 24, dtype=torch.float64)
    by_hand = norm.weight * x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    with InFloat64(), torch.no_grad():
        torch.testing.assert_close(norm(x), by_hand, rtol=1e-14, atol=1e-14)
    assert float((norm(x) - by_hand).detach().abs().max()) > 1e-9
