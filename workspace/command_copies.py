"""The checkpoints of one `run`: opened in throw-away processes, copied into a folder that goes when the run ends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from probes.admitted import read_admitted
from probes.checkpoint import Checkpoint
from probes.errors import RefusedCheckpoint
from probes.formats.contents import printable
from workspace.admission import admit_file
from workspace.opened import on_base


class Copies:
    """Admit files and folders, each once; a context, after which the copies are gone (they lie below TMPDIR)."""

    def __init__(self, tick: Callable[[float, str], None]) -> None:
        self._tick = tick
        self._home = tempfile.TemporaryDirectory(prefix="theodolite-", ignore_cleanup_errors=True)
        self._folders: dict[Path, Path] = {}

    def folder(self, path: Path) -> Path:
        """Return the folder of a file's copy, made now if it is asked for first; raise RefusedCheckpoint."""
        if not path.exists():
            raise RefusedCheckpoint(f"{printable(path.name or str(path))} does not exist. Check the path.")
        real = path.resolve()
        if real not in self._folders:
            folder = Path(self._home.name) / str(len(self._folders)) / (path.name or "folder")
            admit_file(path, path.name, folder, tick=self._tick)
            self._folders[real] = folder
        return self._folders[real]

    def read(self, path: Path, weights: str = "", base: Path | None = None) -> Checkpoint:
        """Return a checkpoint, or one of its sets of weights; an adapter merged with its base."""
        own = read_admitted(self.folder(path), weights, name=path.name)
        return on_base(self.read(base), own) if base is not None else own

    def __enter__(self) -> Copies:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._home.cleanup()
