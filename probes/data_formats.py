"""Recognise what a file of data is, by its content, and hand it to its reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from probes.data_arrays import is_idx, read_idx, read_npz
from probes.data_files import Examples, Source, open_zip
from probes.errors import DataError
from probes.specs import DataSpec

KNOWN = "IDX (MNIST), .npz, a zip or folder of images by class, CSV, Parquet, JSONL or text"


def find_examples(spec: DataSpec, names: Mapping[str, str]) -> Examples:
    """Find the reader for the files of a DataSpec and let it read."""
    sources = _sources(spec, names)
    format = recognise_format(sources[0]) if spec.format == "auto" else spec.format
    found = _read(format, sources)
    return replace(found, about={"source": [each.name for each in sources], **found.about})


def recognise_format(source: Source) -> str:
    """Return "idx", "npz", ... for a file; DataError when it is nothing known."""
    head = source.head()
    if is_idx(head):
        return "idx"
    if head[:4] == b"PK\x03\x04":
        return _kind_of_zip(source)
    raise DataError(f"{source.name} is no data that is known here. Give {KNOWN}.")


def _read(format: str, sources: tuple[Source, ...]) -> Examples:
    if format == "idx":
        return read_idx(sources)
    if len(sources) != 1:
        raise DataError(f"{sources[1].name}: {format} data is one file, {len(sources)} given. Give one.")
    if format == "npz":
        return read_npz(sources[0])
    raise DataError(f"{sources[0].name}: {format} cannot be read yet.")


def _sources(spec: DataSpec, names: Mapping[str, str]) -> tuple[Source, ...]:
    if not spec.files:
        raise DataError(f"No data was given. Give {KNOWN}.")
    sources = tuple(Source(Path(each), names.get(each, Path(each).name)) for each in spec.files)
    for each in sources:
        if not each.path.exists():
            raise DataError(f"{each.name} does not exist. Check the path.")
    return sources


def _kind_of_zip(source: Source) -> str:
    with open_zip(source) as (_, members):
        if any(each.filename.endswith(".npy") for each in members):
            return "npz"
    return "images"
