"""Run a model in float64 although it goes down to float32 on its own.

The norms of Llama and its kin, and the softmax of many decoders, convert what they are given to float32: in float64
their outputs still carry float32's rounding, about 1e-7 of the largest, and a test to 1e-10 would refuse a right model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class InFloat64(TorchFunctionMode):
    """Within it, float64 tensors stay float64 where float32 is asked for; others are converted as ever."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function with float64 for float32, where what it is given is float64."""
        kwargs = kwargs or {}
        given = args[0] if args else kwargs.get("input")
        if not isinstance(given, Tensor) or given.dtype != torch.float64:
            return func(*args, **kwargs)
        if func is Tensor.float:
            return given
        return func(*map(_doubled, args), **{key: _doubled(each) for key, each in kwargs.items()})


def _doubled(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument
