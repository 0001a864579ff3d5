"""Recognise what a file of data is, by its content, and hand it to its reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from probes.dataset.arrays import is_idx, read_idx, read_npz
from probes.dataset.bins import is_llmc, is_llmc_weights, read_bin
from probes.dataset.examples import Examples, Own
from probes.dataset.features import read_parquet
from probes.dataset.files import GZIP, Source, open_zip, shown
from probes.dataset.images import is_image_name, read_images
from probes.dataset.operators import read_operator
from probes.dataset.saved import is_saved, read_saved
from probes.dataset.tables import DELIMITERS, read_csv
from probes.dataset.text import is_jsonl, read_text
from probes.dataset.trees import is_hidden, tree_of
from probes.errors import DataError
from probes.specs import DataFormat, DataSpec

KNOWN = (
    "IDX (MNIST), .npz, a zip or folder of images by class or with a labels.csv or captions.csv, a data set "
    "that datasets saved to disk, CSV, Parquet, JSONL, text, or a .bin of tokens"
)
SINGLE = "a single image: give a zip or folder with one folder of images for each class"
FOREIGN: Mapping[bytes, str] = {
    b"\x93NUMPY": "a single .npy array: save images and labels together with numpy.savez(images=..., labels=...)",
    b"\x80": "a Python pickle, which could run code when read: save the arrays as .npz",
    b"\x89HDF": "HDF5: save the arrays as .npz",
    b"\x89PNG": SINGLE,
    b"\xff\xd8\xff": SINGLE,
    b"RIFF": SINGLE,
    b"GIF8": "a GIF image: save the images as PNG, one folder for each class",
    b"7z\xbc\xaf": "a 7z archive: write a zip",
    b"Rar!": "a RAR archive: write a zip",
    b"ARROW1": "an Arrow file for random access: save the data with datasets' save_to_disk, or as Parquet",
    b"SQLite format 3": "an SQLite database: save the table as CSV or Parquet",
    b"GGUF": "a GGUF model, not data",
    b"version https://git-lfs": "a git-lfs pointer, not the data: fetch the file itself with git lfs pull",
    b"<!DOCTYPE": "a web page, not data: download the file itself",
    b"<!doctype": "a web page, not data: download the file itself",
    b"<html": "a web page, not data: download the file itself",
}
ALIKE = ({"table", "text"}, {"tokens16", "tokens32"})
FORCED = ("tokens16", "tokens32")  # whatever the bytes look like


def find_examples(spec: DataSpec, names: Mapping[str, str], own: Own) -> Examples:
    """Find the reader for the files of a DataSpec and let it read."""
    if spec.format == "operator":
        return read_operator(spec, own)
    sources = _spread(_sources(spec, names))
    kind = spec.format if spec.format in FORCED and sources[0].path.is_file() else recognise_format(sources[0])
    if spec.format not in ("auto", kind) and {spec.format, kind} not in ALIKE:
        raise DataError(f"{sources[0].name} is {kind}, not {spec.format}. Choose {kind} or let it be recognised.")
    found = _read(kind if spec.format == "auto" else spec.format, sources, spec, own)
    return replace(found, about={"source": [each.name for each in sources], **found.about})


def recognise_format(source: Source) -> DataFormat:
    """Return what a file or folder is; DataError when it is nothing known."""
    if source.path.is_dir():
        return "dataset" if is_saved(tree_of(source).names) else "images"
    if source.name.lower().endswith(".bin"):
        return _kind_of_bin(source)
    head = source.head()
    if is_idx(head):
        return "idx"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _kind_of_zip(source)
    if head[:4] == b"PAR1":
        return "table"
    if is_llmc(head):
        return "tokens16"
    _refuse_foreign(source, head)
    if not head or b"\0" in head:
        begins = head[:8].hex() or "nothing"
        raise DataError(f"{source.name} is no data that is known here (it begins with {begins}): give {KNOWN}.")
    return _kind_of_text(source, head.decode("utf-8", "replace"))


def _refuse_foreign(source: Source, head: bytes) -> None:
    what = next((words for magic, words in FOREIGN.items() if head.startswith(magic)), "")
    if head[257:262] == b"ustar":
        what = "a tar archive: write a zip"
    if is_llmc_weights(head):
        what = "a checkpoint of llm.c, not its tokens"
    if what:
        raise DataError(f"{source.name} is {what}.")


def _kind_of_bin(source: Source) -> DataFormat:
    """Tell tokens from what else is called .bin; raw ones have no mark of their own."""
    with source.path.open("rb") as file:
        head = file.read(4096)
    if is_idx(head):
        return "idx"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _kind_of_zip(source)
    if head[:1] != b"\x80" or head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):  # of a pickle, its protocol
        _refuse_foreign(source, head)
    return "tokens16"


def _read(kind: str, sources: tuple[Source, ...], spec: DataSpec, own: Own) -> Examples:
    if kind == "idx":
        return read_idx(sources)
    if len(sources) != 1:
        raise DataError(f"{sources[1].name}: data of this kind ({kind}) is one file, {len(sources)} given. Give one.")
    source = sources[0]
    if kind == "npz":
        return read_npz(source, spec, own)
    if kind == "images":
        return read_images(source, spec, own)
    if kind == "dataset":
        return read_saved(source, spec, own)
    if kind in FORCED:
        return read_bin(source, spec, own)
    if kind == "table":
        parquet = source.head(4) == b"PAR1"
        return read_parquet(source, spec, own) if parquet else read_csv(source, spec.label)
    return read_text(source, spec, own)


def _sources(spec: DataSpec, names: Mapping[str, str]) -> tuple[Source, ...]:
    if not spec.files:
        raise DataError(f"No data was given. Give {KNOWN}.")
    sources = tuple(Source(Path(each), shown(names.get(each, Path(each).name))) for each in spec.files)
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
    files = sorted(each for each in sources[0].path.iterdir() if each.is_file() and not is_hidden(each.name))
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


def _kind_of_zip(source: Source) -> DataFormat:
    with open_zip(source) as (_, members):
        names = [each.filename for each in members]
    if is_saved(names):
        return "dataset"
    if any(each.endswith(".npy") for each in names):
        return "npz"
    if any(is_image_name(each) for each in names):
        return "images"
    if any(each.endswith("data.pkl") for each in names):
        raise DataError(f"{source.name} is a PyTorch file, not data. Save the arrays as .npz.")
    held = ", ".join(repr(shown(each)[:40]) for each in names[:4]) or "nothing"
    raise DataError(f"{source.name} is a zip without PNG, JPEG or .npy files (it holds {held}). Give {KNOWN}.")


def _kind_of_text(source: Source, head: str) -> DataFormat:
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
