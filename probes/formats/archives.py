"""Zips and tars of folders: what they hold is checked by name and size before a byte is written.

Weights that lie uncompressed in the archive are read where they lie; only compressed ones are unpacked, into a scratch
folder, member by member and under a budget. Links, devices, names that lead out of the folder, twins that differ in
case or in how an accent is written, and encrypted members are refused; an archive in an archive is not opened.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Contents, Limits, printable
from probes.formats.folder_files import Files, home_of, is_marker, is_wanted, listed
from probes.formats.members import budget_of, kind_of, members_of, reading, refusing
from probes.formats.safe import read_safetensors
from probes.formats.tars import Entry
from probes.formats.torch_zip import read_torch_zip
from probes.formats.zips import Member, check_sum, open_window

_FOREIGN = ("data.pkl", "constants.pkl", "archive_format", "model.weights.h5", "archive_version")
_unpacked: dict[tuple[str, int, int], Path] = {}


def is_folder_archive(path: Path, limits: Limits | None = None) -> bool:
    """Say whether a zip or tar(.gz) holds a folder with weights or config.json; raise RefusedCheckpoint for a bomb."""
    if not kind_of(path):
        return False
    limits = limits or Limits.from_environment()
    found = False
    with refusing(path.name):
        for entry in members_of(path, path.name, limits):
            last = PurePosixPath(entry.name).name
            if last in _FOREIGN:
                return False
            found = found or (entry.kind == "file" and is_marker(last) and not _is_junk(entry.name))
            if found and entry.packed and kind_of(path) == "tar":
                break  # the rest of a compressed tar is long to read
    return found


def files_of_archive(
    path: Path, name: str, limits: Limits, opener: Callable[[Path, str], Contents], scratch: Path | None = None
) -> Files:
    """List the files that lie beside one another in the folder of an archive; raise RefusedCheckpoint.

    opener: opens a file that had to be unpacked, under a name.
    """
    inside, others = _inside(path, name, limits)
    kind = kind_of(path)

    def open_one(file: str) -> Contents:
        shown = f"{name}/{printable(file)}"
        with refusing(name):
            found = _in_place(path, inside[file], shown, limits)
        return found or opener(unpacked(path, name, limits, scratch, file) / file, shown)

    def read(file: str) -> bytes:
        if inside[file].packed and kind == "tar":  # to look for one file in it is to unpack all that stand before
            return (unpacked(path, name, limits, scratch) / file).read_bytes()
        with refusing(name), reading(path) as pieces:
            return b"".join(pieces(inside[file]))

    left = (f"{listed(others)} lie in other folders of the archive and stayed packed.",) if others else ()
    sizes = {file: entry.bytes for file, entry in sorted(inside.items())}
    return Files(name, sizes, read, open_one, left=left, kind=kind)


def unpacked(path: Path, name: str, limits: Limits, scratch: Path | None = None, also: str = "") -> Path:
    """Return the folder that an archive was unpacked to: once in a process for the same file.

    also: a file that is wanted beside those that always are.
    """
    about = path.stat()
    more = "" if is_wanted(also) else also
    key = (f"{path.resolve()}\n{scratch}\n{more}", about.st_size, about.st_mtime_ns)
    if key not in _unpacked or not _unpacked[key].is_dir():
        target = Path(tempfile.mkdtemp(prefix="theodolite-", dir=scratch))
        try:
            unpack(path, name, limits, target, more)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        atexit.register(shutil.rmtree, target, ignore_errors=True)
        _unpacked[key] = target
    return _unpacked[key]


def unpack(path: Path, name: str, limits: Limits, target: Path, also: str = "") -> Path:
    """Write the members that are needed into `target`, without the folders above them; return it.

    Raises RefusedCheckpoint for a hostile archive, or one that holds far more than it is; then nothing is left there.
    """
    inside, _ = _inside(path, name, limits)
    wanted = {file: entry for file, entry in inside.items() if is_wanted(file) or file == also}
    total, budget = sum(entry.bytes for entry in wanted.values()), budget_of(path, limits)
    if total > budget:
        raise RefusedCheckpoint(f"{name} unpacks to {total:,} bytes, far more than it holds. It is not unpacked.")
    if total > shutil.disk_usage(target).free:
        raise RefusedCheckpoint(f"{name} unpacks to {total:,} bytes; the disk has no room for it. Free some.")
    try:
        with refusing(name), reading(path) as pieces:
            for file, entry in sorted(wanted.items(), key=lambda pair: pair[1].start):
                with (target / file).open("xb") as sink:
                    sink.writelines(pieces(entry))
    except RefusedCheckpoint:
        for file in wanted:
            (target / file).unlink(missing_ok=True)
        raise
    return target


def _inside(path: Path, name: str, limits: Limits) -> tuple[dict[str, Entry], list[str]]:
    """Check the whole list of an archive; return the files of its one folder with weights, and the names elsewhere."""
    with refusing(name):
        entries = [entry for entry in members_of(path, name, limits) if not _is_junk(entry.name)]
    files = {PurePosixPath(entry.name): entry for entry in entries if entry.kind == "file"}
    _check_names(entries, files, name)
    home = home_of(files, name)
    if home is None:
        raise RefusedCheckpoint(f"{name} has neither weights nor config.json. Choose the archive of a model's folder.")
    others = [printable(str(each)) for each in files if each.parent != home]
    return {each.name: entry for each, entry in files.items() if each.parent == home}, others


def _check_names(entries: list[Entry], files: Mapping[PurePosixPath, Entry], name: str) -> None:
    for entry in entries:
        parts = PurePosixPath(entry.name).parts
        shown = printable(entry.name, 60)
        if entry.kind in ("link", "device"):
            raise RefusedCheckpoint(f"{name} has links or devices ({shown}). Pack the plain files again.")
        drive = entry.name[1:2] == ":"
        if entry.name.startswith("/") or ".." in parts or drive or "\\" in entry.name or not entry.name.isprintable():
            raise RefusedCheckpoint(f"{name} has a record that would lie outside of its folder ({shown}).")
    plain = [entry for entry in entries if entry.kind == "file"]
    twins: dict[str, PurePosixPath] = {}
    for path in files:
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())
        if key in twins or len(plain) != len(files):
            raise RefusedCheckpoint(f"{name} has the same record twice ({printable(str(path), 60)}). Pack it again.")
        twins[key] = path


def _is_junk(name: str) -> bool:
    """Say whether this is what macOS puts beside the files in a zip."""
    return name.startswith("__MACOSX/") or name.split("/")[-1].startswith("._") or name.endswith(".DS_Store")


def _in_place(path: Path, entry: Entry, shown: str, limits: Limits) -> Contents | None:
    """Read uncompressed weights where they lie in the archive; None where they must be unpacked."""
    if entry.packed:
        return None
    with open_window(path, entry.start, entry.bytes) as file:
        head = file.read(16)
    reader = read_torch_zip if head.startswith(b"PK\x03\x04") else read_safetensors if head[8:9] == b"{" else None
    if reader is None:
        return None
    found = reader(path, shown, limits, start=entry.start, length=entry.bytes)
    if entry.crc is None:
        return found
    member = Member(entry.name, entry.start, entry.bytes, entry.crc)
    return replace(found, verify=lambda: check_sum(path, member, shown))
