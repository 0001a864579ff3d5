"""A language model token by token, with its own cache of keys and values: only new tokens are ever fed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from probes.architecture.llama import SmallLlama
from probes.architecture.modules import SmallGPT
from probes.attribution.errors import AttributionError
from probes.attribution.tokens import configured

if TYPE_CHECKING:
    from probes.objective import Objective


class Feed:
    """A model that is fed a sequence bit by bit; it gives the logits of the new positions.

    cached: keep keys and values, and run only what is new; else run all tokens again each time. Call it inside
    `torch.no_grad()` and `strict()`.
    """

    def __init__(self, objective: Objective, *, cached: bool) -> None:
        if cached and not has_cache(objective.module):
            raise AttributionError(
                f"{type(objective.module).__name__} keeps no cache of keys and values; run it without a cache, which "
                "gives the same numbers."
            )
        values = zip(objective.names, objective.theta, strict=True)
        self._values = {**objective.constants, **{name: each.detach() for name, each in values}}
        self._module, self._device, self._cached = objective.module, objective.device, cached
        self._past: Any = None
        self._seen = torch.zeros(1, 0, dtype=torch.int64, device=objective.device)

    def __call__(self, ids: Tensor) -> Tensor:
        """Feed new ids (1, k); return their logits, (1, k, V)."""
        ids = ids.to(self._device)
        if not self._cached:
            self._seen = torch.cat([self._seen, ids], 1)
            found: Tensor = functional_call(self._module, self._values, (self._seen,))
            return found[:, -ids.shape[1] :]
        step = _Step(self._module)
        values = {f"model.{name}": each for name, each in self._values.items()}
        outputs = functional_call(step, values, (ids, self._past))
        self._past = outputs.past_key_values
        if self._past is None:
            raise AttributionError(
                f"{type(self._module).__name__} gives no cache back; run it without a cache, which gives the same "
                "numbers."
            )
        return outputs.logits  # type: ignore[no-any-return]


class _Step(nn.Module):
    """A model of transformers as it was before it was made to return logits only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, past: Any) -> Any:
        step: Any = _original(self.model)
        return step(input_ids=ids, past_key_values=past, use_cache=True, return_dict=True)


def has_cache(module: nn.Module) -> bool:
    """Tell whether a model keeps keys and values: those of transformers do, the app's own small ones do not."""
    return "past_key_values" in inspect.signature(_original(module)).parameters


def _original(module: nn.Module) -> Callable[..., Any]:
    """Return the pass that a model's own class has from the class above it."""
    parent: Any = super(type(module), module)
    return parent.forward  # type: ignore[no-any-return]


def context_of(module: nn.Module) -> int:
    """Return how many tokens a model takes at most; 0 where that is not known."""
    if isinstance(module, SmallGPT):
        return int(module.get_submodule("transformer.wpe").weight.shape[0])  # type: ignore[index, arg-type]
    if isinstance(module, SmallLlama):
        return len(module.freqs_cos)
    return configured(module, "max_position_embeddings") or 0


def ends(module: nn.Module) -> frozenset[int]:
    """Return the tokens that end a text, by the model's config."""
    config: Any = getattr(module, "config", None)
    given = getattr(config, "eos_token_id", None)
    several = given if isinstance(given, list | tuple) else [given]
    return frozenset(each for each in several if isinstance(each, int) and not isinstance(each, bool))
