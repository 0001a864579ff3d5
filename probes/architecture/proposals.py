"""Propose a Sequential for a state dict whose layers form a chain.

Activations, pooling and flattening leave no tensors, but the numbers that `nn.Sequential` gives its layers leave
gaps where they stood, and the first linear layer says how many numbers came out of the convolutions. The proposal is
the common layout that explains both; only the accuracy at the gate can confirm it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise

from probes.architecture.family import Candidate
from probes.architecture.layers import Shape, Shapes, groups, orders
from probes.architecture.layouts import Layout, layouts
from probes.architecture.model_text import title_of_text
from probes.errors import ModelError
from probes.specs import ModelSpec

_BRANCH = re.compile(r"(^|[._])(downsample|shortcut|skip|resid\w*|branch\w*|attn|attention|se|aux\w*)(\d*)([._]|$)")
_MOST_LAYERS = 2_000
_NORM_LEAVES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@dataclass(frozen=True)
class _Step:
    """One layer with tensors: what it is, its own text, its size, and how many steps without tensors follow it."""

    name: str
    kind: str  # "conv" "linear" "norm"
    text: str
    channels: tuple[int, int]  # in, out
    kernel: int = 0
    gap: int | None = 0  # None: not known, since the names are not numbers of one Sequential
    after: tuple[str, ...] = ()


def propose(shapes: Shapes) -> Candidate | None:
    """Propose a Sequential that has exactly these tensors; None when they are no chain of known layers.

    Names that speak of a second path rule a chain out, whatever the shapes.
    """
    layers = groups(shapes)
    if len(layers) > _MOST_LAYERS or any(_BRANCH.search(name) for name in layers):
        return None
    folders = {name[:place] for name in layers for place, letter in enumerate(name) if letter == "."}
    if not layers or "" in layers or folders & set(layers):
        return None
    for order in orders(layers):
        steps = _steps(order)
        fitted = _fit(steps) if steps else None
        if fitted is not None:
            try:
                return _candidate(*fitted)
            except ModelError:  # more layers or larger ones than a text may have
                return None
    return None


def _candidate(steps: list[_Step], layout: Layout | None) -> Candidate:
    text = _write(_tree(steps))
    fits = f" That fits {layout.words()}." if layout else ""
    reasons = (
        f"Its {len(steps)} layers with tensors form a chain: each takes what the one before it gives.{fits}",
        "Layers without tensors (activations, pooling, flattening) cannot be seen in the file. ReLU and max pooling "
        "are assumed where the layers' numbers leave room: let the gate confirm it, or paste the true model.",
    )
    return Candidate(ModelSpec("text", text=text), f"proposed: {title_of_text(text)}", reasons)


def _steps(order: list[tuple[str, dict[str, Shape]]]) -> list[_Step]:
    """Read every layer; [] when one of them is of no known kind or does not take what the one before gives."""
    steps: list[_Step] = []
    for name, parts in order:
        step = _step(name, parts, steps[-1] if steps else None)
        if step is None:
            return []
        if steps:
            steps[-1] = replace(steps[-1], gap=_gap(steps[-1].name, name))
        steps.append(step)
    return steps


def _step(name: str, parts: dict[str, Shape], before: _Step | None) -> _Step | None:
    weight = parts.get("weight", ())
    bias = "" if "bias" in parts else ", bias=False"
    if len(parts.get("running_mean", ())) == 1 and set(parts) <= _NORM_LEAVES and before is not None:
        dimensions = 1 if before.kind == "linear" else 2
        plain = "" if weight else ", affine=False"
        size = parts["running_mean"][0]
        return (
            _Step(name, "norm", f"BatchNorm{dimensions}d({size}{plain})", (size, size))
            if size == before.channels[1]
            else None
        )
    if set(parts) - {"weight", "bias"}:
        return None
    if len(weight) == 4:
        groups_, rest = divmod(before.channels[1] if before else weight[1], weight[1])
        if rest or not groups_ or weight[0] % groups_ or weight[2] != weight[3] or (before and before.kind == "linear"):
            return None
        more = f", groups={groups_}" if groups_ > 1 else ""
        text = f"Conv2d({weight[1] * groups_}, {weight[0]}, {weight[2]}PADDING{more}{bias})"
        return _Step(name, "conv", text, (weight[1] * groups_, weight[0]), weight[2])
    if len(weight) == 2 and parts.get("bias", (weight[0],)) == (weight[0],):
        return _Step(name, "linear", f"Linear({weight[1]}, {weight[0]}{bias})", (weight[1], weight[0]))
    return None


def _gap(name: str, following: str) -> int | None:
    """Count the layers without tensors between two numbered layers of the same Sequential."""
    (parent, _, number), (other, _, after) = name.rpartition("."), following.rpartition(".")
    if parent != other or not (number.isdigit() and after.isdigit()):
        return None
    return max(int(after) - int(number) - 1, 0)


def _fit(steps: list[_Step]) -> tuple[list[_Step], Layout | None] | None:
    """Find a layout that leads to the first linear layer, and fill the gaps accordingly."""
    convs = [place for place, step in enumerate(steps) if step.kind == "conv"]
    linears = [place for place, step in enumerate(steps) if step.kind == "linear"]
    chained = all(b.channels[0] == a.channels[1] for a, b in pairwise(steps) if not _turns(a, b))
    if not chained or not linears or not (convs or len(linears) > 1) or any(a > linears[0] for a in convs):
        return None
    if not convs:
        return _filled(steps, None, linears[0]), None
    last, first = steps[convs[-1]], steps[linears[0]]
    ends = [(*convs[1:], linears[0])[count] - 1 for count in range(len(convs))]  # the last step of each convolution
    rooms = [steps[end].gap for end in ends]
    if first.channels[0] == last.channels[1] and (rooms[-1] is None or rooms[-1] >= 3 or len(convs) > 4):
        pools = tuple((room or 0) >= 2 for room in rooms[:-1])
        same = tuple(steps[place].kernel // 2 for place in convs)
        layout: Layout | None = Layout(0, same, (*pools, False))
    else:
        pooled = [_pooled(room, place == len(rooms) - 1) for place, room in enumerate(rooms)]
        kernels = [steps[place].kernel for place in convs]
        sides = layouts(kernels, steps[convs[0]].channels[0], last.channels[1], first.channels[0], pooled)
        layout = next(sides, None)
    return (_filled(steps, layout, linears[0]), layout) if layout else None


def _turns(a: _Step, b: _Step) -> bool:
    """Say whether the image becomes a row between these two, so that their sizes differ."""
    return (
        b.kind == "linear"
        and a.kind != "linear"
        and a.channels[1] != b.channels[0]
        and b.channels[0] % a.channels[1] == 0
    )


def _pooled(room: int | None, last: bool) -> bool | None:
    """Say whether a gap has room for a pool beside the activation (and, at the last, for Flatten)."""
    if room is None:
        return None
    return room >= (3 if last else 2)


def _filled(steps: list[_Step], layout: Layout | None, first_linear: int) -> list[_Step]:
    """Write what follows each step, and the padding of the convolutions."""
    filled, conv = [], -1
    for place, step in enumerate(steps):
        conv += step.kind == "conv"
        following = steps[place + 1] if place + 1 < len(steps) else None
        padding = layout.paddings[conv] if layout and step.kind == "conv" else 0
        text = step.text.replace("PADDING", f", padding={padding}" if padding else "")
        flat = layout is not None and place + 1 == first_linear
        pool = layout is not None and place < first_linear and layout.pools[conv]
        between = following is not None and following.kind != "norm" and (step.gap is None or step.gap > flat)
        after = ["ReLU()"] * between + ["MaxPool2d(2)"] * bool(pool and following and following.kind != "norm")
        after += (["AdaptiveAvgPool2d(1)"] if layout and not layout.image else []) * flat + ["Flatten()"] * flat
        after += ["Identity()"] * ((step.gap or 0) - len(after))
        filled.append(replace(step, text=text, after=tuple(after)))
    return filled


Tree = dict[str, "str | Tree"]


def _tree(steps: list[_Step]) -> Tree:
    """Arrange the layers by their dotted names, those without tensors between them."""
    tree: Tree = {}
    for step in steps:
        *folders, last = step.name.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})  # type: ignore[assignment]
        node[last] = step.text
        for count, text in enumerate(step.after, 1):
            node[str(int(last) + count) if last.isdigit() else f"{last}_{text.split('(')[0].lower()}_{count}"] = text
    return tree


def _write(tree: Tree) -> str:
    """Write the tree as a Sequential, by position when the names are 0, 1, 2, …"""
    texts = {name: each if isinstance(each, str) else _write(each) for name, each in tree.items()}
    if list(texts) == [str(count) for count in range(len(texts))]:
        return f"Sequential({', '.join(texts.values())})"
    pairs = ", ".join(f"({name!r}, {text})" for name, text in texts.items())
    return f"Sequential(OrderedDict([{pairs}]))"
