"""Which model `run` means by --model: a name, a text, a file, a folder; or nothing, and the checkpoint tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from probes.architecture import naming
from probes.checkpoint import Checkpoint
from probes.errors import ModelError
from probes.models import FAMILIES, recognise, title_of
from probes.specs import ModelSpec

Say = Callable[[str], None]

NAME = re.compile(r"(?P<name>[A-Za-z][\w-]*)(:(?P<arguments>[\w=.,-]+))?")
RESNET = re.compile(r"resnet[-_]?(\d+)")
SHORT_NAMES = {"gpt": "small_gpt", "nanogpt": "small_gpt", "resnet": "cifar_resnet"}


def model_of(text: str, checkpoint: Checkpoint, say: Say, copy: Callable[[Path], Path]) -> ModelSpec:
    """Turn NAME, TEXT, FOLDER, or nothing, into a ModelSpec; say what was recognised.

    copy: returns the admitted copy of a Hugging Face folder or a zip of one, the only thing that is read of it.
    """
    by_name = naming.named(text, {name: info.shape for name, info in checkpoint.tensors.items()})
    if by_name is not None:
        return by_name
    if _exists(text):
        path = Path(text)
        return ModelSpec("hugging_face", folder=str(copy(path))) if path.is_dir() else _in_file(path, copy)
    named = NAME.fullmatch(text)
    if text and not named:
        if "(" not in text:
            known = ", ".join(FAMILIES)
            raise ModelError(f"--model {text!r} is no file, folder or name. Give {known}, or Sequential(...).")
        return ModelSpec("text", text=text)
    found = recognise(checkpoint)
    if found.spec is None:
        raise ModelError(f"{checkpoint.name}: {' '.join(found.reasons)} Give it with --model.")
    spec = _named(named, found.spec, checkpoint) if named else found.spec
    say(f"Model: {title_of(spec)}. {' '.join(found.reasons)}")
    return spec


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # a text too long for a name, or with a NUL
        return False


def _in_file(path: Path, copy: Callable[[Path], Path]) -> ModelSpec:
    """Read a file with the text of a model; a zip is that of a Hugging Face folder."""
    with path.open("rb") as file:
        content = file.read(2**20)
    if content.startswith(b"PK"):
        return ModelSpec("hugging_face", folder=str(copy(path)))
    try:
        return ModelSpec("text", text=content.decode("utf-8"))
    except UnicodeDecodeError:
        raise ModelError(f"--model {path.name} is no text. Give the text of print(model) or Sequential(...).") from None


def _named(named: re.Match[str], found: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    """Take the sizes that the checkpoint shows for the family that the user names, and arguments as told."""
    name, depth = named["name"].lower(), RESNET.fullmatch(named["name"].lower())
    family = "cifar_resnet" if depth else SHORT_NAMES.get(name, name)
    if family not in FAMILIES:
        raise ModelError(f"There is no model {named['name']!r}; the catalogue has {', '.join(FAMILIES)}.")
    fits = found.name == family and (not depth or found.arguments.get("depth") == int(depth[1]))
    if not fits:
        raise ModelError(f"{checkpoint.name} does not fit --model {named['name']}: it is {title_of(found)}.")
    told = _told(named["arguments"] or "", found.arguments)
    return replace(found, arguments={**found.arguments, **told})


def _told(text: str, known: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in known or not isinstance(known[name], (bool, int, str)):
            allowed = ", ".join(key for key, each in known.items() if isinstance(each, (bool, int, str)))
            raise ModelError(f"--model: {part!r} names no argument that can be set so; there are {allowed}.")
        told[name] = _typed(name, value, known[name])
    return told


def _typed(name: str, value: str, like: bool | int | str) -> bool | int | str:
    if isinstance(like, str):
        return value
    words = {"true": True, "false": False} if isinstance(like, bool) else {}
    if value.lower() in words:
        return words[value.lower()]
    if isinstance(like, bool) or not value.isdecimal():
        raise ModelError(f"--model: {name} is {value!r}; give {'true or false' if words else 'a whole number'}.")
    return int(value)
