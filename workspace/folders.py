"""Turn a folder into one file that is the same whenever the folder is: a zip without times, in order of the names."""

from __future__ import annotations

import zipfile
from pathlib import Path

from probes.errors import ProbeError

EPOCH = (1980, 1, 1, 0, 0, 0)
MOST_FILES = 200_000


def zip_of(folder: Path, target: Path) -> None:
    """Write the files below `folder` (no links, nothing hidden but a .metadata) into the zip `target`, uncompressed.

    Raises ProbeError when the folder is empty or holds more than 200 000 files.
    """
    members = sorted(each for each in folder.rglob("*") if _wanted(each, folder))
    if not members:
        raise ProbeError(f"{folder.name} holds no files; name a folder with files.")
    if len(members) > MOST_FILES:
        raise ProbeError(f"{folder.name} holds {len(members)} files; at most {MOST_FILES} can be taken.")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for member in members:
            about = zipfile.ZipInfo(member.relative_to(folder).as_posix(), EPOCH)
            about.file_size = member.stat().st_size
            with member.open("rb") as source, archive.open(about, "w", force_zip64=True) as file:
                while piece := source.read(1 << 20):
                    file.write(piece)


def _wanted(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") and part != ".metadata" for part in path.relative_to(folder).parts)
    return not hidden and not path.is_symlink() and path.is_file()
