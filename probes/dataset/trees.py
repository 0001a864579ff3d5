"""A folder or a zip as one thing: the names of its files, and the content of some of them under a bound."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from probes.dataset.files import MAX_BYTES, MAX_MEMBERS, Source, open_zip, read_bounded, read_member, shown, words
from probes.errors import DataError


@dataclass(frozen=True)
class Tree:
    """Name what a folder or a zip holds: sorted paths below it, nothing hidden, none that leads out of it."""

    source: Source
    names: tuple[str, ...]

    def contents(self, names: Iterable[str], limit: int = MAX_BYTES) -> Iterator[bytes]:
        """Yield the content of files, in this order; DataError where one has more than `limit` bytes."""
        return self._of_folder(names, limit) if self.source.path.is_dir() else self._of_zip(names, limit)

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes:
        """Return the content of one file."""
        return next(self.contents([name], limit))

    def path(self, name: str) -> Path | None:
        """Return where a file lies on disk; None inside of a zip."""
        return self.source.path / name if self.source.path.is_dir() else None

    def _of_folder(self, names: Iterable[str], limit: int) -> Iterator[bytes]:
        for name in names:
            try:
                with (self.source.path / name).open("rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    if size > limit:
                        raise DataError(f"{shown(name)} has {words(size)}, more than {words(limit)}. Take it out.")
                    content = read_bounded(file, shown(name), size, limit)
            except OSError as error:
                raise DataError(f"{shown(name)} cannot be read: {error.strerror or error}. Check the file.") from error
            yield content

    def _of_zip(self, names: Iterable[str], limit: int) -> Iterator[bytes]:
        with open_zip(self.source) as (archive, members):
            known = {each.filename: each for each in members}
            for name in names:
                yield read_member(archive, known[name], self.source.name, limit)


def tree_of(source: Source) -> Tree:
    """List a folder or a zip; DataError for links to folders, too many files, and what `open_zip` refuses."""
    if source.path.is_dir():
        return Tree(source, tuple(sorted(each for each in _below(source) if not is_hidden(each))))
    with open_zip(source) as (_, members):
        return Tree(source, tuple(sorted(each.filename for each in members if not is_hidden(each.filename))))


def hash_of_path(source: Source) -> str:
    """Return the sha256 of a file; of a folder, over the names and hashes of its files."""
    if not source.path.is_dir():
        return _hash_of_file(source.path)
    digest = hashlib.sha256()
    for name in tree_of(source).names:
        digest.update(f"{_hash_of_file(source.path / name)}  {name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def is_hidden(name: str) -> bool:
    """Tell whether a path is what an operating system leaves behind rather than data."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _below(source: Source) -> list[str]:
    found: list[str] = []
    for folder, folders, files in os.walk(source.path):
        for each in folders:
            if (Path(folder) / each).is_symlink():
                raise DataError(
                    f"{source.name}: the folder {shown(each)!r} is a link. Put the folder itself in its place."
                )
        found += [(Path(folder) / each).relative_to(source.path).as_posix() for each in files]
        if len(found) > MAX_MEMBERS:
            raise DataError(f"{source.name} holds over {MAX_MEMBERS} files. Give a smaller part of the data.")
    return found


def _hash_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
