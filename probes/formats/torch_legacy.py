"""What `torch.save` wrote before the zip: a stream of pickles with the storages behind them, and the older tar.

Also a plain pickle of a state dict, in which every storage is such a stream in itself.
"""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from probes.errors import RefusedCheckpoint
from probes.formats.contents import ITEM_BYTES, Contents, Limits, Raw, Record, Span, printable
from probes.formats.pickle_values import STORAGE_NAMES, Storage, size, tensor_of
from probes.formats.pickles import Budget, Walk, read_pickle
from probes.formats.raw import span_of, span_of_bytes
from probes.formats.torch_zip import left_words

MAGIC = 0x1950A86A20F9469CFC6C
_TAR_MEMBERS = ("storages", "tensors", "pickle")


@dataclass
class Behind:
    """Storages that lie behind the pickle that names them: their places are known once the pickle has been read."""

    name: str
    open: Callable[[int], Span]
    declared: dict[str, tuple[str, int]] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)

    def find(self, key: str, dtype: str, numel: int, device: str) -> Span:
        """Return the reader of a storage's bytes, to be used when the whole file has been seen."""
        del device
        self.declared[key] = (dtype, numel)

        def read(first: int, length: int) -> Raw:
            return self.open(self.places[key])(first, length)

        return read

    def locate(self, file: IO[bytes], keys: list[str], end: int) -> None:
        """Find the storages behind the stream's position: each is a count of items and the items."""
        if sorted(keys) != sorted(self.declared):
            raise RefusedCheckpoint(f"{self.name} is damaged: the tensors it declares and those it stores differ.")
        for key in keys:
            dtype, numel = self.declared[key]
            length = numel * ITEM_BYTES.get(dtype, 1)
            count = int.from_bytes(file.read(8), "little")
            self.places[key] = file.tell()
            if count != numel or file.tell() + length > end:
                raise RefusedCheckpoint(
                    f"{self.name} is cut short or damaged: {length:,} bytes of a tensor are missing. Copy it again."
                )
            file.seek(length, 1)
        if file.tell() != end:
            raise RefusedCheckpoint(f"{self.name} is damaged: {end - file.tell():,} bytes follow its last tensor.")


def read_legacy(path: Path, name: str, limits: Limits) -> Contents:
    """Read a stream of pickles, or a plain pickle; raise RefusedCheckpoint."""
    length = path.stat().st_size
    budget = Budget()
    with path.open("rb") as file:
        first = _first(file, length, name, limits, budget)
        if first.value == MAGIC:
            value, foreign = _stream(file, length, name, limits, lambda start: span_of(path, name, start), budget)
            return Contents(path, "torch legacy", length, value, left=left_words(foreign))
        if file.read(1):
            raise RefusedCheckpoint(f"{name} is a plain pickle with bytes behind its end. It is not opened.")
    return Contents(path, "pickle", length, first.value, left=left_words(first.foreign))


def read_legacy_storage(file: IO[bytes], length: int, name: str, budget: Budget) -> Storage:
    """Return the one storage in the bytes of a torch file inside of a pickle."""
    content = file.read(length)
    if not content.startswith(b"\x80"):
        raise RefusedCheckpoint(f"{name} holds a storage in a form that is not known. Save it with torch.save.")
    stream = io.BytesIO(content)
    most = Limits().index
    if read_pickle(stream, name, most=most, budget=budget).value != MAGIC:
        raise RefusedCheckpoint(f"{name} hides a pickle inside of its pickle. It is not opened.")
    open_at = lambda start: span_of_bytes(content[start:])
    value, _ = _stream(stream, len(content), name, Limits(), open_at, budget)
    if not isinstance(value, Storage):
        raise RefusedCheckpoint(f"{name} holds a {type(value).__name__} in the place of a storage. It is not opened.")
    return value


def _first(file: IO[bytes], length: int, name: str, limits: Limits, budget: Budget) -> Any:
    head = file.read(64)
    file.seek(0)
    if length > limits.index and not head.startswith(b"\x80"):
        raise RefusedCheckpoint(f"{name} is a plain pickle of more than {limits.index:,} bytes; use torch.save.")
    return read_pickle(file, name, most=limits.index, budget=budget)


def _stream(
    file: IO[bytes], length: int, name: str, limits: Limits, open_at: Callable[[int], Span], budget: Budget
) -> tuple[Any, dict[str, int]]:
    read = partial(read_pickle, file, name, most=limits.index, budget=budget)
    version, about = read().value, read().value
    if version != 1001 or not isinstance(about, dict):
        raise RefusedCheckpoint(f"{name} is of version {printable(str(version), 20)} of torch's old format, not 1001.")
    if about.get("little_endian", True) is not True:
        raise RefusedCheckpoint(f"{name} was saved on a big-endian machine in the old format. Save it as safetensors.")
    behind = Behind(name, open_at)
    walk = read(behind)
    keys = read().value
    if not isinstance(keys, list) or len(keys) > limits.tensors:
        raise RefusedCheckpoint(f"{name} is damaged: it does not list its storages. Copy it again.")
    behind.locate(file, [_key(each) for each in keys], length)
    return walk.value, walk.foreign


def _key(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


# The tar of torch 0.1


def read_tar(path: Path, name: str, limits: Limits) -> Contents:
    """Read the tar that torch 0.1 wrote: `storages`, `tensors`, and the `pickle` that refers to them by number."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = {each.name.removeprefix("./"): each for each in archive.getmembers()[: limits.members]}
            if not all(each in members and members[each].isreg() for each in _TAR_MEMBERS):
                held = ", ".join(printable(each, 40) for each in list(members)[:4]) or "nothing"
                raise RefusedCheckpoint(
                    f"{name} is a tar archive without a checkpoint of torch 0.1 (it holds {held}). Unpack it first."
                )
            storages, tensors, pickle = (members[each] for each in _TAR_MEMBERS)
            known: dict[Any, Any] = {}
            with path.open("rb") as file:
                read = partial(read_pickle, file, name, most=limits.index, budget=Budget())
                _tar_storages(file, storages, path, name, known, read)
                _tar_tensors(file, tensors, name, known, limits, read)
                file.seek(pickle.offset_data)
                walk = read(persistent=lambda key: _persistent(key, known))
    except (tarfile.TarError, OSError, EOFError, struct.error, ValueError, OverflowError) as error:
        reason = printable(" ".join(str(error).split()))
        raise RefusedCheckpoint(f"{name} is a damaged tar archive ({reason}). Copy it again.") from None
    except (KeyError, TypeError, IndexError, AttributeError):
        raise RefusedCheckpoint(f"{name} is a damaged checkpoint of torch 0.1. Copy it again.") from None
    return Contents(path, "torch tar", path.stat().st_size, walk.value, left=left_words(walk.foreign))


def _persistent(key: Any, known: dict[Any, Any]) -> Any:
    if isinstance(key, tuple):
        return key[0]
    return known[int(key)]


def _tar_storages(
    file: IO[bytes], member: tarfile.TarInfo, path: Path, name: str, known: dict[Any, Any], read: Callable[..., Walk]
) -> None:
    file.seek(member.offset_data)
    end = member.offset_data + member.size
    for _ in range(size(read().value)):
        key, location, kind = read().value
        dtype = STORAGE_NAMES[kind.name] if isinstance(kind, Record) else ""
        numel = int.from_bytes(file.read(8), "little")
        start, length = file.tell(), numel * ITEM_BYTES[dtype]
        if start + length > end:
            raise RefusedCheckpoint(f"{name} is cut short: {length:,} bytes of a tensor are missing. Copy it again.")
        known[int(key)] = Storage(str(key), dtype, numel, printable(_key(location), 20), span_of(path, name, start))
        file.seek(start + length)
    for target, root, offset, numel in read().value:
        known[int(target)] = known[int(root)].part(size(offset), size(numel))


def _tar_tensors(
    file: IO[bytes],
    member: tarfile.TarInfo,
    name: str,
    known: dict[Any, Any],
    limits: Limits,
    read: Callable[..., Walk],
) -> None:
    file.seek(member.offset_data)
    for _ in range(min(size(read().value), limits.tensors)):
        key, storage, _kind = read().value
        (rank,) = struct.unpack("<i4x", file.read(8))
        if not 0 <= rank <= limits.rank:
            raise RefusedCheckpoint(f"{name} holds a tensor of {rank} dimensions; at most {limits.rank} are read.")
        numbers = struct.unpack(f"<{2 * rank + 1}q", file.read(8 * (2 * rank + 1)))
        shape, stride, offset = numbers[:rank], numbers[rank : 2 * rank], numbers[-1]
        found = known[int(storage)]
        known[int(key)] = tensor_of(found, found.dtype, size(offset), tuple(map(size, shape)), tuple(map(size, stride)))
