"""GGML's block formats: how many weights stand in how many bytes, and the float32 numbers that they stand for.

A quantised tensor is a row of blocks; a block holds small integers and the scales (and minima) to multiply them with.
The arithmetic is that of ggml's reference code, in its order, so that every bit agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.formats.contents import Raw

Array = Any  # of NumPy; its stubs lose the type at every indexing
_PIECE = 1 << 22  # weights dequantised at a time, which bounds the temporaries
_FOUR_BIT = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


@dataclass(frozen=True)
class Block:
    """A block format: its name, the weights of one block, its layout in bytes and the function that unpacks it."""

    name: str
    weights: int
    layout: np.dtype[Any]
    unpack: Callable[[Array], Array]

    def dequantise(self, content: Raw) -> Raw:
        """Return the float32 weights (as little-endian bytes) of whole blocks."""
        blocks = content.view(self.layout)
        weights = np.empty(len(blocks) * self.weights, np.dtype("<f4"))
        step = _PIECE // self.weights
        with np.errstate(all="ignore"):  # a damaged scale may be infinite; whoever uses the weights is told
            for start in range(0, len(blocks), step):
                piece = self.unpack(blocks[start : start + step])
                weights[start * self.weights :][: piece.size] = piece.reshape(-1)
        return weights.view(np.uint8)


def _fields(packed: Array, width: int, lane: int) -> Array:
    """Split bytes (blocks, n) into fields of `width` bits; a lane of bytes gives all its lowest fields first."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    fields = (packed.reshape(len(packed), -1, 1, lane) >> shifts) & np.uint8((1 << width) - 1)
    return fields.reshape(len(packed), -1)


def _scale(blocks: Array, field: str = "d") -> Array:
    return blocks[field].astype(np.float32)[:, None]


def _spread(scales: Array, weights: Array) -> tuple[Array, Array]:
    """Shape the weights so that each group stands beside its scale."""
    return scales[:, :, None], weights.astype(np.float32).reshape(*scales.shape, -1)


def _q4_0(blocks: Array) -> Array:
    return _scale(blocks) * (_fields(blocks["q"], 4, 16).astype(np.float32) - 8)


def _q4_1(blocks: Array) -> Array:
    return _scale(blocks) * _fields(blocks["q"], 4, 16).astype(np.float32) + _scale(blocks, "m")


def _five_bits(blocks: Array) -> Array:
    high = np.unpackbits(blocks["high"], axis=1, bitorder="little")
    return (_fields(blocks["q"], 4, 16) | high << 4).astype(np.float32)


def _q5_0(blocks: Array) -> Array:
    return _scale(blocks) * (_five_bits(blocks) - 16)


def _q5_1(blocks: Array) -> Array:
    return _scale(blocks) * _five_bits(blocks) + _scale(blocks, "m")


def _q8_0(blocks: Array) -> Array:
    return blocks["q"].astype(np.float32) * _scale(blocks)


def _q2_k(blocks: Array) -> Array:
    steps = _scale(blocks) * (blocks["scales"] & 15).astype(np.float32)
    minima = _scale(blocks, "m") * (blocks["scales"] >> 4).astype(np.float32)
    step, weights = _spread(steps, _fields(blocks["q"], 2, 32))
    return step * weights - minima[:, :, None]


def _q3_k(blocks: Array) -> Array:
    low, high = blocks["scales"][:, :8], blocks["scales"][:, 8:]
    scales = (_fields(low, 4, 8) | _fields(high, 2, 4) << 4).astype(np.float32) - 32
    quants = _fields(blocks["q"], 2, 32).astype(np.float32) - 4 * (1.0 - _fields(blocks["high"], 1, 32))
    step, weights = _spread(_scale(blocks) * scales, quants)
    return step * weights


def _six_bit_scales(packed: Array) -> tuple[Array, Array]:
    """Unpack the eight scales and eight minima of Q4_K and Q5_K (blocks, 12): the last four have their bits apart."""
    scales, minima, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    late_scales, late_minima = rest & 15 | (scales >> 2) & 48, rest >> 4 | (minima >> 2) & 48
    return np.hstack([scales & 63, late_scales]), np.hstack([minima & 63, late_minima])


def _with_minima(blocks: Array, quants: Array) -> Array:
    scales, minima = _six_bit_scales(blocks["scales"])
    offsets = _scale(blocks, "m") * minima.astype(np.float32)
    step, weights = _spread(_scale(blocks) * scales.astype(np.float32), quants)
    return step * weights - offsets[:, :, None]


def _q4_k(blocks: Array) -> Array:
    return _with_minima(blocks, _fields(blocks["q"], 4, 32))


def _q5_k(blocks: Array) -> Array:
    return _with_minima(blocks, _fields(blocks["q"], 4, 32) | _fields(blocks["high"], 1, 32) << 4)


def _q6_k(blocks: Array) -> Array:
    quants = (_fields(blocks["q"], 4, 64) | _fields(blocks["high"], 2, 32) << 4).astype(np.float32) - 32
    step, weights = _spread(_scale(blocks) * blocks["scales"].astype(np.float32), quants)
    return step * weights


def _iq4_nl(blocks: Array) -> Array:
    return _scale(blocks) * _FOUR_BIT[_fields(blocks["q"], 4, 16)]


def _iq4_xs(blocks: Array) -> Array:
    scales = (_fields(blocks["low"], 4, 1) | _fields(blocks["high"], 2, 1) << 4).astype(np.float32) - 32
    step, weights = _spread(_scale(blocks) * scales, _FOUR_BIT[_fields(blocks["q"], 4, 16)])
    return step * weights


def _mxfp4(blocks: Array) -> Array:
    scale = np.ldexp(np.float32(1), blocks["exponent"].astype(np.int32) - 128)  # one half of E8M0: the table is doubled
    return scale[:, None] * _E2M1_DOUBLED[_fields(blocks["q"], 4, 16)]


def _block(name: str, weights: int, unpack: Callable[[Array], Array], *fields: tuple[str, str, int]) -> Block:
    layout = [(field, kind, (count,)) if count else (field, kind) for field, kind, count in fields]
    return Block(name, weights, np.dtype(layout), unpack)


_D, _M = ("d", "<f2", 0), ("m", "<f2", 0)
_Q16, _Q64, _Q128, _HIGH32 = ("q", "u1", 16), ("q", "u1", 64), ("q", "u1", 128), ("high", "u1", 32)

BLOCKS: Mapping[int, Block] = {
    2: _block("Q4_0", 32, _q4_0, _D, _Q16),
    3: _block("Q4_1", 32, _q4_1, _D, _M, _Q16),
    6: _block("Q5_0", 32, _q5_0, _D, ("high", "u1", 4), _Q16),
    7: _block("Q5_1", 32, _q5_1, _D, _M, ("high", "u1", 4), _Q16),
    8: _block("Q8_0", 32, _q8_0, _D, ("q", "i1", 32)),
    10: _block("Q2_K", 256, _q2_k, ("scales", "u1", 16), _Q64, _D, _M),
    11: _block("Q3_K", 256, _q3_k, _HIGH32, _Q64, ("scales", "u1", 12), _D),
    12: _block("Q4_K", 256, _q4_k, _D, _M, ("scales", "u1", 12), _Q128),
    13: _block("Q5_K", 256, _q5_k, _D, _M, ("scales", "u1", 12), _HIGH32, _Q128),
    14: _block("Q6_K", 256, _q6_k, _Q128, ("high", "u1", 64), ("scales", "i1", 16), _D),
    20: _block("IQ4_NL", 32, _iq4_nl, _D, _Q16),
    23: _block("IQ4_XS", 256, _iq4_xs, _D, ("high", "u1", 2), ("low", "u1", 4), _Q128),
    39: _block("MXFP4", 32, _mxfp4, ("exponent", "u1", 0), _Q16),
}
PLAIN: Mapping[int, str] = {
    0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16",
}  # fmt: skip
OTHERS: Mapping[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
