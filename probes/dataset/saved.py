"""Read what the `datasets` library saves to disk, a folder or a zip of one, without that library.

A data set is `state.json` (which names the arrow files), `dataset_info.json` (what the columns are) and the arrow
files; a dict of them is a folder for each split and `dataset_dict.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from probes.dataset.arrow import read_stream
from probes.dataset.examples import Examples, Own
from probes.dataset.features import Frame, read_frame
from probes.dataset.files import Source, shown
from probes.dataset.splits import choose_split
from probes.dataset.trees import Tree, tree_of
from probes.errors import DataError
from probes.specs import DataSpec

MAX_JSON_BYTES = 16 * 2**20
STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


def is_saved(names: tuple[str, ...] | list[str]) -> bool:
    """Tell whether the files of a folder or a zip are a saved data set."""
    held = {PurePosixPath(each).name for each in names}
    return SPLITS in held or (STATE in held and any(each.endswith(".arrow") for each in held))


def read_saved(source: Source, spec: DataSpec, own: Own) -> Examples:
    """Read the split that `spec.split` names, else the training one, or the only one."""
    tree = tree_of(source)
    home, splits, doubts = _home(tree, spec.split)
    info = _json(tree, f"{home}{INFO}") if f"{home}{INFO}" in tree.names else {}
    features = info.get("features")
    frame = _frame(tree, home, features if isinstance(features, dict) else {})
    made = read_frame(source, "Hugging Face dataset", frame, spec, own)
    about = {"split": PurePosixPath(home).name, "splits": splits} if splits else {}
    return replace(made, doubts=(*doubts, *made.doubts), about={**made.about, **about})


def _home(tree: Tree, wanted: str) -> tuple[str, list[str], tuple[str, ...]]:
    """Return the folder of the data set ("" or with a slash at its end), the names of the splits, and doubts."""
    homes = [str(PurePosixPath(each).parent) for each in tree.names if PurePosixPath(each).name == STATE]
    folders = ["" if each == "." else f"{each}/" for each in homes]
    name = tree.source.name
    if not folders:
        raise DataError(f"{name} has {SPLITS} but no {STATE} beside its arrow files. Copy the whole folder.")
    if len(folders) == 1 and not any(PurePosixPath(each).name == SPLITS for each in tree.names):
        if wanted:
            raise DataError(f"{name} has no splits, but {wanted!r} was asked for. Leave the split empty.")
        return folders[0], [], ()
    parents = {str(PurePosixPath(each).parent) for each in folders}
    if len(parents) != 1:
        held = ", ".join(repr(shown(each)) for each in sorted(homes)[:6])
        raise DataError(f"{name} holds several data sets ({held}). Give one.")
    splits = sorted(PurePosixPath(each).name for each in folders)
    chosen, doubts = choose_split(name, splits, wanted)
    return next(each for each in folders if PurePosixPath(each).name == chosen), splits, doubts


def _frame(tree: Tree, home: str, features: Mapping[str, Any]) -> Frame:
    """Read the arrow files that the state names; they must agree in their columns."""
    name = tree.source.name
    frame: Frame | None = None
    for file in _files(tree, home):
        schema, batches = read_stream(_content(tree, file), shown(file))
        if frame is None:
            frame = Frame(name, schema, [], features)
        if schema.remove_metadata() != frame.schema.remove_metadata():
            raise DataError(f"{name}: {shown(file)} has other columns than the files before it. Save the data again.")
        frame.batches.extend(batches)
    if frame is None:
        raise DataError(f"{name} names no arrow files in its {STATE}. Save the data again.")
    return frame


def _files(tree: Tree, home: str) -> list[str]:
    state = _json(tree, f"{home}{STATE}")
    name = tree.source.name
    if any(state.get(each) for each in ("_indices_files", "_indices_data_files")):
        raise DataError(f"{name} keeps an order of its rows apart, as old versions of datasets did. Save it again.")
    listed = state.get("_data_files")
    if not isinstance(listed, list):
        raise DataError(f"{name}: {STATE} has no list of files. Save the data again.")
    files = [each.get("filename") if isinstance(each, dict) else None for each in listed]
    for each in files:
        plain = isinstance(each, str) and each == PurePosixPath(each).name
        if not plain or f"{home}{each}" not in tree.names:
            raise DataError(f"{name}: {STATE} names the file {shown(str(each))!r}, which is not there. Copy all files.")
    if len(set(files)) != len(files):
        raise DataError(f"{name}: {STATE} names a file twice. Save the data again.")
    return [f"{home}{each}" for each in files]


def _content(tree: Tree, file: str) -> pa.Buffer:
    path = tree.path(file)
    if path is None:
        return pa.py_buffer(tree.read(file))
    try:
        return pa.memory_map(str(path)).read_buffer()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{shown(file)} cannot be read. Check the file.") from error


def _json(tree: Tree, file: str) -> dict[str, Any]:
    try:
        value = json.loads(tree.read(file, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown(file)} is no JSON. Save the data again.") from error
    if not isinstance(value, dict):
        raise DataError(f"{shown(file)} is no JSON object. Save the data again.")
    return value
