"""The store's own form of a checkpoint: tensors made anew in safetensors files, and provenance.json beside them.

A folder holds one file for each set of weights, `moments.safetensors` when an optimizer left some, the cleaned small
texts, and `provenance.json`, written last. Only a process that is confined writes such a folder; everything else in
Theodolite reads checkpoints from here and from nowhere else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.checkpoint import Checkpoint, TensorInfo, as_tensor, count_dtypes, count_parameters, hash_file, part_of
from probes.errors import RefusedCheckpoint
from probes.formats.amounts import bytes_of, check_amount, once
from probes.formats.contents import Contents, Limits, Stored, printable
from probes.formats.find import Found, find
from probes.formats.safe import read_safetensors
from probes.formats.safe_writer import Tick, Written, write_tensors
from probes.formats.statistics import doubts_of

if TYPE_CHECKING:
    import torch

VERSION = 1  # of this form and of what the readers find; folders of another version are made anew
PROVENANCE = "provenance.json"
MOMENTS = "moments.safetensors"
_OWN = Limits(tensors=10**7, name=10**6, index=2**31, rank=1000)
_verified: set[tuple[str, int, int]] = set()


class DamagedCopy(RefusedCheckpoint):
    """The copy in the store is not whole any more; it can be made anew from the upload."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The stored copy of {name} is damaged. Admit it again from the upload.")


def write(
    contents: Contents, name: str, folder: Path, *, sha256: str, about: Mapping[str, Any], limits: Limits, tick: Tick
) -> dict[str, Any]:
    """Write the tensors, texts and provenance of a file into an empty folder; return the provenance.

    sha256: of the upload. about: what else is to be kept ("isolation", "when"). The memory needed is that of the
    largest tensor. Raises RefusedCheckpoint.
    """
    found = find(contents, name, "", limits)
    check_amount(contents, found, name)
    progress = _Progress(tick, bytes_of(found))
    sets = []
    for index, key in enumerate(found.sets):
        one = found if key == found.default else find(contents, name, key, limits)
        file = f"weights{f'-{index}' if index else ''}.safetensors"
        written = write_tensors(folder / file, once(one.tensors, found.tied[key]), name, progress)
        sets.append({"name": key, "file": file, **_about_set(one, written)})
    moments = _write_moments(found, folder, name, progress)
    texts = dict(_texts(contents))
    for file, text in texts.items():
        (folder / file).write_bytes(text)
    provenance = {
        "version": VERSION, "name": name, "sha256": sha256, "bytes": contents.bytes, "format": contents.format,
        **about, "left": list(found.left), "default": found.default, "tensors": len(found.tensors), "sets": sets,
        "moments": moments, "texts": list(texts),
    }  # fmt: skip
    tick(1.0, "written")
    (folder / PROVENANCE).write_text(json.dumps(provenance, ensure_ascii=False, allow_nan=False), "utf-8")
    return provenance


def read_admitted(folder: Path, weights: str = "", *, name: str = "") -> Checkpoint:
    """Return an admitted checkpoint, whose tensors are not read yet; a file is hashed once in a process.

    weights: the set that is meant, if not the usual one. name: what the user calls it now. Raises RefusedCheckpoint
    where there is no such set, or the copy is damaged.
    """
    about = read_provenance(folder)
    name = name or str(about["name"])
    chosen = next((each for each in about["sets"] if each["name"] == (weights or about["default"])), None)
    if chosen is None:
        known = ", ".join(each["name"] for each in about["sets"])
        raise RefusedCheckpoint(f"{name} has no weights called {printable(weights, 60)}; it has {known}.")
    tensors = _tensors(folder, chosen, name)
    usual = chosen["name"] == about["default"]
    kinds = about["moments"]["kinds"] if usual and about["moments"] else ()
    return Checkpoint(
        path=folder / chosen["file"],
        name=name if usual else f"{name} ({chosen['name']})",
        sha256=about["sha256"],
        bytes=about["bytes"],
        format=about["format"],
        tensors={key: TensorInfo(each.shape, each.dtype) for key, each in tensors.items()},
        facts=chosen["facts"],
        doubts=tuple(chosen["doubts"]),
        stream=lambda: _stream(tensors),
        weights=chosen["name"],
        sets=tuple(each["name"] for each in about["sets"]),
        moments=tuple(kinds),
        stream_moments=lambda kind: _stream(_moments(folder, about, name)[kind]),  # not even hashed until asked for
        texts={file: (folder / file).read_bytes() for file in about["texts"]},
        left=tuple(about["left"]),
        fetch=lambda key: as_tensor(tensors[key]),
        parts=lambda key: part_of(tensors[key]),
    )


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return what is known of an admitted checkpoint; raise RefusedCheckpoint when the folder is not whole."""
    try:
        about = json.loads((folder / PROVENANCE).read_text("utf-8"))
        if about["version"] == VERSION:
            return dict(about)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DamagedCopy("this checkpoint")


def plain(value: Any) -> Any:
    """Return what JSON can hold of a value; numbers that are not finite, bytes and objects become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else None


class _Progress:
    """Turn bytes written into shares of all."""

    def __init__(self, tick: Tick, total: int) -> None:
        self._tick, self._total, self._done = tick, max(total, 1), 0

    def __call__(self, count: int, doing: str) -> None:
        self._done += count
        self._tick(min(1.0, self._done / self._total), doing)


def _about_set(found: Found, written: Written) -> dict[str, Any]:
    tensors, tied = found.tensors, dict(found.tied[found.default])
    return {
        "sha256": written.sha256, "bytes": written.bytes, "tensors": len(tensors),
        "parameters": count_parameters(tensors, tied), "dtypes": count_dtypes(tensors),
        "tied": tied, "order": list(tensors) if tied else [], "other_types": written.other_types,
        "facts": plain(found.facts), "doubts": [*found.doubts, *doubts_of(written.seen)],
    }  # fmt: skip


def _write_moments(found: Found, folder: Path, name: str, progress: _Progress) -> dict[str, Any] | None:
    moments = {f"{kind}/{key}": each for kind, group in found.moments.items() for key, each in group.items()}
    if not moments:
        return None
    written = write_tensors(folder / MOMENTS, moments, name, progress)
    other = {"other_types": written.other_types}
    return {"file": MOMENTS, "sha256": written.sha256, "bytes": written.bytes, "kinds": list(found.moments), **other}


def _texts(contents: Contents) -> Iterator[tuple[str, bytes]]:
    for file, text in contents.texts.items():
        plain_name = file == Path(file).name and not file.startswith(".") and file.isprintable() and len(file) <= 100
        if plain_name and file != PROVENANCE and not file.endswith(".safetensors"):
            yield file, text


def _tensors(folder: Path, about: Mapping[str, Any], name: str) -> dict[str, Stored]:
    """Return the tensors of one of our files by all their names, in the order of the original."""
    held = _read_file(folder, about, name)
    order = about.get("order") or list(held)
    tied = about.get("tied", {})
    return {key: held[tied.get(key, key)] for key in order}


def _read_file(folder: Path, about: Mapping[str, Any], name: str) -> dict[str, Stored]:
    path = folder / about["file"]
    try:
        stamp = path.stat()
        key = (str(path), stamp.st_mtime_ns, stamp.st_size)
        if key not in _verified:
            if stamp.st_size != about["bytes"] or hash_file(path) != about["sha256"]:
                raise DamagedCopy(name)
            _verified.add(key)
        held: dict[str, Stored] = read_safetensors(path, name, _OWN).value
    except OSError:
        raise DamagedCopy(name) from None
    for key_, (dtype, shape) in about["other_types"].items():
        held[key_] = _retyped(held[key_], dtype, tuple(shape))
    return held


def _retyped(each: Stored, dtype: str, shape: tuple[int, ...]) -> Stored:
    return Stored(dtype, shape, each.read, each.place)


def _moments(folder: Path, about: Mapping[str, Any], name: str) -> dict[str, dict[str, Stored]]:
    if about["moments"] is None:
        return {}
    held = _read_file(folder, about["moments"], name)
    kinds: dict[str, dict[str, Stored]] = {kind: {} for kind in about["moments"]["kinds"]}
    for key, each in held.items():
        kind, _, parameter = key.partition("/")
        kinds[kind][parameter] = each
    return kinds


def _stream(tensors: Mapping[str, Stored]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((key, as_tensor(each)) for key, each in tensors.items())
