"""Raw inputs -> what enters the model: channels first, uint8 divided by 255, mean and std by channel, all finite."""

from __future__ import annotations

import numpy as np

from probes.dataset.columns import MAX_INPUT_BYTES
from probes.dataset.examples import Examples
from probes.dataset.files import Array, words
from probes.errors import DataError
from probes.specs import DataSpec


def scaled_inputs(spec: DataSpec, found: Examples, raw: Array, chosen: Array) -> tuple[Array, list[str]]:
    """Return the inputs of chosen examples as they enter the model, float32 or int64 ids, and doubts."""
    name = name_of(found)
    if raw.size == 0:
        raise DataError(
            f"{name}: the examples have no numbers in them (shape {raw.shape[1:]}). Give some with content."
        )
    if found.kind == "tokens":
        if spec.mean or spec.std:
            raise DataError(f"{name} holds tokens, which are not normalised. Leave mean and std empty.")
        return np.ascontiguousarray(raw, np.int64), []
    if raw.size * 4 > MAX_INPUT_BYTES:
        amount = f"{len(raw)} examples of {raw[0].size} numbers"
        raise DataError(f"{name}: {amount} need more than {words(MAX_INPUT_BYTES)}. Choose fewer examples.")
    with np.errstate(over="ignore"):
        scaled = (raw if found.as_is else channels_first(raw)).astype(np.float32)
    if raw.dtype == np.uint8 and not found.as_is:
        scaled /= np.float32(255)
    _check_finite(found, scaled, chosen)
    doubts = [] if found.as_is else [*_layout_doubts(raw), *_scale_doubts(found, raw)]
    return _normalise(spec, found, scaled, doubts), doubts


def channels_first(raw: Array) -> Array:
    """Turn (N, H, W) into (N, 1, H, W) and (N, H, W, 1 or 3) into (N, C, H, W); keep what is so already."""
    if raw.ndim == 3:
        return raw[:, None]
    if raw.ndim == 4 and raw.shape[3] in (1, 3) and raw.shape[1] not in (1, 3):
        return raw.transpose(0, 3, 1, 2)
    return raw


def name_of(found: Examples) -> str:
    """Return the names of the files, for messages."""
    return ", ".join(found.about.get("source", ())) or "the data"


def _check_finite(found: Examples, scaled: Array, chosen: Array) -> None:
    """Refuse what is not finite, by the example and the place in it."""
    if np.isfinite(scaled.sum(dtype=np.float64)) or np.isfinite(scaled).all():
        return
    row, *place = (int(each) for each in np.argwhere(~np.isfinite(scaled))[0])
    value = scaled[(row, *place)]
    features = found.about.get("features", ())
    column = f" ({features[place[0]]!r})" if len(place) == 1 and place[0] < len(features) else ""
    where = f"number {place[0] + 1}{column}" if len(place) == 1 else f"the number at {place}"
    raise DataError(
        f"{name_of(found)}: {where} of example {found.name_of(int(chosen[row]))} (row {int(chosen[row]) + 1}) is "
        f"not finite in float32 ({value}). Mend it, or leave the example out."
    )


def _normalise(spec: DataSpec, found: Examples, inputs: Array, doubts: list[str]) -> Array:
    if not spec.mean and not spec.std:
        return np.ascontiguousarray(inputs)
    channels = inputs.shape[1]
    mean = _per_channel(spec.mean or (0.0,), "mean", channels, found)
    std = _per_channel(spec.std or (1.0,), "std", channels, found)
    if (std <= 0).any():
        raise DataError(f"{name_of(found)}: std is {list(spec.std)}; every value must be above 0.")
    low, high = float(inputs.min()), float(inputs.max())
    if mean.max() > high or mean.min() < low:
        doubts.append(f"the mean {list(spec.mean)} lies outside of the inputs, which run from {low:.4g} to {high:.4g}.")
    shape = (1, -1) + (1,) * (inputs.ndim - 2)
    return np.ascontiguousarray((inputs - mean.reshape(shape)) / std.reshape(shape))


def _per_channel(values: tuple[float, ...], what: str, channels: int, found: Examples) -> Array:
    if len(values) not in (1, channels):
        raise DataError(
            f"{name_of(found)}: {what} has {len(values)} values, the inputs have {channels} channels. "
            f"Give 1 or {channels} values."
        )
    array = np.asarray(values, np.float32)
    if not np.isfinite(array).all():
        raise DataError(f"{name_of(found)}: {what} is {list(values)}; every value must be finite.")
    return array


def _layout_doubts(raw: Array) -> list[str]:
    if raw.ndim == 4 and raw.shape[1] in (1, 3) and raw.shape[3] in (1, 3):
        return [f"shape {raw.shape} may mean channels first or last: taken as channels first."]
    return []


def _scale_doubts(found: Examples, raw: Array) -> list[str]:
    if raw.dtype == np.uint8 and found.kind == "rows":
        return [f"the rows of {raw.shape[1]} uint8 numbers are taken as pixels and divided by 255."]
    if found.kind == "images" and raw.dtype != np.uint8 and raw.size and float(raw.max()) > 16:
        return [f"the images are {raw.dtype} up to {float(raw.max()):.4g} and are not divided by 255: only uint8 is."]
    return []
