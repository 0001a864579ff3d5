"""Write pickles and checkpoints opcode by opcode, so that everything in them can lie, without torch."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
CANARY = "canary"


@dataclass(frozen=True)
class Case:
    """A file that tries something, and what must become of it.

    write: lays it out in an empty folder and returns the path to give to a reader. verdict: "ok", "warning" or
    "refused". words: what the message must contain (any case). canary: whether a careless reader that unpickles it
    would leave the file `CANARY` in that folder.
    """

    name: str
    write: Callable[[Path], Path]
    verdict: str
    words: tuple[str, ...] = ()
    canary: bool = False


@dataclass(frozen=True)
class Name:
    """A global, written as GLOBAL; or, with `stacked`, as STACK_GLOBAL."""

    module: str
    attribute: str
    stacked: bool = False


@dataclass(frozen=True, eq=False)
class Call:
    """A REDUCE of a callable with arguments, and a BUILD with `state` where it is given."""

    function: Any
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    code: bytes


@dataclass(frozen=True)
class Storage:
    """The persistent id of a storage."""

    key: str
    numel: int
    kind: str = "FloatStorage"
    device: str = "cpu"


def tensor(
    storage: Any, shape: Sequence[Any] = (2,), stride: Sequence[Any] | None = None, offset: Any = 0, hooks: Any = None
) -> Call:
    """Return a tensor as torch rebuilds it; row-major strides unless others are given."""
    if stride is None:
        stride = [1]
        for size in reversed(shape[1:]):
            stride.insert(0, stride[0] * size)
        stride = stride[: len(shape)]
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    hooks = OrderedDict() if hooks is None else hooks
    return Call(rebuild, (storage, offset, tuple(shape), tuple(stride), False, hooks))


def opcodes(value: Any) -> bytes:
    """Write a value as the opcodes of protocols 2 and 3 (4 where a `Name` is stacked)."""
    if isinstance(value, Raw):
        return value.code
    if isinstance(value, Name):
        if value.stacked:
            return opcodes(value.module) + opcodes(value.attribute) + b"\x93"
        return f"c{value.module}\n{value.attribute}\n".encode()
    if isinstance(value, Call):
        built = b"" if value.state is None else opcodes(value.state) + b"b"
        return opcodes(value.function) + opcodes(value.arguments) + b"R" + built
    if isinstance(value, Storage):
        return opcodes(("storage", Name("torch", value.kind), value.key, value.device, value.numel)) + b"Q"
    return _plain(value)


def _plain(value: Any) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        digits = b"" if value == 0 else value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return (
            b"\x8a" + bytes([len(digits)]) if len(digits) < 256 else b"\x8b" + struct.pack("<i", len(digits))
        ) + digits
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    start = opcodes(Call(Name("collections", "OrderedDict"))) if isinstance(value, OrderedDict) else b"}"
    return start + b"(" + b"".join(opcodes(key) + opcodes(each) for key, each in value.items()) + b"u"


def program(value: Any, protocol: int = 2) -> bytes:
    """Write a whole pickle."""
    return b"\x80" + bytes([protocol]) + opcodes(value) + b"."


class Exploit:
    """What a pickle says with the library that owns the format: call this function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.pair = (function, arguments)

    def __reduce__(self) -> Any:
        return self.pair


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


WEIGHT, BIAS = Storage("0", 6), Storage("1", 2)
WEIGHTS = OrderedDict({"fc.weight": tensor(WEIGHT, (2, 3)), "fc.bias": tensor(BIAS, (2,))})
DATA = {"0": floats(0.5, -1, 2, 3, -4, 5.5), "1": floats(0.25, -0.125)}


def beside(other: Any) -> dict[str, Any]:
    """Put something into a checkpoint whose weights are good."""
    return {"model": WEIGHTS, "note": other}


def zip_records(pickled: bytes, data: Mapping[str, bytes] = DATA, stem: str = "archive") -> dict[str, bytes]:
    """Name the records that torch.save writes."""
    records = {f"{stem}/data.pkl": pickled, f"{stem}/byteorder": b"little", f"{stem}/version": b"3\n"}
    return records | {f"{stem}/data/{key}": content for key, content in data.items()}


def torch_zip(path: Path, pickled: bytes, data: Mapping[str, bytes] = DATA, **more: bytes) -> Path:
    """Write a checkpoint in the zip layout; `more` are further records of its folder."""
    records = zip_records(pickled, data) | {f"archive/{name}": content for name, content in more.items()}
    path.write_bytes(pack([Entry(name, content) for name, content in records.items()]))
    return path


def torch_legacy(path: Path, pickled: bytes, data: Mapping[str, bytes] = DATA) -> Path:
    """Write a checkpoint in the layout before torch 1.6: five pickles, then the storages."""
    heads = [program(each) for each in (MAGIC, VERSION, {"protocol_version": VERSION, "little_endian": True})]
    storages = b"".join(struct.pack("<q", len(content) // 4) + content for content in data.values())
    pickled = pickled.replace(b"tQ", b"NtQ")  # this layout's persistent ids end with a view, which is None
    path.write_bytes(b"".join([*heads, pickled, program(list(data)), storages]))
    return path


def torch_tar(path: Path, value: Any, data: Mapping[str, bytes] = DATA) -> Path:
    """Write the tar of torch 0.1: storages, then a vector over each of them, then a pickle that counts them from 10."""
    storages, tensors = program(len(data)), program(len(data))
    for number, (key, content) in enumerate(data.items()):
        storages += program((int(key), "cpu", Name("torch", "FloatStorage")))
        storages += struct.pack("<q", len(content) // 4) + content
        tensors += program((10 + number, int(key), Name("torch", "FloatTensor")))
        tensors += struct.pack("<iiqqq", 1, 0, len(content) // 4, 1, 0)
    members = {"sys_info": program({}), "pickle": program(value), "tensors": tensors}
    with tarfile.open(path, "w") as archive:
        for name, content in {**members, "storages": storages + program([])}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


VECTORS = {"fc.weight": Raw(opcodes("10") + b"Q"), "fc.bias": Raw(opcodes("11") + b"Q")}


@dataclass(frozen=True)
class Entry:
    """A record of a zip; whatever is given as None is told truthfully.

    data: as stored. crc, size, packed: what the headers claim. local: the name in the local header. at: the offset
    that the directory claims. mode: Unix mode. local_size: a size for the local header alone. hidden: in the file,
    but not in the directory.
    """

    name: str
    data: bytes
    method: int = zipfile.ZIP_STORED
    flags: int = 0
    crc: int | None = None
    size: int | None = None
    packed: int | None = None
    local: str | None = None
    at: int | None = None
    mode: int = 0o644
    extra: bytes = b""
    version: int = 20
    local_size: int | None = None
    hidden: bool = False


def pack(entries: Sequence[Entry], comment: bytes = b"", tail: bytes = b"", count: int | None = None) -> bytes:
    """Write a zip archive from entries that may lie."""
    out, listed = io.BytesIO(), []
    for entry in entries:
        at = out.tell()
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        size = len(entry.data) if entry.size is None else entry.size
        packed = len(entry.data) if entry.packed is None else entry.packed
        middle = struct.pack("<HHHHH", entry.version, entry.flags, entry.method, 0, 33)
        local, name = (entry.name if entry.local is None else entry.local).encode(), entry.name.encode()
        own = size if entry.local_size is None else entry.local_size
        head = b"PK\x03\x04" + middle + struct.pack("<III", crc, packed, own)
        if entry.at is None:
            out.write(head + struct.pack("<HH", len(local), 0) + local + entry.data)
        if entry.hidden:
            continue
        place = at if entry.at is None else entry.at
        more = struct.pack("<HHHHHII", len(name), len(entry.extra), 0, 0, 0, entry.mode << 16, place)
        sizes = struct.pack("<III", crc, packed, size)
        listed.append(b"PK\x01\x02\x14\x03" + middle + sizes + more + name + entry.extra)
    start, directory = out.tell(), b"".join(listed)
    number = len(listed) if count is None else count
    end = struct.pack("<HHIIH", number, number, len(directory), start, len(comment))
    out.write(directory + b"PK\x05\x06\0\0\0\0" + end)
    return out.getvalue() + comment + tail


def dumped(value: Any, protocol: int) -> bytes:
    """Pickle a value with the library."""
    return pickle.dumps(value, protocol=protocol)
