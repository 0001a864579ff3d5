"""Where in a saved value are weights? Every state dict or module in it is a set; the usual one comes first."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from probes.formats.contents import Record, Stored, printable
from probes.formats.modules import is_module, state_of
from probes.formats.optimizers import KEYS as OPTIMIZERS
from probes.formats.optimizers import is_optimizer

WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model", "net", "weights", "module", "network", "params")
AVERAGE = re.compile(
    r"(^|[._])(ema|averaged?|shadow|swa|teacher|polyak)([._]|$)|ema_|_ema|AveragedModel", re.IGNORECASE
)
TOP = "weights"  # the name of the set that is the whole file
_OTHERS = re.compile(r"(^|_)(rng|scheduler|sched|scaler|optimizers?|grad)(_|$)", re.IGNORECASE)
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
_PREFIXES = ("module.", *_INSIDE)
_COUNT = "n_averaged"  # torch's AveragedModel keeps it beside the weights, and these under "module."
_DEPTH = 4
_MOST = 64
_VISITS = 20_000


@dataclass(frozen=True)
class Weights:
    """A set of weights: where it lies, the prefix taken off its names, its tensors, and the entries left out.

    route: the keys that lead to it. module: the record of a whole module that it was taken from.
    """

    route: tuple[str, ...]
    prefix: str
    tensors: Mapping[str, Stored]
    left: tuple[str, ...] = ()
    module: Record | None = None
    mixed: bool = False

    @property
    def name(self) -> str:
        """Return the name by which it is chosen, without the signs that a reference is written with."""
        return printable(".".join(self.route), 80).replace(":", "_").replace("+", "_") or TOP

    @property
    def average(self) -> bool:
        """Say whether it is a moving average of the weights."""
        return bool(AVERAGE.search(self.name))


def sets_in(value: Any, lightning: bool, plain: bool) -> list[Weights]:
    """List the sets of weights in a saved value, the one that is meant first.

    lightning: names may begin with "model."; plain: the names are those of a library's model and stay as they are.
    """
    found = [_weights(route, held, lightning, plain) for route, held in _held(value)]
    found = [part for each in found if each.tensors for part in _without_average(each)]
    return sorted(found, key=_rank)


def as_dict(value: Any) -> Any:
    """Return an object of a class made from dict as the dict that it holds; every other value as it is."""
    if not isinstance(value, Record) or not value.items:
        return value
    pairs = all(isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], str) for each in value.items)
    return dict(value.items) if pairs else value


def _rank(weights: Weights) -> tuple[bool, int, int]:
    last = weights.route[-1] if weights.route else ""
    known = WRAPPERS.index(last) if last in WRAPPERS else len(WRAPPERS)
    return weights.average, len(weights.route) if known == len(WRAPPERS) else 0, known


def _held(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield what holds tensors by name, with the keys that lead there; the value itself if it is a state dict."""
    if is_module(value) or (isinstance(value, dict) and _is_top(value)):
        yield (), value
        return
    queue: deque[tuple[tuple[str, ...], Any]] = deque([((), value)])
    seen: set[int] = set()
    found = visits = 0
    while queue and found < _MOST and visits < _VISITS:
        route, each = queue.popleft()
        visits += 1
        if id(each) in seen or is_optimizer(each):
            continue
        seen.add(id(each))
        if route and (is_module(each) or _is_state(each)):
            found += 1
            yield route, each
        elif len(route) < _DEPTH:
            queue.extend(_inner(route, each))


def _inner(route: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    held = value.state if isinstance(value, Record) and isinstance(value.state, dict) else value
    for key, found in held.items() if isinstance(held, dict) else ():
        inner = as_dict(found)
        if (
            isinstance(key, str)
            and isinstance(inner, dict | Record)
            and key not in OPTIMIZERS
            and not _OTHERS.search(key)
        ):
            yield (*route, key), inner


def _is_top(value: Mapping[Any, Any]) -> bool:
    """Say whether the tensors of a dict are its own weights: more than the odd number beside a nested state dict."""
    tensors = sum(isinstance(each, Stored) and isinstance(key, str) for key, each in value.items())
    return tensors > 2 or (tensors > 0 and not any(_is_state(each) or is_module(each) for each in value.values()))


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(each, Stored) for each in value.values())


def _weights(route: tuple[str, ...], held: Any, lightning: bool, plain: bool) -> Weights:
    if isinstance(held, Record):
        return Weights(route, "", _named(state_of(held), "")[0], module=held)
    stored = {key: each for key, each in held.items() if isinstance(key, str) and isinstance(each, Stored)}
    left = tuple(printable(str(key), 80) for key in held if not (isinstance(key, str) and key in stored))
    if _COUNT in stored and all(key == _COUNT or key.startswith("module.") for key in stored):
        del stored[_COUNT]
    prefix = _prefix(stored, lightning, plain)
    tensors, mixed = _named(stored, prefix)
    return Weights(route, prefix, tensors, left, mixed=mixed)


def _named(stored: Mapping[str, Stored], prefix: str) -> tuple[dict[str, Stored], bool]:
    """Take the prefix and the names of wrappers off; names that would then be the same stay as they are."""
    clean = {key: _unwrapped(key.removeprefix(prefix)) for key in stored}
    if len(set(clean.values())) != len(clean):
        clean = {key: key for key in stored}
    mixed = any(any(key.startswith(each) for key in stored) for each in _PREFIXES) and not prefix
    return {clean[key]: each for key, each in stored.items()}, mixed


def _unwrapped(key: str) -> str:
    for each in _INSIDE:
        key = key.replace(f".{each}", ".")
    return key


def _prefix(stored: Mapping[str, Any], lightning: bool, plain: bool) -> str:
    """Return what DataParallel, torch.compile or Lightning put before every name."""
    known = _PREFIXES if plain else (*_PREFIXES, "model.", "net.", "network.") if lightning else (*_PREFIXES, "model.")
    prefix = ""
    while stored:
        more = next((each for each in known if all(key.startswith(prefix + each) for key in stored)), "")
        if not more:
            break
        prefix += more
    return prefix


def _without_average(weights: Weights) -> list[Weights]:
    """Part a moving average that lies among the weights under a prefix of its own ("ema_model.conv.weight")."""
    groups: dict[str, dict[str, Stored]] = {}
    for key, each in weights.tensors.items():
        head = key.split(".", 1)[0]
        groups.setdefault(head if AVERAGE.search(head) else "", {})[key] = each
    averages = [head for head in groups if head]
    if not averages or "" not in groups:
        return [weights]
    rest = Weights(weights.route, weights.prefix, groups[""], weights.left, weights.module, weights.mixed)
    parted = [rest]
    for head in averages:
        inner = {key.removeprefix(f"{head}."): each for key, each in groups[head].items()}
        if not {key for key, each in inner.items() if each.shape} <= _suffixes(groups[""]):
            return [weights]
        parted.append(Weights((*weights.route, head), f"{weights.prefix}{head}.", inner))
    return parted


def _suffixes(tensors: Mapping[str, Stored]) -> set[str]:
    """Return the names, also without their first part, also without dots, as some averages are named."""
    names = set(tensors) | {key.split(".", 1)[-1] for key in tensors}
    return names | {key.replace(".", "") for key in names}
