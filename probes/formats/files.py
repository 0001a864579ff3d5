"""What kind of file or folder is this, by its content? Then the reader of that kind opens it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Contents, Limits, printable
from probes.formats.foreign import refuse_foreign, refuse_zip
from probes.formats.safe import read_safetensors
from probes.formats.torch_legacy import read_legacy, read_tar
from probes.formats.torch_zip import read_torch_zip
from probes.formats.zips import DAMAGE, check_count, check_directory

_HEAD = 2048
_MAGIC_IN_DIGITS = b"L119547037146038801333356L\n"  # of torch's legacy layout, in pickle protocols 0 and 1
_PICKLE_STARTS = (b"(", b"c", b"]", b"}", b"I", b"S", b"V", b"i")


def open_contents(path: Path, name: str, limits: Limits | None = None, scratch: Path | None = None) -> Contents:
    """Recognise a file or folder and read its structure; no tensor is read yet.

    name: what the user calls it. scratch: a folder in which archives may be unpacked. Raises RefusedCheckpoint saying
    what the file is instead, where it is damaged, or why it is not safe to open.
    """
    limits = limits or Limits.from_environment()
    name = printable(name, 200)
    try:
        return _folder(path, name, limits) if path.is_dir() else _file(path, name, limits, scratch)
    except OSError as error:
        raise RefusedCheckpoint(f"{name} cannot be read from the disk: {error.strerror or error}.") from None
    except MemoryError:
        raise RefusedCheckpoint(f"{name} does not fit into this machine's memory.") from None


def _folder(path: Path, name: str, limits: Limits) -> Contents:
    if (path / ".metadata").exists():
        from probes.formats.distributed import read_distributed

        return read_distributed(path, name, limits)
    from probes.formats.folders import read_folder

    return read_folder(path, name, limits)


def _file(path: Path, name: str, limits: Limits, scratch: Path | None) -> Contents:
    if not path.is_file():
        raise RefusedCheckpoint(f"{name} is not there, or is not a file.")
    size = path.stat().st_size
    if size > limits.bytes:
        raise RefusedCheckpoint(f"{name} has {size:,} bytes; at most {limits.bytes:,} are read (THEODOLITE_MAX_BYTES).")
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(max(0, size - _HEAD))
        tail = file.read(_HEAD)
    if head.startswith(b"PK\x03\x04"):
        return _zip(path, name, limits, scratch)
    if head.startswith(b"GGUF"):
        from probes.formats.gguf import read_gguf

        return read_gguf(path, name, limits)
    header = 8 + int.from_bytes(head[:8], "little")  # of safetensors; its first byte may be that of a pickle
    if head[8:9] == b"{" and (header <= size or not head.startswith(b"\x80")):
        return read_safetensors(path, name, limits)
    if head.startswith((b"\x80", _MAGIC_IN_DIGITS)):
        return read_legacy(path, name, limits)
    if head[257:262] == b"ustar":
        return _tar(path, name, limits, scratch)
    if head.startswith(b"\x1f\x8b"):
        return _gzip(path, name, limits, scratch)
    refuse_foreign(head, tail, name)
    if head.startswith(_PICKLE_STARTS) and tail.endswith(b"."):
        return read_legacy(path, name, limits)
    raise RefusedCheckpoint(
        f"{name} is no checkpoint that this knows (it begins with {head[:8].hex()}): bring safetensors, or what "
        "torch.save wrote."
    )


def _zip(path: Path, name: str, limits: Limits, scratch: Path | None) -> Contents:
    from probes.formats.archives import is_folder_archive
    from probes.formats.npz import is_npz, read_npz_checkpoint
    from probes.formats.programs import is_program, read_program

    try:
        with path.open("rb") as file:
            check_count(file, name, limits)
        with zipfile.ZipFile(path) as archive:
            check_directory(archive, name, limits)
            names = archive.namelist()
    except DAMAGE as error:
        reason = printable(" ".join(str(error).split()))
        raise RefusedCheckpoint(
            f"{name} is a damaged or truncated zip archive ({reason}). Copy it again from its source."
        ) from None
    if is_program(names):
        return read_program(path, name, limits)
    if is_npz(names):
        return read_npz_checkpoint(path, name, limits)
    if any(each.split("/")[-1] == "data.pkl" for each in names):
        return read_torch_zip(path, name, limits)
    if is_folder_archive(path):
        return _unpacked(path, name, limits, scratch)
    refuse_zip(names, name)
    raise AssertionError("refuse_zip always raises")


def _tar(path: Path, name: str, limits: Limits, scratch: Path | None) -> Contents:
    from probes.formats.archives import is_folder_archive

    return _unpacked(path, name, limits, scratch) if is_folder_archive(path) else read_tar(path, name, limits)


def _gzip(path: Path, name: str, limits: Limits, scratch: Path | None) -> Contents:
    from probes.formats.archives import is_folder_archive

    if is_folder_archive(path):
        return _unpacked(path, name, limits, scratch)
    raise RefusedCheckpoint(f"{name} is compressed with gzip: unpack it first.")


def _unpacked(path: Path, name: str, limits: Limits, scratch: Path | None) -> Contents:
    from probes.formats.folders import read_archive

    return read_archive(path, name, limits, scratch)
