"""`python -m workspace inspect`: what a checkpoint or a file of data holds, and whether to trust it.

Checkpoints are opened in a throw-away process. This one only compares the names and shapes that come back with the
models that are known, and imports torch for that; of large files, where only the structure was read, it does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from probes.checkpoint import FULL_BYTES, Checkpoint, TensorInfo, hash_file
from probes.errors import DataError, ProbeError
from workspace.admission import examine

Say = Callable[[str], None]
Found = dict[str, Any]

SHOWN_TENSORS = 12
REFUSED = 2
# Names of data whose content cannot be taken for a checkpoint's, or does no harm when it is read as text.
_DATA = re.compile(
    r"(\.(npy|csv|tsv|parquet|jsonl|ndjson|json|txt|md|text|arrow|png|jpe?g|webp)|idx[123]-ubyte(\.gz)?)$",
    re.IGNORECASE,
)
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".th", ".safetensors", ".gguf", ".pt2", ".pkl", ".pickle", ".tar", ".h5")
_UNKNOWN = (
    "is no checkpoint that this knows",
    "has no weights",
    "without a PyTorch checkpoint inside",
    "unpack it first",
)
_NO_DATA = "is no data that is known here"
_EMPTY: Mapping[str, Any] = {
    "format": None, "verdict": "refused", "reason": "", "sha256": None, "tensors": None, "parameters": None,
    "dtypes": {}, "architecture": None, "epoch": None, "metrics": {},
}  # fmt: skip


def inspect(chosen: argparse.Namespace, say: Say, plain: Callable[[str], str]) -> int:
    """Say what each file or folder is; return 2 if any was refused.

    say: writes a sentence to stderr. plain: makes a text safe for a terminal.
    """
    status = 0
    for path in chosen.files:
        found = found_in(path, chosen.weights, chosen.full, chosen.base)
        if found["verdict"] == "refused":
            say(found["reason"])
            status = REFUSED
        if chosen.json:
            print(json.dumps(found, ensure_ascii=False, allow_nan=False), flush=True)
        elif found["verdict"] != "refused":
            print("\n".join(map(plain, words_of(found))), flush=True)
    return status


def found_in(path: Path, weights: str = "", full: bool = False, base: Path | None = None) -> Found:
    """Return what a file or folder is: a checkpoint, data, or refused; the keys stand in docs/command_line.md."""
    name = path.name or str(path)
    try:
        found = _checkpoint(path, name, weights, full, base)
    except ProbeError as error:
        return _data_or(path, name, str(error))
    if found["format"] == "npz" and any("may be no checkpoint" in each for each in found["doubts"]):
        with contextlib.suppress(DataError):
            return _data(path)
    return found


def _checkpoint(path: Path, name: str, weights: str, full: bool, base: Path | None) -> Found:
    found = examine(path, name, weights=weights, full=True if full else None)
    with tempfile.TemporaryDirectory(prefix="theodolite-") as home:
        checkpoint = _described(found, Path(home) / "own")
        if base is not None:
            checkpoint = _merged(checkpoint, _described(examine(base, base.name), Path(home) / "base"))
            found = {**found, **checkpoint.describe(), "doubts": list(checkpoint.doubts)}
        small = found["checked"] == "full" or found["bytes"] <= FULL_BYTES
        recognition = _recognised(checkpoint, base or path) if small else _stated(found)
    verdict = "warning" if found["doubts"] else "ok"
    about = {
        "kind": "checkpoint",
        "verdict": verdict,
        "reason": " ".join(found["doubts"]),
        "architecture": _architecture(found, recognition),
    }
    found.pop("texts")
    return {**_EMPTY, **found, **about, "recognition": recognition}


def _described(found: Mapping[str, Any], home: Path) -> Checkpoint:
    """Return a checkpoint without its tensors, and write beside it what the recognition of a folder looks for."""
    home.mkdir()
    for file, text in found["texts"].items():
        (home / file).write_text(text, "utf-8")
    counted = {"tensors": found["tensors"], "sets": [{"parameters": found["parameters"]}]}
    (home / "provenance.json").write_text(json.dumps(counted))
    return Checkpoint(
        path=home,
        name=found["name"],
        sha256=found["sha256"] or "",
        bytes=found["bytes"],
        format=found["format"],
        tensors={key: TensorInfo(tuple(shape), dtype) for key, shape, dtype in found["shapes"]},
        facts=found["facts"],
        doubts=tuple(found["doubts"]),
        stream=lambda: iter(()),
        weights=found["weights"],
        sets=tuple(found["sets"]),
        texts={file: text.encode() for file, text in found["texts"].items()},
        left=tuple(found["left"]),
    )


def _merged(adapter: Checkpoint, base: Checkpoint) -> Checkpoint:
    from workspace.opened import on_base

    return on_base(base, adapter)


def _recognised(checkpoint: Checkpoint, path: Path) -> Found:
    from probes.models import recognise

    found = recognise(checkpoint).to_json()
    if found["spec"] and found["spec"]["folder"] == str(checkpoint.path):
        found["spec"]["folder"] = str(path)
    return found


def _architecture(found: Mapping[str, Any], recognition: Mapping[str, Any]) -> str | None:
    """Return the title of the model that fits, or what config.json names; None where neither is known."""
    stated = found["facts"].get("hugging_face", {}).get("architecture")
    return recognition["title"] if recognition["spec"] else stated or None


def _stated(found: Mapping[str, Any]) -> Found:
    """Return the architecture that the file itself states, without a comparison."""
    title = found["facts"].get("hugging_face", {}).get("architecture")
    reason = "Its structure alone was read, because it is large; --full reads all of it and compares with known models."
    return {"spec": None, "title": title, "reasons": [reason], "choices": {}, "mismatch": None, "runner_up": None}


def _data_or(path: Path, name: str, reason: str) -> Found:
    """Return what a file is as data, where it may be some; else that it was refused, and why."""
    unknown = any(each in reason for each in _UNKNOWN)
    named = bool(_DATA.search(name))
    if path.exists() and (path.is_dir() or named or (unknown and path.suffix.lower() not in _CHECKPOINTS)):
        try:
            return _data(path)
        except DataError as error:
            known = _NO_DATA not in str(error)  # else what it looked like as a checkpoint says more
            reason = str(error) if named or (unknown and (known or path.is_dir())) else reason
    return {**_EMPTY, "name": name, "kind": None, "reason": reason, "sha256": _hash(path), "doubts": []}


def _data(path: Path) -> Found:
    from probes.data import inspect_data

    return {**_EMPTY, **inspect_data(path)}


def _hash(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return hash_file(path) if path.is_file() and path.stat().st_size <= FULL_BYTES else None
    return None


def words_of(about: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that `inspect` prints."""
    if about["kind"] == "data":
        yield from _words_of_data(about)
        return
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in about["dtypes"].items())
    said = [f"epoch {about['epoch']}"] if about["epoch"] is not None else []
    said += [f"{name} {value:g}" for name, value in about["metrics"].items()]
    said += [f"optimizer state: {about['optimizer']}"] if about["optimizer"] else []
    shapes = [f"    {name} {tuple(shape)} {dtype}" for name, shape, dtype in about["shapes"][:SHOWN_TENSORS]]
    more = len(about["shapes"]) - len(shapes)
    found = about["recognition"]
    sha256 = f"sha256 {about['sha256']}" if about["sha256"] else "structure read only"
    yield f"{about['name']}: {about['format']}, {about['bytes']:,} bytes, {sha256}"
    yield f"  {about['tensors']} tensors ({dtypes}), {about['parameters']:,} parameters"
    yield from [f"  weights: {about['weights']} of {', '.join(about['sets'])}"] if len(about["sets"]) > 1 else []
    yield from [f"  stored beside them: {', '.join(said)}"] if said else []
    yield from shapes
    yield from [f"    and {more} more"] if more > 0 else []
    yield f"  model: {found['title'] or 'not looked for'}"
    yield from (f"    {each}" for each in found["reasons"])
    second = found.get("runner_up")
    yield from [f"    runner-up: {second['title']}. {second['sentence']}"] if second else []
    yield from (f"  left behind: {each}" for each in about["left"])
    yield from (f"  note: {each}" for each in about["facts"].get("notes", ()))
    yield from (f"  doubt: {each}" for each in about["doubts"])


def _words_of_data(about: Mapping[str, Any]) -> Iterator[str]:
    low, high = about["range"]
    yield f"{about['name']}: data, {about['format']}, sha256 {about['sha256']}"
    yield f"  {about['examples']:,} examples of shape {tuple(about['shape'])}, {about['dtype']}, {low:g} to {high:g}"
    classes = ", ".join(_class(each) for each in about["classes"][:SHOWN_TENSORS])
    yield from [f"  classes: {classes}"] if classes else []
    yield from (f"  doubt: {each}" for each in about["doubts"])


def _class(each: Any) -> str:
    return f"{each[0]} {each[1]:,}" if isinstance(each, list | tuple) else str(each)
