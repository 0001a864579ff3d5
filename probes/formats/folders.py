"""Folders people have -> Contents: Hugging Face, Trainer, accelerate and PEFT folders, or one file in a folder.

Only weight files with plain names inside the folder are opened, each by its own reader. What would need code, and the
pickles of a training's state, stay shut and are listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from probes.errors import RefusedCheckpoint
from probes.formats.archives import files_of_archive, unpacked
from probes.formats.contents import Contents, Limits, Stored, printable
from probes.formats.folder_files import Files, files_of_folder, find_folder, is_state, listed
from probes.formats.folder_plans import Plan, plan_of
from probes.formats.hub_files import (
    as_bytes,
    config_facts,
    read_config,
    read_history,
    read_json,
    read_texts,
)
from probes.formats.hub_sizes import too_large
from probes.formats.lora_files import lora_doubts, lora_facts

_CONFIG_BYTES = 2**20


def read_folder(path: Path, name: str, limits: Limits) -> Contents:
    """Read a folder: its weights as one set, the cleaned small files, and what the training wrote down.

    The folder itself, or the only one inside of it that holds weights, is read. Raises RefusedCheckpoint for links,
    for an index that leads out of the folder, for missing or doubled tensors and shards, each by its name.
    """
    files = open_folder(path, name, limits)
    home = files.home or path
    if ".metadata" in files.sizes and home != path:
        return _open(home, name, limits)  # what torch.distributed.checkpoint wrote has a reader of its own
    return read_files(files, path, limits)


def read_archive(path: Path, name: str, limits: Limits, scratch: Path | None = None) -> Contents:
    """Read a zip or tar of a folder as `read_folder` reads the folder; raise RefusedCheckpoint.

    scratch: where compressed weights are unpacked to; by default a folder that goes when the process ends.
    """
    files = files_of_archive(path, name, limits, lambda file, what: _open(file, what, limits), scratch)
    if ".metadata" not in files.sizes:
        return read_files(files, path, limits)
    found = _open(unpacked(path, name, limits, scratch), name, limits)
    return replace(found, path=path, left=(*found.left, *files.left))


def open_folder(path: Path, name: str, limits: Limits) -> Files:
    """List the files of the folder that holds the weights; raise RefusedCheckpoint."""
    try:
        home = find_folder(path, name, limits)
        return files_of_folder(home, name, lambda file, what: _open(file, what, limits))
    except OSError as error:
        raise RefusedCheckpoint(f"{name} cannot be read from the disk: {error.strerror or error}.") from None


def _open(path: Path, name: str, limits: Limits) -> Contents:
    from probes.formats.files import open_contents  # which opens folders by this module

    return open_contents(path, name, limits)


def read_files(files: Files, path: Path, limits: Limits) -> Contents:
    """Read the files that lie beside one another in a folder or an archive; raise RefusedCheckpoint."""
    plan = plan_of(files)
    size = sum(files.sizes[each] for each in plan.files)
    if size > limits.bytes:
        raise RefusedCheckpoint(f"{files.name} has {size:,} bytes of weights; at most {limits.bytes:,} are read.")
    config = read_config(files)
    parts = {each: files.open(each) for each in plan.files}
    whole = _joined(parts, plan, files, limits)
    facts = {**whole.facts, **config_facts(config), **read_history(files)}
    _check_config(config, facts, list(stored_in(whole.value)), files.name)
    texts, doubts = read_texts(files)
    if plan.adapter:
        facts["lora"] = lora_facts(read_json(files, "adapter_config.json", _CONFIG_BYTES))
        doubts += lora_doubts(facts["lora"])
    texts = {**({"config.json": as_bytes(config)} if config else {}), **texts}
    return replace(
        whole,
        path=path,
        format=f"{_kind(facts)}{files.kind}, {whole.format}",
        bytes=size,
        left=(*whole.left, *_left(files, plan, texts), *files.left),
        doubts=tuple(dict.fromkeys((*whole.doubts, *_code(files), *doubts))),
        texts=texts,
        facts=facts,
    )


def _joined(parts: Mapping[str, Contents], plan: Plan, files: Files, limits: Limits) -> Contents:
    """Make one value of what the files hold, and one check of all their checksums."""
    first = next(iter(parts.values()))
    if len(parts) == 1 and plan.index is None:
        return first
    if plan.sets:
        value: dict[str, Any] = {each.rpartition(".")[0]: part.value for each, part in parts.items()}
    else:
        value = _flat(parts, plan.index, files.name)
    if len(value) > limits.tensors:
        raise RefusedCheckpoint(f"{files.name} has {len(value):,} tensors; at most {limits.tensors:,} are read.")
    doubts = [doubt for part in parts.values() for doubt in part.doubts]
    extra = [each for each in value if plan.index is not None and each not in plan.index]
    if extra:
        doubts.append(f"{len(extra)} tensors are in the shards but not in the index ({printable(extra[0], 60)}).")
    return replace(
        first,
        value=value,
        left=tuple(each for part in parts.values() for each in part.left),
        doubts=tuple(doubts),
        facts={key: each for part in parts.values() for key, each in part.facts.items()},
        verify=lambda: _verify(parts),
    )


def _verify(parts: Mapping[str, Contents]) -> None:
    for part in parts.values():
        part.verify()


def _flat(parts: Mapping[str, Contents], index: Mapping[str, str] | None, name: str) -> dict[str, Any]:
    value: dict[str, Any] = {}
    homes: dict[str, str] = {}
    for file, part in parts.items():
        for key, each in _state(part, name).items():
            if key in homes:
                shown = printable(key, 80)
                raise RefusedCheckpoint(f"{name}: {shown} is in {homes[key]} and in {file}. Copy the folder again.")
            homes[key] = file
            value[key] = replace(each, place=(file, each.place)) if isinstance(each, Stored) else each
    wrong = next((key for key, file in (index or {}).items() if homes.get(key) != file), None)
    if index is not None and wrong is not None:
        raise RefusedCheckpoint(
            f"{name}: {printable(wrong, 80)} is not in {printable(index[wrong], 60)}, the shard that the index says. "
            "Copy the folder again."
        )
    return value


def _state(part: Contents, name: str) -> Mapping[str, Any]:
    """Return the named tensors of a shard."""
    held = part.value
    if isinstance(held, dict) and all(isinstance(each, str) for each in held):
        return held
    raise RefusedCheckpoint(f"{name}: the shard {printable(part.path.name)} holds no named tensors. Copy it again.")


def stored_in(value: Any, depth: int = 4) -> Iterator[Stored]:
    """Yield the tensors in nested dicts."""
    if isinstance(value, Stored):
        yield value
    elif isinstance(value, dict) and depth:
        for each in value.values():
            yield from stored_in(each, depth - 1)


def _check_config(config: Mapping[str, Any], facts: Mapping[str, Any], tensors: list[Stored], name: str) -> None:
    numbers = sum(each.numel for each in tensors)
    wrong = too_large(config, len(tensors), numbers) if "hugging_face" in facts else ""
    if wrong:
        raise RefusedCheckpoint(f"{name}/config.json: {wrong}. It is not the configuration of these weights.")


def _kind(facts: Mapping[str, Any]) -> str:
    if "lora" in facts:
        return "PEFT "
    return "Hugging Face " if "hugging_face" in facts else ""


def _code(files: Files) -> Iterator[str]:
    """Warn of folders that bring their own code: it is not run, so another architecture may be meant."""
    if "config.json" in files.sizes and "auto_map" in read_json(files, "config.json", _CONFIG_BYTES):
        yield "config.json names code of its own (auto_map), which is never run: the model may be another one."


def _left(files: Files, plan: Plan, texts: Mapping[str, bytes]) -> Iterator[str]:
    """Say which files stayed shut, and why."""
    known = {*plan.files, *texts, "trainer_state.json", "adapter_config.json"}
    rest = [each for each in files.sizes if each not in known and not each.endswith(".index.json")]
    state = [each for each in rest if is_state(each)]
    code = [each for each in rest if each.endswith((".py", ".jinja", ".so", ".pyc", ".sh"))]
    others = [each for each in rest if each not in (*state, *code)] + sorted(files.links)
    for names, why in ((state, "the state of a training"), (code, "code or a template"), (others, "not needed")):
        if names:
            yield f"{listed(names, 8)} stayed shut ({why})."
