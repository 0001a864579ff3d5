"""The built-in catalogue as plain values: what each family is, and whether names and shapes speak for it.

No torch here. A finder only says what the shapes suggest; `probes.models` then compares every tensor exactly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from probes.architecture.family import ACTIVATION_TITLES, PLAIN_ACTIVATIONS, UNSEEN, Candidate, Choices, Family
from probes.architecture.language import LANGUAGE
from probes.architecture.layers import Shape, Shapes, groups, orders
from probes.architecture.layouts import Layout, layouts
from probes.errors import ModelError
from probes.specs import ModelSpec


def _find_mlp(shapes: Shapes, _: Mapping[str, Any]) -> Candidate | None:
    layers = groups(shapes)
    if not layers or not all(name and _is_linear(parts) for name, parts in layers.items()):
        return None
    biased = {"bias" in parts for parts in layers.values()}
    for order in orders(layers):
        weights = [parts["weight"] for _, parts in order]
        widths = [weights[0][1], *(weight[0] for weight in weights)]
        if len(biased) == 1 and all(weight[1] == width for weight, width in zip(weights, widths, strict=False)):
            names = [name for name, _ in order]
            arguments = {"widths": widths, "names": names, "bias": biased == {True}, "activation": "relu"}
            reasons = (
                f"All layers are matrices, and each takes what the one before it gives: {_some(names)}.",
                *([UNSEEN.format("ReLU")] if len(names) > 1 else []),
            )
            choices = {"activation": PLAIN_ACTIVATIONS} if len(names) > 1 else {}
            return Candidate(ModelSpec("catalogue", "mlp", arguments), _name_mlp(arguments), reasons, choices)
    return None


def _some(names: list[str]) -> str:
    return ", ".join(names if len(names) < 8 else [*names[:3], "…", *names[-2:]])


def _is_linear(parts: Mapping[str, Shape]) -> bool:
    weight, bias = parts.get("weight", ()), parts.get("bias")
    return set(parts) <= {"weight", "bias"} and len(weight) == 2 and bias in (None, (weight[0],))


def _name_mlp(arguments: Mapping[str, Any]) -> str:
    widths = arguments["widths"]
    ends = "-".join(map(str, widths if len(widths) < 8 else [*widths[:3], "…", *widths[-2:]]))
    return f"MLP {ends}, {ACTIVATION_TITLES[arguments.get('activation', 'relu')]}"


def _find_lenet(shapes: Shapes, _: Mapping[str, Any]) -> Candidate | None:
    layers = groups(shapes)
    for order in orders(layers):
        convs = [parts["weight"] for _, parts in order if len(parts.get("weight", ())) == 4]
        linears = [parts["weight"] for _, parts in order if _is_linear(parts)]
        if not convs or not linears or len(convs) + len(linears) != len(order) or not order[0][0]:
            return None
        fits = _lenet_layouts(order, convs, linears)
        if fits and not any(name.split(".")[-1].isdigit() for name, _ in order):
            return _lenet([name for name, _ in order], convs, linears, "bias" in order[0][1], fits)
    return None


def _lenet_layouts(order: list[tuple[str, dict[str, Shape]]], convs: list[Shape], linears: list[Shape]) -> list[Layout]:
    channels = [convs[0][1], *(conv[0] for conv in convs)]
    chained = all(conv[1] == before for conv, before in zip(convs, channels, strict=False))
    widths = [linears[0][1], *(linear[0] for linear in linears)]
    chained = chained and all(linear[1] == before for linear, before in zip(linears, widths, strict=False))
    ordered = all(len(parts["weight"]) == 4 for _, parts in order[: len(convs)])
    if not chained or not ordered or any(conv[2] != conv[3] for conv in convs):
        return []
    return list(layouts([conv[2] for conv in convs], channels[0], channels[-1], widths[0], [None] * len(convs)))


def _lenet(names: list[str], convs: list[Shape], linears: list[Shape], bias: bool, fits: list[Layout]) -> Candidate:
    best = fits[0]
    arguments = {
        "channels": [convs[0][1], *(conv[0] for conv in convs)],
        "kernels": [conv[2] for conv in convs],
        "paddings": list(best.paddings),
        "pools": list(best.pools),
        "widths": [linears[0][1], *(linear[0] for linear in linears)],
        "names": names,
        "activation": "relu",
        "pool": "max",
        "bias": bias,
    }
    others = "".join(f" It would fit {each.words()} too." for each in fits[1:3])
    reasons = (
        f"{len(convs)} convolutions are followed by {len(linears)} linear layers whose first takes "
        f"{linears[0][1]} numbers: that fits {best.words()}.{others}",
        "Pooling and activation have no tensors: max pooling and ReLU are assumed.",
    )
    choices: Choices = {"activation": PLAIN_ACTIVATIONS, "pool": ("max", "average")}
    return Candidate(ModelSpec("catalogue", "lenet", arguments), _name_lenet(arguments), reasons, choices)


def _name_lenet(arguments: Mapping[str, Any]) -> str:
    channels = "-".join(map(str, arguments["channels"]))
    widths = "-".join(map(str, arguments["widths"]))
    activation = ACTIVATION_TITLES[arguments.get("activation", "relu")]
    return f"LeNet {channels} · {widths}, {activation}, {arguments.get('pool', 'max')} pooling"


def _find_resnet(shapes: Shapes, _: Mapping[str, Any]) -> Candidate | None:
    first, head = shapes.get("conv1.weight", ()), next((h for h in ("linear", "fc") if f"{h}.weight" in shapes), "")
    blocks = len({name.split(".")[1] for name in shapes if re.match(r"layer1\.\d+\.conv1\.", name)})
    deeper = any(name.startswith("layer4.") or ".conv3." in name for name in shapes)
    flat = len(shapes.get(f"{head}.weight", ())) == 2
    if len(first) != 4 or not flat or not blocks or deeper or "layer3.0.conv1.weight" not in shapes:
        return None
    projections = [n for n in ("shortcut", "downsample") if f"layer2.0.{n}.0.weight" in shapes]
    shortcut, option = (projections[0], "B") if projections else ("shortcut", "A")
    arguments = {
        "depth": 6 * blocks + 2, "option": option, "classes": shapes[f"{head}.weight"][0], "width": first[0],
        "channels": first[1], "shortcut": shortcut, "head": head,
    }  # fmt: skip
    how = "projections" if projections else "no tensors: subsampled and padded with zeros"
    reasons = (
        f"Three stages of {blocks} blocks of two 3 x 3 convolutions with batch normalisation: 6 x {blocks} + 2 layers.",
        f"Its shortcuts have {how} (option {option}).",
    )
    return Candidate(ModelSpec("catalogue", "cifar_resnet", arguments), _name_resnet(arguments), reasons)


def _name_resnet(arguments: Mapping[str, Any]) -> str:
    width = arguments.get("width", 16)
    wide = f", width {width}" if width != 16 else ""
    return f"CIFAR ResNet-{arguments['depth']}, shortcut option {arguments.get('option', 'A')}{wide}"


_ALL = (
    Family(
        "cifar_resnet",
        "CIFAR ResNet",
        "ResNet-20, 32, 44, 56, 110 for 32 x 32 images (He et al. 2016, section 4.2)",
        {
            "depth": "6n + 2: 20, 32, 44, 56, 110",
            "option": "shortcuts: A (zeros) or B (projections)",
            "classes": "logits",
            "width": "channels of the first stage (16)",
            "channels": "of the images (3)",
            "shortcut": "name of the projections: shortcut or downsample",
            "head": "name of the last layer: linear or fc",
        },
        _find_resnet,
        _name_resnet,
    ),
    *LANGUAGE,
    Family(
        "mlp",
        "MLP",
        "linear layers with one activation between them",
        {
            "widths": "from the input to the logits",
            "names": "of the linear layers",
            "bias": "yes or no",
            "activation": ", ".join(PLAIN_ACTIVATIONS),
        },
        _find_mlp,
        _name_mlp,
    ),
    Family(
        "lenet",
        "LeNet",
        "convolutions with pooling, then linear layers",
        {
            "channels": "from the image on",
            "kernels": "one size for each convolution",
            "paddings": "one for each convolution",
            "pools": "whether a pool of 2 follows each convolution",
            "widths": "from the flattened image to the logits",
            "names": "of the convolutions, then of the linear layers",
            "activation": ", ".join(PLAIN_ACTIVATIONS),
            "pool": "max or average",
            "bias": "yes or no",
        },
        _find_lenet,
        _name_lenet,
    ),
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}


def family_of(name: str) -> Family:
    """Return the family of this name; raise ModelError naming those that there are."""
    if name not in FAMILIES:
        raise ModelError(f"There is no model {name[:80]!r}; the catalogue has {', '.join(FAMILIES)}.")
    return FAMILIES[name]
