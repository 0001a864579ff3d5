"""What an entry of the catalogue is, and what a finder hands back. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from probes.architecture.layers import Shapes
from probes.specs import ModelSpec

Choices = Mapping[str, tuple[Any, ...]]

ACTIVATION_TITLES = {
    "relu": "ReLU", "tanh": "tanh", "gelu": "GELU", "sigmoid": "sigmoid", "silu": "SiLU", "elu": "ELU",
    "leaky_relu": "leaky ReLU", "softplus": "softplus", "identity": "no activation", "gelu_tanh": "GELU (tanh form)",
}  # fmt: skip
PLAIN_ACTIVATIONS = tuple(name for name in ACTIVATION_TITLES if name != "gelu_tanh")
UNSEEN = "A file of tensors does not show the activation; {} is assumed: choose another if the gate disagrees."


@dataclass(frozen=True)
class Candidate:
    """A model that the shapes suggest, with the reasons and with what they leave open."""

    spec: ModelSpec
    title: str
    reasons: tuple[str, ...]
    choices: Choices = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One entry of the catalogue. arguments: name -> what it means, for forms and for the documentation."""

    name: str
    title: str
    about: str
    arguments: Mapping[str, str]
    find: Callable[[Shapes, Mapping[str, Any]], Candidate | None]
    name_of: Callable[[Mapping[str, Any]], str]
