"""The methods of attribution by name, title and family: what a form needs to offer them, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """How a method is called, and of which family it is."""

    title: str
    family: str


FAMILIES = {
    "gradient": "gradients",
    "backprop": "modified backpropagation",
    "cam": "class activation",
    "perturbation": "perturbation",
    "decomposition": "decomposition",
    "mask": "masks",
    "attention": "attention",
    "layer": "layers",
}
METHODS: Mapping[str, Named] = {
    "gradient": Named("Gradient", "gradient"),
}
