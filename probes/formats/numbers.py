"""Bytes of numbers as NumPy sees them; bfloat16 and the floats of eight bits, which it does not know, are widened."""

from __future__ import annotations

from typing import Any

import numpy as np

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Raw, Stored

_WIDTHS = {
    "float8_e4m3fn": (4, 3, 7),
    "float8_e5m2": (5, 2, 15),
    "float8_e4m3fnuz": (4, 3, 8),
    "float8_e5m2fnuz": (5, 2, 16),
}


def numbers(raw: Raw, dtype: str) -> np.ndarray[Any, Any]:
    """Return the numbers in little-endian bytes, flat; the types that NumPy lacks as float32.

    complex32 comes as pairs of float16.
    """
    if dtype == "bfloat16":
        wide = np.zeros(len(raw) // 2, np.uint32)
        wide |= raw.view("<u2").astype(np.uint32) << 16
        return wide.view(np.float32)
    if dtype.startswith("float8"):
        table: np.ndarray[Any, Any] = _table(dtype)
        wide_of: np.ndarray[Any, Any] = table[raw]
        return wide_of
    if dtype == "complex32":
        return raw.view("<f2")
    return raw.view(np.dtype(dtype).newbyteorder("<"))


def number_in(stored: Stored) -> float | None:
    """Return the number in a tensor of one element; None where it cannot be read or is complex."""
    try:
        value = numbers(stored.read(), stored.dtype)
    except RefusedCheckpoint:
        return None
    return float(value[0]) if value.size == 1 and value.dtype.kind in "biuf" else None


def _table(dtype: str) -> np.ndarray[Any, Any]:
    """List the values of all 256 bit patterns of a float of eight bits (Micikevicius et al. 2022; OCP MX for e8m0)."""
    bits = np.arange(256)
    if dtype == "float8_e8m0fnu":
        scale = np.exp2((bits - 127).astype(np.float64))
        scale[255] = np.nan
        return scale.astype(np.float32)
    exponents, digits, bias = _WIDTHS[dtype]
    sign = np.where(bits >= 128, -1.0, 1.0)
    exponent, digit = (bits >> digits) & (2**exponents - 1), bits & (2**digits - 1)
    normal = np.exp2((exponent - bias).astype(np.float64)) * (1 + digit / 2**digits)
    value: np.ndarray[Any, Any] = sign * np.where(exponent > 0, normal, np.exp2(1.0 - bias) * digit / 2**digits)
    if dtype.endswith("fnuz"):
        value[128] = np.nan
    elif dtype == "float8_e4m3fn":
        value[[0x7F, 0xFF]] = np.nan
    else:
        top = exponent == 31
        value[top] = np.where(digit[top] == 0, sign[top] * np.inf, np.nan)
    return value.astype(np.float32)
