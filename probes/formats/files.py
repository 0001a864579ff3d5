"""What kind of file is this, and is it whole? Only structure is read here: headers, checksums, outlines."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from probes.errors import RefusedCheckpoint
from probes.formats.pickles import read_outline
from probes.formats.pickle_values import ITEM_BYTES, Outline, Storage

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PICKLE_BYTES = 64 * 2**20
_HEADER_BYTES = 100 * 2**20
_PIECE = 2**20
_SAFE_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
}  # fmt: skip
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: fetch it with `git lfs pull`"),
    (b"GGUF", "a GGUF file, whose weights are quantized: bring the original PyTorch or safetensors file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes: this reads PyTorch and safetensors files"),
    (b"\x93NUMPY", "a NumPy array: this reads PyTorch and safetensors files"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG image"),
    (b"PK\x05\x06", "an empty zip archive"),
)


@dataclass(frozen=True)
class Contents:
    """A file that is whole: its format and what it declares, with an `Outline` in the place of every tensor.

    metadata: the strings that safetensors may carry.
    """

    path: Path
    format: str
    bytes: int
    value: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)


def open_contents(path: Path, name: str) -> Contents | None:
    """Recognise a file by its content and check its structure; None for a folder, or a zip of one, with config.json.

    Raises RefusedCheckpoint saying what the file is instead, or where it is damaged.
    """
    if path.is_dir():
        return None
    if not path.is_file():
        raise RefusedCheckpoint(f"{name} is not there, or is not a file.")
    try:
        return _recognise(path, name, path.stat().st_size)
    except OSError as error:
        raise RefusedCheckpoint(f"{name} cannot be read from the disk: {error.strerror or error}.") from None


def _recognise(path: Path, name: str, size: int) -> Contents | None:
    with path.open("rb") as file:
        head = file.read(512)
        _refuse_others(head, name)
        file.seek(0)
        if head.startswith(b"PK\x03\x04"):
            return _open_zip(path, name, size)
        if head[8:9] == b"{" and head[:8] != b"":
            return Contents(path, "safetensors", size, *_safetensors(file, size, name))
        if head.startswith(b"\x80"):
            return Contents(path, "torch legacy", size, _legacy(file, size, name))
    raise RefusedCheckpoint(f"{name} is no checkpoint that this knows: bring safetensors, or what torch.save wrote.")


def _refuse_others(head: bytes, name: str) -> None:
    if not head:
        raise RefusedCheckpoint(f"{name} is empty (0 bytes). Copy it again from its source.")
    what = next((words for magic, words in _OTHERS if head.startswith(magic)), "")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        what = "a web page, not the file itself: the download asked for a login or the address was wrong"
    elif head[257:262] == b"ustar":
        what = "a tar archive, perhaps of PyTorch 0.1: unpack it, or load it there and save it with torch.save"
    elif head[:1] == b"\x08" and (b"pytorch" in head or b"onnx" in head.lower()):
        what = "an ONNX model: bring the PyTorch state dict it was exported from"
    if what:
        raise RefusedCheckpoint(f"{name} is {what}.")


def _open_zip(path: Path, name: str, size: int) -> Contents | None:
    try:
        with zipfile.ZipFile(path) as archive:
            if _is_folder(archive):
                return None
            stem = _check_records(archive, name)
            value, storages = _zip_outline(archive, stem, name)
            _check_storages(archive, stem, storages, name)
            _check_sums(archive, name)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RefusedCheckpoint(
            f"{name} is a damaged or truncated zip archive ({reason}). Copy it again from its source."
        ) from None
    return Contents(path, "torch zip", size, value)


def _is_folder(archive: zipfile.ZipFile) -> bool:
    return any(info.filename.split("/")[-1] == "config.json" for info in archive.infolist()) and not any(
        info.filename.endswith((".npy", "data.pkl", ".h5")) for info in archive.infolist()
    )


def _check_records(archive: zipfile.ZipFile, name: str) -> str:
    """Refuse archives that torch.save did not write; return the folder that all records lie in."""
    records = archive.infolist()
    names = [info.filename for info in records]
    what = _other_zip(records, names)
    if what:
        raise RefusedCheckpoint(f"{name} is {what}.")
    stems = {each.split("/")[0] for each in names}
    if len(set(names)) != len(names) or len(stems) != 1:
        raise RefusedCheckpoint(f"{name} is a zip with doubled records or several folders: torch.save writes none such.")
    return stems.pop()


def _other_zip(records: list[zipfile.ZipInfo], names: list[str]) -> str:
    last = {each.split("/")[-1] for each in names}
    if any(info.flag_bits & 1 for info in records):
        return "an encrypted zip archive: unpack it with its password first"
    if "constants.pkl" in last or any("/code/" in each for each in names):
        return "a TorchScript archive, which holds a program: save model.state_dict() instead"
    if names and all(each.endswith(".npy") for each in names):
        return "a NumPy .npz archive: use it as data, or bring the PyTorch or safetensors file"
    if "model.weights.h5" in last:
        return "a Keras archive: this reads PyTorch and safetensors files"
    if "data.pkl" not in last:
        return "a zip archive without a PyTorch checkpoint inside: unpack it and choose the file"
    if any(info.compress_type != zipfile.ZIP_STORED for info in records):
        return "a compressed zip, while torch.save writes plain ones: load it and save it again with torch.save"
    return ""


def _zip_outline(archive: zipfile.ZipFile, stem: str, name: str) -> tuple[Any, dict[str, Storage]]:
    try:
        info = archive.getinfo(f"{stem}/data.pkl")
    except KeyError:
        raise RefusedCheckpoint(f"{name} has no {stem}/data.pkl: it is no checkpoint of torch.save.") from None
    if info.file_size > _PICKLE_BYTES:
        raise RefusedCheckpoint(f"{name} has an index of {info.file_size:,} bytes, more than any state dict needs.")
    with archive.open(info) as file:
        return read_outline(file, name)


def _check_storages(archive: zipfile.ZipFile, stem: str, storages: Mapping[str, Storage], name: str) -> None:
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    for key, storage in storages.items():
        stored = sizes.get(f"{stem}/data/{key}")
        if stored != storage.bytes:
            have = "is missing" if stored is None else f"has {stored:,} bytes"
            raise RefusedCheckpoint(
                f"{name} is damaged: its record data/{key} {have} where {storage.bytes:,} are declared. Copy it again."
            )


def _check_sums(archive: zipfile.ZipFile, name: str) -> None:
    """Compare every record with the CRC-32 that torch.save wrote beside it; torch.load itself never does."""
    for info in archive.infolist():
        try:
            with archive.open(info) as record:
                while record.read(_PIECE):
                    pass
        except zipfile.BadZipFile:
            raise RefusedCheckpoint(
                f"{name} is damaged: the checksum of its record {info.filename} is wrong. Copy it again."
            ) from None


def _legacy(file: IO[bytes], size: int, name: str) -> Any:
    if read_outline(file, name)[0] != LEGACY_MAGIC:
        file.seek(0)
        read_outline(file, name)  # names what a plain pickle would need, if that is what it is
        raise RefusedCheckpoint(f"{name} is a plain pickle, not written by torch.save: save it with torch.save.")
    read_outline(file, name)
    read_outline(file, name)
    value, storages = read_outline(file, name)
    keys = [str(key) for key in read_outline(file, name)[0]]
    if sorted(keys) != sorted(storages):
        raise RefusedCheckpoint(f"{name} is damaged: the tensors it declares and those it stores differ.")
    for key in keys:
        _skip_storage(file, storages[key], size, name)
    if file.tell() != size:
        raise RefusedCheckpoint(f"{name} is damaged: {size - file.tell():,} bytes follow its last tensor.")
    return value


def _skip_storage(file: IO[bytes], storage: Storage, size: int, name: str) -> None:
    count = int.from_bytes(file.read(8), "little")
    end = file.tell() + storage.bytes
    if count != storage.numel or end > size:
        raise RefusedCheckpoint(
            f"{name} is cut short or damaged: {storage.bytes:,} bytes of a tensor are missing. Copy it again."
        )
    file.seek(end)


def _safetensors(file: IO[bytes], size: int, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the outlines and the metadata in a header."""
    length = int.from_bytes(file.read(8), "little")
    if length > _HEADER_BYTES or 8 + length > size:
        raise RefusedCheckpoint(f"{name} is cut short: its header claims {length:,} bytes of {size:,}. Copy it again.")
    try:
        header = json.loads(file.read(length))
        metadata = dict(header.pop("__metadata__", {}))
        value = {key: _safe_outline(key, about) for key, about in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedCheckpoint(f"{name} has no readable safetensors header ({error}). Copy it again.") from None
    _check_safetensors(file, name)
    return value, metadata


def _safe_outline(key: str, about: Mapping[str, Any]) -> Outline:
    if about["dtype"] not in _SAFE_DTYPES:
        raise ValueError(f"the tensor {key!r} has the dtype {about['dtype']!r}, which is not supported")
    dtype, shape = _SAFE_DTYPES[about["dtype"]], tuple(int(each) for each in about["shape"])
    start, end = about["data_offsets"]
    return Outline(Storage(key, dtype, (end - start) // ITEM_BYTES[dtype]), dtype, 0, shape, ())


def _check_safetensors(file: IO[bytes], name: str) -> None:
    """Let the library check offsets, overlaps, holes and the length of the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file.name, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise RefusedCheckpoint(f"{name} is a damaged safetensors file: {error}. Copy it again.") from None
