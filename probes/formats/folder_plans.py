"""Which of the files beside one another hold the weights, and in what order are they read? Nothing is opened here.

Raises RefusedCheckpoint, naming the file, where an index leads out of the folder or a shard is missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from probes.errors import RefusedCheckpoint
from probes.formats.contents import printable
from probes.formats.folder_files import Files, is_plain, is_weights, listed, other_files
from probes.formats.foreign import refuse_names
from probes.formats.hub_files import read_json

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_INDEX_BYTES = 64 * 2**20
_SHARD = re.compile(r"^([\w.-]+)-(\d{1,5})-of-(\d{1,5})\.(safetensors|bin)$", re.ASCII)
_TWIN = re.compile(r"^(model|pytorch_model)(_\d{1,3})?\.(safetensors|bin)$")


@dataclass(frozen=True)
class Plan:
    """Which files to open. index: tensor -> file, where the folder has one. sets: each file is a model of its own."""

    files: tuple[str, ...]
    index: Mapping[str, str] | None = None
    adapter: bool = False
    sets: bool = False


def plan_of(files: Files) -> Plan:
    """Choose the weight files of a folder; raise RefusedCheckpoint when there are none, or none that can be chosen."""
    names = {*files.sizes, *files.links}
    adapter = next((each for each in _ADAPTERS if each in names), "")
    if "adapter_config.json" in names and adapter and not any(each in names for each in _SINGLE):
        return Plan((_inside(files, adapter),), adapter=True)
    for single in _SINGLE:
        if f"{single}.index.json" in names:
            return _indexed(files, f"{single}.index.json")
        if single in names:
            twins = _twins(files, single)
            return Plan(tuple(_inside(files, each) for each in twins), sets=len(twins) > 1)
    others = sorted(each for each in names if is_weights(each) and each != ".metadata")
    indexes = [each for each in sorted(names) if each.endswith(".index.json")]
    if len(indexes) == 1 and others:
        return _indexed(files, indexes[0])
    return _shards(files, others) or _only(files, others or other_files(names))


def _indexed(files: Files, name: str) -> Plan:
    index = read_json(files, name, _INDEX_BYTES).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(each, str) for each in index.values()):
        raise RefusedCheckpoint(f"{files.name}: {name} has no weight_map from tensors to files. Copy it again.")
    held: dict[str, list[str]] = {}
    for tensor, file in index.items():
        held.setdefault(file, []).append(tensor)
    return Plan(tuple(_inside(files, each, held[each]) for each in sorted(held)), index)


def _inside(files: Files, name: str, tensors: list[str] | None = None) -> str:
    """Return the name of a weight file, if it is one of the folder's own."""
    shown = printable(name, 80)
    if not is_plain(name) or name in files.links:
        hint = (
            " (copy the folder with `cp -rL`, which copies the files instead of links)" if name in files.links else ""
        )
        raise RefusedCheckpoint(f"{files.name}: the weights {shown!r} are not a plain file inside the folder{hint}.")
    if name not in files.sizes:
        hold = f"; it should hold {listed(tensors or [], 1)}" if tensors else ""
        raise RefusedCheckpoint(f"{files.name}: the weight file {shown} is missing{hold}. Copy the whole folder.")
    return name


def _twins(files: Files, single: str) -> list[str]:
    """List model.safetensors, model_1.safetensors, …: accelerate saves one such file for each of its models."""
    ending = single.rpartition(".")[2]
    stem = single.partition(".")[0]
    found = (each for each in files.sizes if each.endswith(ending) and _TWIN.match(each) and each.startswith(stem))
    return sorted({single, *found}, key=lambda each: (len(each), each))


def _shards(files: Files, names: list[str]) -> Plan | None:
    """Take a full set of shards whose index is missing; raise by the name of the shard that is not there."""
    matches = [match for match in map(_SHARD.match, names) if match]
    sets = {(match[1], match[3], match[4]) for match in matches}
    if not matches or len(sets) != 1 or len(matches) != len(names):
        return None
    stem, total, ending = sets.pop()
    if int(total) > len(names):
        numbers = {int(match[2]) for match in matches}
        gone = [f"{stem}-{each:0{len(total)}d}-of-{total}.{ending}" for each in range(1, int(total) + 1)]
        gone = [each for number, each in enumerate(gone, 1) if number not in numbers]
        raise RefusedCheckpoint(f"{files.name}: weight files are missing ({listed(gone)}). Copy the whole folder.")
    return Plan(tuple(_inside(files, each) for each in names))


def _only(files: Files, names: list[str]) -> Plan:
    if len(names) > 1:
        raise RefusedCheckpoint(
            f"{files.name} holds several checkpoints ({listed(names)}) and no index of them. Choose one file."
        )
    if not names:
        refuse_names([*files.sizes, *files.links], files.name)
        held = listed([*files.sizes, *files.links]) or "nothing"
        raise RefusedCheckpoint(
            f"{files.name} has no weights (model.safetensors, pytorch_model.bin, or one checkpoint); it holds {held}."
        )
    if names[0] in files.links:
        _inside(files, names[0])
    return Plan((names[0],))
