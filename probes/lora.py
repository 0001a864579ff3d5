"""Base and LoRA adapter -> the checkpoint that they are together, tensor by tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from probes.checkpoint import Checkpoint
from probes.errors import ModelError
from probes.lora_plan import Edit, Plan, canonical, plan_merge

if TYPE_CHECKING:
    from torch import Tensor

    Held = Callable[[str], Tensor]  # the adapter's tensors by their names


def merge(base: Checkpoint, adapter: Checkpoint) -> Checkpoint:
    """Merge an adapter into its base: every tensor of the adapter finds its own, or ModelError says which does not.

    base: with the names of its model (`probes.hugging_face.fit_names`, where it is a folder). The tensors are computed
    one by one as they are asked for, in float32 or float64, and keep the base's dtypes; of the base one tensor is in
    memory at a time, of the adapter all.
    """
    plan = plan_merge(base, adapter)
    facts = {key: each for key, each in base.facts.items() if key not in ("metrics", "epoch", "step", "optimizer")}
    said = {key: adapter.facts[key] for key in ("metrics", "epoch", "step") if key in adapter.facts}
    both = f"{base.sha256}:{base.weights}+{adapter.sha256}:{adapter.weights}"
    return replace(
        base,
        name=f"{base.name} + {adapter.name}",
        sha256=hashlib.sha256(both.encode()).hexdigest(),
        facts={
            **facts,
            **said,
            "adapter": {"name": adapter.name, "sha256": adapter.sha256, "changed": len(plan.edits)},
        },
        doubts=tuple(dict.fromkeys((*base.doubts, *_own(adapter)))),
        stream=lambda: _stream(base, adapter, plan),
        moments=(),
        stream_moments=lambda _: iter(()),
        fetch=lambda name: _merged(name, base.read(name), base, adapter.read, plan),
        parts=lambda name: None if _changed(canonical(base, name), plan) else base.parts(name),
    )


def _own(adapter: Checkpoint) -> Iterator[str]:
    """Leave out the doubts that merging answers."""
    return (doubt for doubt in adapter.doubts if "base" not in doubt and "adapter" not in doubt)


def _stream(base: Checkpoint, adapter: Checkpoint, plan: Plan) -> Iterator[tuple[str, Tensor]]:
    held = dict(adapter.stream())
    for name, tensor in base.stream():
        yield name, _merged(name, tensor, base, held.__getitem__, plan)


def _changed(key: str, plan: Plan) -> bool:
    return key in plan.replaced or key in plan.edits or key in plan.biases


def _merged(name: str, tensor: Tensor, base: Checkpoint, held: Held, plan: Plan) -> Tensor:
    key, kind = canonical(base, name), tensor.dtype
    if key in plan.replaced:
        tensor = held(plan.replaced[key])
    for edit in plan.edits.get(key, ()):
        tensor = _edited(tensor, edit, held, base.name)
    if key in plan.biases:
        bias, scaling = plan.biases[key]
        tensor = tensor + scaling * held(bias).to(tensor.dtype)
    return tensor.to(kind)


def _edited(weight: Tensor, edit: Edit, held: Held, name: str) -> Tensor:
    """Return W + scaling B A, its rows given DoRA's lengths where there are any."""
    import torch

    if not weight.is_floating_point():
        kind = str(weight.dtype).removeprefix("torch.")
        raise ModelError(f"{name}: {edit.target} is {kind}; an adapter is merged with floating weights only.")
    a = held(edit.a)
    wide = torch.float64 if torch.float64 in (weight.dtype, a.dtype) else torch.float32
    a, b = a.to(wide).flatten(1), held(edit.b).to(wide).flatten(1)
    rows = (weight.T if edit.turned else weight.flatten(1)).to(wide)
    rows = rows + edit.scaling * (b @ a)
    if edit.magnitude:
        rows = rows * (held(edit.magnitude).to(wide).flatten() / rows.norm(dim=1))[:, None]
    return (rows.T if edit.turned else rows.reshape(weight.shape)).contiguous()
