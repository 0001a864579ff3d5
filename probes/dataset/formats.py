"""Recognise what a file of data is, by its content, and hand it to its reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from probes.dataset.arrays import is_idx, read_idx, read_npz
from probes.dataset.files import GZIP, Examples, Source, open_zip
from probes.dataset.images import is_image_name, read_images
from probes.dataset.tables import DELIMITERS, read_csv, read_parquet
from probes.dataset.text import is_jsonl, read_text
from probes.errors import DataError
from probes.specs import DataSpec

KNOWN = "IDX (MNIST), .npz, a zip or folder of images by class, CSV, Parquet, JSONL or text"
FOREIGN: Mapping[bytes, str] = {
    b"\x93NUMPY": "a single .npy array: save images and labels together with numpy.savez(images=..., labels=...)",
    b"\x80": "a Python pickle, which could run code when read: save the arrays as .npz",
    b"\x89HDF": "HDF5: save the arrays as .npz",
    b"\x89PNG": "a single image: give a zip or folder with one folder of images for each class",
    b"\xff\xd8\xff": "a single image: give a zip or folder with one folder of images for each class",
    b"7z\xbc\xaf": "a 7z archive: write a zip",
    b"Rar!": "a RAR archive: write a zip",
    b"version https://git-lfs": "a git-lfs pointer, not the data: fetch the file itself with git lfs pull",
    b"<!DOCTYPE": "a web page, not data: download the file itself",
    b"<html": "a web page, not data: download the file itself",
}


def find_examples(spec: DataSpec, names: Mapping[str, str], own_context: int = 0) -> Examples:
    """Find the reader for the files of a DataSpec and let it read."""
    sources = _spread(_sources(spec, names))
    kind = recognise_format(sources[0])
    if spec.format not in ("auto", kind) and {spec.format, kind} != {"table", "text"}:
        raise DataError(f"{sources[0].name} is {kind}, not {spec.format}. Choose {kind} or let it be recognised.")
    found = _read(kind if spec.format == "auto" else spec.format, sources, spec, own_context)
    return replace(found, about={"source": [each.name for each in sources], **found.about})


def recognise_format(source: Source) -> str:
    """Return "idx", "npz", "images", "table" or "text" for a file; DataError when it is nothing known."""
    if source.path.is_dir():
        return "images"
    head = source.head()
    if is_idx(head):
        return "idx"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _kind_of_zip(source)
    if head[:4] == b"PAR1":
        return "table"
    what = next((words for magic, words in FOREIGN.items() if head.startswith(magic)), "")
    if head[257:262] == b"ustar":
        what = "a tar archive: write a zip"
    if not what and (not head or b"\0" in head):
        what = f"no data that is known here (it begins with {head[:8].hex() or 'nothing'}): give {KNOWN}"
    if what:
        raise DataError(f"{source.name} is {what}.")
    return _kind_of_text(source, head.decode("utf-8", "replace"))


def _read(kind: str, sources: tuple[Source, ...], spec: DataSpec, own_context: int) -> Examples:
    if kind == "idx":
        return read_idx(sources)
    if len(sources) != 1:
        raise DataError(f"{sources[1].name}: data of this kind ({kind}) is one file, {len(sources)} given. Give one.")
    source = sources[0]
    if kind == "npz":
        return read_npz(source)
    if kind == "images":
        return read_images(source)
    if kind == "table":
        parquet = source.head(4) == b"PAR1"
        return read_parquet(source, spec.label) if parquet else read_csv(source, spec.label)
    jsonl = is_jsonl(source.head(2**16).decode("utf-8", "replace"))
    return read_text(source, spec, jsonl, own_context)


def _sources(spec: DataSpec, names: Mapping[str, str]) -> tuple[Source, ...]:
    if not spec.files:
        raise DataError(f"No data was given. Give {KNOWN}.")
    sources = tuple(Source(Path(each), names.get(each, Path(each).name)) for each in spec.files)
    for each in sources:
        if not each.path.exists():
            raise DataError(f"{each.name} does not exist. Check the path.")
    return sources


def _spread(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """Turn a folder that holds one pair of IDX files into the pair, and one half of a pair into both."""
    if len(sources) != 1:
        return sources
    if not sources[0].path.is_dir():
        return (*sources, *_other_half(sources[0]))
    files = sorted(each for each in sources[0].path.iterdir() if each.is_file())
    pair = tuple(Source(each, each.name) for each in files if _maybe_idx(each))
    if pair and len(pair) != 2:
        names = ", ".join(each.name for each in pair[:6])
        raise DataError(f"{sources[0].name} holds {len(pair)} IDX files ({names}). Name the two that belong together.")
    return pair or sources


def _other_half(source: Source) -> tuple[Source, ...]:
    """Return the file beside an IDX file that MNIST's way of naming makes its partner, if there is one."""
    name = source.path.name
    for one, other in (("images-idx3", "labels-idx1"), ("labels-idx1", "images-idx3")):
        if one in name:
            partner = source.path.with_name(name.replace(one, other))
            return (Source(partner, partner.name),) if partner.is_file() and _maybe_idx(source.path) else ()
    return ()


def _maybe_idx(path: Path) -> bool:
    with path.open("rb") as file:
        magic = file.read(4)
    return is_idx(magic) or (magic[:2] == GZIP and is_idx(Source(path, path.name).head(4)))


def _kind_of_zip(source: Source) -> str:
    with open_zip(source) as (_, members):
        names = [each.filename for each in members]
    if any(each.endswith(".npy") for each in names):
        return "npz"
    if any(is_image_name(each) for each in names):
        return "images"
    if any(each.endswith("data.pkl") for each in names):
        raise DataError(f"{source.name} is a PyTorch file, not data. Save the arrays as .npz.")
    held = ", ".join(repr(each[:40]) for each in names[:4]) or "nothing"
    raise DataError(f"{source.name} is a zip without PNG, JPEG or .npy files (it holds {held}). Give {KNOWN}.")


def _kind_of_text(source: Source, head: str) -> str:
    if is_jsonl(head):
        return "text"
    name = source.name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        return "table"
    if name.endswith((".txt", ".md", ".jsonl", ".json")):
        return "text"
    lines = [each for each in head.splitlines()[:-1] if each.strip()][:20]
    counts = {delimiter: {each.count(delimiter) for each in lines} for delimiter in DELIMITERS}
    regular = any(len(each) == 1 and each != {0} for each in counts.values())
    return "table" if regular and len(lines) > 1 else "text"
