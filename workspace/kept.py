"""Arrays kept in files of a folder under keys: whole or not there at all, the longest unread thrown away first."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from analyzers._base import Arrays

SHARED_BYTES = 1 << 30  # of what runs of a workspace share


@dataclass(frozen=True)
class Kept:
    """Files <key>.npz in a folder, which is made when the first is saved."""

    folder: Path

    def save(self, key: str, arrays: Arrays) -> None:
        """Keep arrays under a key, atomically: a kill leaves the old ones or the new ones."""
        path, kept = self._path(key), cast("dict[str, Any]", dict(arrays))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def load(self, key: str) -> Arrays | None:
        """Return what was saved under a key; None when there is nothing whole."""
        path = self._path(key)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:  # noqa: TID251
                found = {name: kept[name] for name in kept.files}
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            print(f"{path.name} is damaged and left aside ({error}); this part begins anew", file=sys.stderr)
            return None
        return found

    def trim(self, most: int = SHARED_BYTES) -> None:
        """Remove the files that were read or written longest ago until the rest have so many bytes at most."""
        found = [(each.stat(), each) for each in self.folder.glob("*.npz")] if self.folder.exists() else []
        total = sum(about.st_size for about, _ in found)
        for about, path in sorted(found, key=lambda each: each[0].st_mtime_ns):
            if total <= most:
                return
            path.unlink(missing_ok=True)
            total -= about.st_size

    def _path(self, key: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", key):
            raise ValueError(f"{key!r} is no key of kept arrays: letters, digits, _ - and . only")
        return self.folder / f"{key}.npz"
