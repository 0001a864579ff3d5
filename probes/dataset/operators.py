"""The examples that an operator's own module builds: `build_data()` of a module of THEODOLITE_MODELS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from probes.dataset.examples import Examples, Own, Taken, numbered
from probes.dataset.files import Array, shown
from probes.dataset.tokens import Tokens, check_ids, shower
from probes.errors import DataError
from probes.specs import DataSpec

if TYPE_CHECKING:
    from torch import Tensor


def read_operator(spec: DataSpec, own: Own) -> Examples:
    """Read inputs, targets and ids of the module that `spec.files` names; the inputs are taken as they are.

    The name may carry the start of the file's sha256 when it was chosen, "module@3f2a91c4": another file is refused.
    """
    from probes.operator_models import read_operator_data

    if len(spec.files) != 1:
        raise DataError(f"{len(spec.files)} modules were named. Name one of those that this server is set up with.")
    module, _, sha256 = spec.files[0].partition("@")
    name = shown(module)
    _check_same(module, sha256)
    inputs, targets, ids = read_operator_data(module)
    x, y = _array(name, inputs), _array(name, targets)
    if len(x) == 0:
        raise DataError(f"{name} builds no examples. Let build_data() return some.")
    tokens = x.ndim == 2 and x.dtype.kind in "iu" and x.dtype != np.uint8
    following = tokens and y.shape == x.shape and y.dtype.kind in "iu"  # next tokens, -100 where nothing counts

    def take(chosen: Array) -> Taken:
        if tokens:
            check_ids(name, Tokens(x.reshape(-1), np.arange(0, x.size + 1, x.shape[1])), chosen, own)
        return Taken(x[chosen], targets=y[chosen] if following else None)

    return Examples(
        format="operator's module",
        kind="tokens" if tokens else "images" if x.ndim > 2 else "rows",
        count=len(x),
        take=take,
        name_of=numbered(name, tuple(map(shown, ids))),
        labels=None if following else y,
        about={"source": [name]},
        show=shower() if tokens else None,
        as_is=True,
    )


def _check_same(module: str, sha256: str) -> None:
    from probes.operator_models import listed

    now = {each.sha256 for each in listed() if each.name.partition(":")[0] == module}
    if sha256 and now and not any(each.startswith(sha256) for each in now):
        raise DataError(f"The file of {shown(module)} has changed since its data was chosen. Choose it again.")


def _array(name: str, tensor: Tensor) -> Array:
    plain = tensor.float() if tensor.is_floating_point() else tensor
    if plain.is_complex() or plain.ndim < 1:
        raise DataError(f"{name}: build_data() gives {tensor.dtype} of shape {tuple(tensor.shape)}. Give real numbers.")
    array = np.asarray(plain.contiguous().numpy())
    if array.ndim > 2 and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise DataError(f"{name}: example {row} (row {row + 1}) is not finite. Mend it, or leave it out.")
    return array
