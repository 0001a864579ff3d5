"""Take files in: resumable chunks to disk, hashed on the way; and paths below folders that the operator allows.

A page issues a token; with it a browser begins an upload, sends chunks in order and gets the sha256 of the stored
file at the end. The same file begun again by the same subject goes on where it stopped; the checksum of what is here
already is given so that the sender can tell whether it is indeed the same file.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import shutil
import time
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probes.errors import ProbeError
from workspace.store import Store
from workspace.tokens import TokenError, Tokens

PIECE_BYTES = 1 << 20
TOKEN_SECONDS = 12 * 3600
PART_SECONDS = 24 * 3600
OPEN_PARTS = 64
SPARE_BYTES = 256 << 20
GB = 10**9


class UploadError(ProbeError):
    """An upload or a path is refused; `status` is the HTTP status, `about` what else the sender needs."""

    def __init__(self, status: int, message: str, **about: Any) -> None:
        super().__init__(message)
        self.status = status
        self.about = about


@dataclass(frozen=True)
class Limits:
    """Bound what may be taken in: bytes of one file, and of all files and copies of the workspace together."""

    file: int = 20 * GB
    total: int = 200 * GB

    @classmethod
    def from_environment(cls) -> Limits:
        """Read THEODOLITE_UPLOAD_LIMIT and THEODOLITE_STORAGE_LIMIT (bytes)."""
        file = int(os.environ.get("THEODOLITE_UPLOAD_LIMIT", cls.file))
        return cls(file, int(os.environ.get("THEODOLITE_STORAGE_LIMIT", cls.total)))


@dataclass
class Part:
    """One unfinished upload: what was declared, and the running checksums of what is here."""

    id: str
    subject: str
    name: str
    size: int
    offset: int = 0
    crc32: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def add(self, path: Path, piece: bytes) -> None:
        """Append a piece to the file and to the checksums."""
        with path.open("r+b") as file:
            file.seek(self.offset)
            file.write(piece)
        self.digest.update(piece)
        self.crc32 = zlib.crc32(piece, self.crc32)
        self.offset += len(piece)

    def reread(self, path: Path) -> None:
        """Take up a part that an earlier process left: hash what lies on disk."""
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                self.digest.update(piece)
                self.crc32 = zlib.crc32(piece, self.crc32)
                self.offset += len(piece)


class Uploads:
    """Receive files into a store; one object per process and workspace."""

    def __init__(self, store: Store, limits: Limits | None = None) -> None:
        self.store = store
        self.folder = store.root / "uploads"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._limits = limits
        self._tokens = Tokens(store.root)
        self._parts: dict[str, Part] = {}
        self._opening = asyncio.Lock()

    @property
    def limits(self) -> Limits:
        """Return the bounds in force."""
        return self._limits or Limits.from_environment()

    def token(self, subject: str) -> str:
        """Issue the token with which this subject (a bench) may upload until it expires."""
        return self._tokens.issue("upload", subject)

    def subject_of(self, token: str) -> str:
        """Return whom the token was issued to; raise UploadError (403) when it is forged or has expired."""
        try:
            return self._tokens.subject_of(token, "upload", TOKEN_SECONDS)
        except TokenError as error:
            raise UploadError(403, str(error)) from None

    async def begin(self, token: str, about: Mapping[str, Any]) -> dict[str, Any]:
        """Declare a file (name, bytes, mark, fresh); return its id, and offset and CRC-32 of what is here already.

        `mark` is whatever the sender knows the file by; `fresh` drops what is here.
        """
        subject = self.subject_of(token)
        name, size = file_name(str(about.get("name", ""))), _size(about.get("bytes"))
        identity = json.dumps([subject, name, size, str(about.get("mark", ""))[:200]])
        id = hmac.new(self._tokens.secret, identity.encode(), hashlib.sha256).hexdigest()[:32]
        async with self._opening:
            part = self._parts.get(id)
            if part is None:
                self._check_room(name, size, but=id)
                part = self._parts[id] = await asyncio.to_thread(self._open, Part(id, subject, name, size))
        if part.lock.locked():
            raise UploadError(423, f"{name} is being uploaded already.")
        if about.get("fresh") and part.offset:
            self._forget(id)
            return await self.begin(token, {**about, "fresh": False})
        return {"id": id, "offset": part.offset, "crc32": part.crc32, "bytes": size}

    async def receive(self, token: str, id: str, offset: int, body: AsyncIterator[bytes]) -> dict[str, Any]:
        """Append a chunk; return the new offset, and with the last one the sha256 of the stored file.

        Raises UploadError: 404 unknown, 403 another's, 409 with the offset to go on from, 413 too long, 423 busy.
        """
        part = self._part(token, id)
        if part.lock.locked():
            raise UploadError(423, f"{part.name} is being uploaded already.", offset=part.offset)
        async with part.lock:
            if offset != part.offset:
                raise UploadError(409, f"{part.name} goes on at byte {part.offset}, not {offset}.", offset=part.offset)
            await self._write(part, body)
            if part.offset < part.size:
                return {"id": id, "offset": part.offset}
            return await asyncio.to_thread(self._finish, part)

    def cancel(self, token: str, id: str) -> None:
        """Drop an unfinished upload and its bytes."""
        self._part(token, id)
        self._forget(id)

    def sweep(self, older_than: float = PART_SECONDS) -> int:
        """Delete parts that nothing was added to for so many seconds; return how many."""
        dead = [path for path in self.folder.iterdir() if time.time() - _touched(path) > older_than]
        for path in dead:
            part = self._parts.get(path.stem)
            if part is None or not part.lock.locked():
                self._forget(path.stem)
                path.unlink(missing_ok=True)
        return sum(path.suffix == ".part" for path in dead)

    def _part(self, token: str, id: str) -> Part:
        subject = self.subject_of(token)
        part = self._parts.get(id)
        if part is None:
            raise UploadError(404, "This upload is unknown or has expired: begin it again.")
        if not hmac.compare_digest(part.subject, subject):
            raise UploadError(403, "This upload belongs to another page.")
        return part

    def _check_room(self, name: str, size: int, but: str) -> None:
        if size > self.limits.file:
            raise UploadError(413, f"{name} has {words(size)}; one file may have {words(self.limits.file)} here.")
        open_parts = [each for each in self._declared() if each["id"] != but]
        if len(open_parts) >= OPEN_PARTS:
            raise UploadError(413, f"{len(open_parts)} uploads are unfinished: finish or cancel some of them first.")
        kept = sum(each.bytes for each in self.store.files()) + self.store.admitted_bytes()
        used = kept + sum(each["bytes"] for each in open_parts)
        if used + size > self.limits.total:
            raise UploadError(
                413, f"{name} has {words(size)}, but only {words(max(0, self.limits.total - used))} are left."
            )
        if size + SPARE_BYTES > shutil.disk_usage(self.folder).free:
            raise UploadError(413, f"{name} has {words(size)}; the disk of this server is too full for it.")

    def _declared(self) -> list[dict[str, Any]]:
        found = []
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError, ValueError):  # finished just now; or torn by a power cut
                found.append(json.loads(path.read_text()))
        return found

    def _open(self, part: Part) -> Part:
        path = self._path(part.id)
        declared = {"id": part.id, "subject": part.subject, "name": part.name, "bytes": part.size}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(declared))
        temporary.replace(path.with_suffix(".json"))
        path.touch()
        part.reread(path)
        return part

    async def _write(self, part: Part, body: AsyncIterator[bytes]) -> None:
        path, buffer = self._path(part.id), bytearray()
        try:
            async for received in body:
                if part.offset + len(buffer) + len(received) > part.size:
                    buffer.clear()
                    raise UploadError(413, f"{part.name} is longer than the {part.size} bytes that were declared.")
                buffer += received
                if len(buffer) >= PIECE_BYTES:
                    await asyncio.to_thread(part.add, path, bytes(buffer))
                    buffer.clear()
        finally:  # what came before the connection broke is kept
            if buffer:
                part.add(path, bytes(buffer))

    def _finish(self, part: Part) -> dict[str, Any]:
        try:
            expected = part.digest.hexdigest()
            stored = self.store.add_file(self._path(part.id), part.name, move=True, sha256=expected)
        finally:
            self._forget(part.id)
        about = {"sha256": stored.sha256, "name": stored.name, "done": True}
        return {"id": part.id, "offset": part.size, **about}

    def _forget(self, id: str) -> None:
        self._parts.pop(id, None)
        for suffix in (".part", ".json"):
            self._path(id).with_suffix(suffix).unlink(missing_ok=True)

    def _path(self, id: str) -> Path:
        return self.folder / f"{id}.part"


def allowed_roots() -> tuple[Path, ...]:
    """Return the folders named by THEODOLITE_ROOTS."""
    given = os.environ.get("THEODOLITE_ROOTS", "").split(os.pathsep)
    return tuple(Path(each).resolve() for each in given if each)


def allowed_path(text: str, roots: Sequence[Path] | None = None) -> Path:
    """Return the real path of a file or folder below an allowed folder; raise UploadError otherwise.

    `..` and symbolic links are followed first: what counts is where the path ends. Whether something exists outside
    the allowed folders is not told.
    """
    roots = allowed_roots() if roots is None else tuple(each.resolve() for each in roots)
    if not roots:
        raise UploadError(403, "No folder of this machine is open: the operator sets THEODOLITE_ROOTS.")
    if "\0" in text or not text.strip():
        raise UploadError(404, "Give the path of a file below an allowed folder.")
    try:
        path = Path(os.path.realpath(Path(roots[0], Path(text.strip()).expanduser())))
        inside = any(path.is_relative_to(root) for root in roots)
        exists = inside and (path.is_file() or path.is_dir())
    except (OSError, RuntimeError, ValueError):
        inside = exists = False
    if not inside:
        raise UploadError(403, f"{text} is not below a folder that the operator allows (THEODOLITE_ROOTS).")
    if not exists:
        raise UploadError(404, f"{text} does not exist.")
    return path


def file_name(text: str) -> str:
    """Return the last part of a name that a browser gave, without control characters, 200 characters at most."""
    last = text.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(each for each in last if each.isprintable()).strip(" .")[-200:] or "file"


def words(size: int) -> str:
    """Write a number of bytes for people: 2.0 GB, 340 kB."""
    for unit, step in (("GB", GB), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} bytes"


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UploadError(400, "The file is empty, or its size was not given.")
    return value


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
