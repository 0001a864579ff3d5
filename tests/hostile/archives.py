"""Archives that lie: records out of their folder, twins, bombs, wrong sums, sizes and offsets."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from hostile.assemble import CANARY, WEIGHTS, Case, Entry, Storage, floats, pack, program, tensor, zip_records

GOOD = program({"model": WEIGHTS})
MEGABYTE = 1 << 20
BOMB = 1024  # megabytes that come out of one
SIX = floats(*range(6))


def good() -> list[Entry]:
    return [Entry(name, content) for name, content in zip_records(GOOD).items()]


def changed(suffix: str, **lies: object) -> list[Entry]:
    """Return the good records with lies about one of them."""
    return [replace(each, **lies) if each.name.endswith(suffix) else each for each in good()]  # type: ignore[arg-type]


def without(part: str) -> list[Entry]:
    return [each for each in good() if part not in each.name]


def more(*entries: Entry) -> list[Entry]:
    return [*good(), *entries]


@cache
def zeros(megabytes: int, head: bytes = b"") -> tuple[bytes, int]:
    """Return a raw deflate stream of so many megabytes of zeros behind a head, and their CRC-32."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    megabyte = packer.compress(bytes(MEGABYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    crc = zlib.crc32(head)
    for _ in range(megabytes):
        crc = zlib.crc32(bytes(MEGABYTE), crc)
    return start + megabyte * megabytes + zlib.compressobj(9, zlib.DEFLATED, -15).flush(), crc


def inflated(name: str, head: bytes = b"") -> Entry:
    stream, crc = zeros(BOMB, head)
    return Entry(name, stream, zipfile.ZIP_DEFLATED, crc=crc, size=len(head) + BOMB * MEGABYTE)


def outside(folder: Path) -> str:
    return "../" * 12 + str(folder / CANARY).lstrip("/")


def _zip64(*sizes: int) -> bytes:
    return struct.pack(f"<HH{len(sizes)}Q", 1, 16, *sizes)


def _compressed(method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in zip_records(GOOD).items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return out.getvalue()


def _same_bytes() -> list[Entry]:
    """Show one storage of 4 MB as two thousand: 8 GB out of 4 MB."""
    numel, count = MEGABYTE, 2000
    values = {f"w{n}": tensor(Storage(str(n), numel), (numel,)) for n in range(count)}
    content = bytes(4 * numel)
    entries = [Entry("archive/data/0", content), Entry("archive/data.pkl", program(values))]
    first = Entry("archive/data/0", b"", at=0, crc=zlib.crc32(content), size=4 * numel, packed=4 * numel)
    return [*entries, *(replace(first, name=f"archive/data/{n}") for n in range(1, count))]


def _storage_bomb() -> list[Entry]:
    numel = BOMB * MEGABYTE // 4
    value = {"w": tensor(Storage("0", numel), (numel,))}
    return [Entry("archive/data.pkl", program(value)), inflated("archive/data/0"), Entry("archive/version", b"3\n")]


def _two_checkpoints() -> list[Entry]:
    return more(*(Entry(name, data) for name, data in zip_records(GOOD, stem="other").items()))


def _directory_bomb(count: int = 700_000) -> bytes:
    """Claim so many records in the directory, 47 bytes each."""
    record = pack([Entry("a", b"")])
    start = record.index(b"PK\x01\x02")
    directory = record[start : start + 47] * count
    wide = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(directory), 1)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), start, 0)
    return record[:start] + directory + wide + locator + end


# Each gives the records, or the bytes, of an archive that is refused, unless it is listed in FINE.
ZIPS: dict[str, Callable[[Path], list[Entry] | bytes]] = {
    "control": lambda f: good(),
    "traversal": lambda f: more(Entry(outside(f), b"x")),
    "traversal-inside": lambda f: more(Entry("archive/../../x", b"x")),
    "absolute": lambda f: more(Entry(str(f / CANARY), b"x")),
    "backslashes": lambda f: more(Entry("archive\\..\\..\\x", b"x")),
    "drive": lambda f: more(Entry("C:/x", b"x")),
    "link": lambda f: more(Entry("archive/data/2", b"/etc/hostname", mode=0o120777)),
    "link-for-weights": lambda f: changed("data/0", data=b"/etc/hostname", mode=0o120777),
    "device": lambda f: more(Entry("archive/data/2", b"", mode=0o020666)),
    "duplicate": lambda f: more(Entry("archive/data/0", SIX)),
    "case-twins": lambda f: more(Entry("archive/DATA/0", SIX)),
    "unicode-twins": lambda f: more(
        Entry("archive/e\u0301", b"", flags=0x800), Entry("archive/\u00e9", b"", flags=0x800)
    ),
    "several-folders": lambda f: more(Entry("other/data.pkl", GOOD)),
    "two-checkpoints": lambda f: _two_checkpoints(),
    "local-name": lambda f: changed("data/0", local="archive/data/9"),
    "encrypted": lambda f: [replace(each, flags=1) for each in good()],
    "strong-encryption": lambda f: [replace(each, flags=0x41) for each in good()],
    "deflated": lambda f: _compressed(zipfile.ZIP_DEFLATED),
    "lzma": lambda f: _compressed(zipfile.ZIP_LZMA),
    "unknown-compression": lambda f: changed("data/0", method=77),
    "wrong-crc": lambda f: changed("data/0", crc=0xDEADBEEF),
    "zero-crc": lambda f: changed("data/0", crc=0),
    "wrong-crc-of-index": lambda f: changed("data.pkl", crc=1),
    "size-too-large": lambda f: changed("data/0", size=2**31, packed=2**31),
    "size-too-small": lambda f: changed("data/0", size=4, packed=4),
    "stored-sizes-differ": lambda f: changed("data/0", size=2**30),
    "local-size": lambda f: changed("data/0", local_size=2**30),
    "overlap": lambda f: more(Entry("archive/data/7", b"", at=0, size=24, packed=24)),
    "thousand-times-the-same": lambda f: _same_bytes(),
    "offset-beyond": lambda f: more(Entry("archive/data/7", b"", at=2**31)),
    "zip64-lie": lambda f: changed("data/0", size=2**32 - 1, packed=2**32 - 1, extra=_zip64(2**62, 2**62)),
    "zip64-short": lambda f: changed("data/0", size=2**32 - 1, extra=struct.pack("<HH", 1, 8)),
    "extra-cut": lambda f: changed("data/0", extra=b"\x01\x00\xff\xff"),
    "comment": lambda f: pack(good(), comment=b"<script>alert(1)</script>"),
    "trailing": lambda f: pack(good(), tail=b"x" * 100),
    "leading": lambda f: b"MZ" + bytes(62) + pack(good()),
    "empty": lambda f: [],
    "without-index": lambda f: without("data.pkl"),
    "without-a-tensor": lambda f: without("data/1"),
    "big-endian": lambda f: changed("byteorder", data=b"big"),
    "middle-endian": lambda f: changed("byteorder", data=b"middle"),
    "future-version": lambda f: changed("version", data=b"99\n"),
    "index-bomb": lambda f: [inflated("archive/data.pkl"), *without("data.pkl")],
    "data-bomb": lambda f: _storage_bomb(),
    "claimed-index": lambda f: changed("data.pkl", size=2**32 - 2, packed=2**32 - 2),
    "many-records": lambda f: more(*(Entry(f"archive/data/x{n}", b"") for n in range(60_000))),
    "directory-bomb": lambda f: _directory_bomb(),
    "control-characters": lambda f: more(Entry("archive/\x1b[2J\x07", b"")),
    "nul": lambda f: more(Entry("archive/data/0\0.txt", b"")),
    "long-name": lambda f: more(Entry("archive/" + "a" * 60_000, b"")),
    "folder-bomb": lambda f: [Entry("config.json", b'{"model_type": "bert"}'), inflated("model.safetensors")],
    "npz-bomb": lambda f: [inflated("weight.npy", npy(f"({BOMB * MEGABYTE // 4},)", content=b""))],
    "npz-claims": lambda f: [Entry("weight.npy", npy("(1000000, 1000000)"))],
    "npz-traversal": lambda f: [Entry(outside(f) + ".npy", npy())],
}
FINE = ("control", "big-endian", "many-records", "comment")  # harmless: nobody extracts them, nothing is hidden
WORDS = {
    "encrypted": "encrypted", "strong-encryption": "encrypted", "deflated": "compress", "lzma": "compress",
    "wrong-crc": "data/0", "zero-crc": "data/0", "wrong-crc-of-index": "data.pkl", "size-too-small": "data/0",
    "empty": "empty", "without-index": "data.pkl", "without-a-tensor": "data/1", "future-version": "newer",
}  # fmt: skip


def npy(shape: str = "(2,)", dtype: str = "<f4", content: bytes = floats(1, 2)) -> bytes:
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content


ARRAYS: dict[str, Callable[[], bytes]] = {
    "control.npz": lambda: pack([Entry("fc.weight.npy", npy())]),
    "claims-terabytes.npy": lambda: npy("(1000000, 1000000)"),
    "negative-shape.npz": lambda: pack([Entry("fc.weight.npy", npy("(-2,)"))]),
    "program-in-header.npz": lambda: pack([Entry("fc.weight.npy", npy("(__import__('os').system('true'),)"))]),
    "header-length.npz": lambda: pack([Entry("w.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{}")]),
    "objects-claimed.npz": lambda: pack([Entry("fc.weight.npy", npy(dtype="|O", content=bytes(16)))]),
    "void.npz": lambda: pack([Entry("fc.weight.npy", npy(dtype="|V4"))]),
    "deep-header.npz": lambda: pack([Entry("fc.weight.npy", npy("(" * 5000 + ")" * 5000))]),
}


def _link(kind: bytes, target: str, archive: tarfile.TarFile, folder: Path) -> None:
    info = tarfile.TarInfo("pickle")
    info.type, info.linkname = kind, target
    archive.addfile(info)


def _member(name: Callable[[Path], str], content: bytes, archive: tarfile.TarFile, folder: Path) -> None:
    info = tarfile.TarInfo(name(folder))
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


TARS: dict[str, Callable[[tarfile.TarFile, Path], None]] = {
    "symbolic-link": partial(_link, tarfile.SYMTYPE, "/etc/hostname"),
    "hard-link": partial(_link, tarfile.LNKTYPE, "../../etc/hostname"),
    "fifo": partial(_link, tarfile.FIFOTYPE, ""),
    "traversal": partial(_member, outside, b"x"),
    "absolute": partial(_member, lambda folder: str(folder / CANARY), b"x"),
    "checkpoint-inside": partial(_member, lambda folder: "model.pt", pack(good())),
}


def cases() -> Iterator[Case]:
    """Yield zips, arrays, tars and packed files."""
    for name, records in ZIPS.items():
        suffix = "npz" if name.startswith("npz") else "zip" if name.startswith("folder") else "pt"
        write = partial(_zip, f"zip-{name}.{suffix}", records)
        yield Case(f"zip-{name}", write, "ok" if name in FINE else "refused", (WORDS.get(name, ""),))
    for file, array in ARRAYS.items():
        write = partial(_write, f"numpy-{file}", array)
        yield Case(f"numpy-{file}", write, "ok" if "control" in file else "refused")
    for name, fill in TARS.items():
        yield Case(f"tar-{name}", partial(_tar, name, fill), "ok" if "checkpoint" in name else "refused")
    yield Case("gzip-bomb", _gzip_bomb, "refused", ("gzip",))


def _zip(file: str, records: Callable[[Path], list[Entry] | bytes], folder: Path) -> Path:
    written = records(folder)
    return _write(file, lambda: written if isinstance(written, bytes) else pack(written), folder)


def _write(file: str, content: Callable[[], bytes], folder: Path) -> Path:
    (folder / file).write_bytes(content())
    return folder / file


def _tar(name: str, fill: Callable[[tarfile.TarFile, Path], None], folder: Path) -> Path:
    with tarfile.open(folder / f"tar-{name}.tar", "w") as archive:
        fill(archive, folder)
    return folder / f"tar-{name}.tar"


def _gzip_bomb(folder: Path) -> Path:
    stream, crc = zeros(BOMB)
    head, tail = gzip.compress(b"", mtime=0)[:10], struct.pack("<II", crc, BOMB * MEGABYTE % 2**32)
    return _write("bomb.pt.gz", lambda: head + stream + tail, folder)
