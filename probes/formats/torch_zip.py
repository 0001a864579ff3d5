"""The zip that `torch.save` writes: a pickle, and one record of raw bytes for each storage."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from probes.errors import RefusedCheckpoint
from probes.formats.contents import ITEM_BYTES, Contents, Limits, Span, printable
from probes.formats.pickles import read_pickle
from probes.formats.raw import swapped
from probes.formats.zips import (
    DAMAGE,
    Member,
    check_count,
    check_directory,
    check_sum,
    checked_span,
    open_window,
    plain_members,
)

_NEWEST = 10  # torch has written 3 for years; TorchScript goes up to 10


@dataclass(frozen=True)
class Records:
    """The storages of a torch zip, found by their names."""

    path: Path
    name: str
    members: Mapping[str, Member]
    stem: str
    is_big: bool = False

    def find(self, key: str, dtype: str, numel: int, device: str) -> Span:
        """Return the reader of a storage's bytes."""
        del device
        member = self.members.get(f"{self.stem}data/{key}")
        declared = numel * ITEM_BYTES.get(dtype, 1)
        if member is None or member.bytes != declared:
            have = "is missing" if member is None else f"has {member.bytes:,} bytes"
            raise RefusedCheckpoint(
                f"{self.name} is damaged: its record data/{printable(key, 40)} {have} where {declared:,} are declared. "
                "Copy it again."
            )
        span = checked_span(self.path, member, self.name)
        if self.is_big and dtype == "bytes":
            raise RefusedCheckpoint(f"{self.name} has big-endian bytes without a type. Save it on an ordinary machine.")
        return swapped(span, dtype) if self.is_big else span


def read_torch_zip(path: Path, name: str, limits: Limits, *, start: int = 0, length: int | None = None) -> Contents:
    """Read what `torch.save` wrote, in a file of its own or in a stretch of one; raise RefusedCheckpoint."""
    size = path.stat().st_size - start if length is None else length
    try:
        with open_window(path, start, size) as file:
            check_count(file, name, limits)
        with open_window(path, start, size) as file, zipfile.ZipFile(file) as archive:
            check_directory(archive, name, limits)
            stem = _stem(archive, name)
            members = plain_members(archive, file, size, name, start)
            _refuse_newer(archive, stem, name)
            records = Records(path, name, members, stem, _is_big(archive, stem, name))
            pickle = members[f"{stem}data.pkl"]
            _check_index(pickle, path, name, limits)
            with open_window(path, pickle.start, pickle.bytes) as stream:
                walk = read_pickle(stream, name, records, most=limits.index)
                if stream.read(1):
                    raise RefusedCheckpoint(f"{name} hides bytes behind the end of its pickle. It is not opened.")
    except DAMAGE as error:
        reason = printable(" ".join(str(error).split()))
        raise RefusedCheckpoint(
            f"{name} is a damaged or truncated zip archive ({reason}). Copy it again from its source."
        ) from None
    return Contents(
        path, "torch zip", size, walk.value, left=left_words(walk.foreign), verify=lambda: _verify(path, members, name)
    )


def left_words(foreign: Mapping[str, int]) -> tuple[str, ...]:
    """Say which foreign objects a pickle holds, that were not made."""
    return tuple(f"{count} x {printable(each)}" if count > 1 else printable(each) for each, count in foreign.items())


def _verify(path: Path, members: Mapping[str, Member], name: str) -> None:
    for member in members.values():
        check_sum(path, member, name)


def _stem(archive: zipfile.ZipFile, name: str) -> str:
    """Return the folder that all records lie in, with its slash; refuse archives that torch.save did not write."""
    names = archive.namelist()
    homes = [each.removesuffix("data.pkl") for each in names if each.split("/")[-1] == "data.pkl"]
    if len(homes) != 1 or homes[0].count("/") > 1 or any(not each.startswith(homes[0]) for each in names):
        raise RefusedCheckpoint(f"{name} is a zip with several folders or pickles: torch.save writes none such.")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise RefusedCheckpoint(
            f"{name} is a compressed zip, while torch.save writes plain ones: unpack it or save it again."
        )
    return homes[0]


def _check_index(pickle: Member, path: Path, name: str, limits: Limits) -> None:
    if pickle.bytes > limits.index:
        raise RefusedCheckpoint(f"{name} has an index of {pickle.bytes:,} bytes; at most {limits.index:,} are read.")
    check_sum(path, pickle, name)


def _refuse_newer(archive: zipfile.ZipFile, stem: str, name: str) -> None:
    text = _small(archive, f"{stem}version")
    if text and (not text.isdigit() or int(text) > _NEWEST):
        raise RefusedCheckpoint(
            f"{name} is of version {printable(text, 20)} of torch's format, written by a newer PyTorch than is known "
            f"here (up to {_NEWEST}). Save the state dict as safetensors."
        )


def _is_big(archive: zipfile.ZipFile, stem: str, name: str) -> bool:
    order = _small(archive, f"{stem}byteorder")
    if order not in ("", "little", "big"):
        raise RefusedCheckpoint(f"{name} has numbers in the byte order {printable(order, 20)}. Save it again.")
    return order == "big"


def _small(archive: zipfile.ZipFile, record: str) -> str:
    if record not in archive.namelist() or archive.getinfo(record).file_size > 64:
        return ""
    return archive.read(record).decode("latin-1").strip()
