"""A tick whose whole is a part of another's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from analyzers._base import Arrays, Result, Tick


@dataclass(frozen=True)
class Part:
    """Report a part of a run, from `start` to `stop` of the whole.

    words: said before what is being done. key: what is kept through it has this before its key, where it is not "".
    """

    tick: Tick
    start: float
    stop: float
    words: str = ""
    key: str = ""

    def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
        """Report a share of the part."""
        share = min(max(share, 0.0), 1.0)
        said = f"{self.words}: {doing}" if self.words else doing
        self.tick(self.start + (self.stop - self.start) * share, said, seconds_left)

    def within(self, start: float, stop: float) -> Part:
        """Return the tick of a part of this part."""
        width = self.stop - self.start
        return replace(self, start=self.start + start * width, stop=self.start + stop * width)

    def save(self, key: str, arrays: Arrays) -> None:
        """Keep arrays."""
        self.tick.save(self._own(key), arrays)

    def load(self, key: str) -> Arrays | None:
        """Return what was kept."""
        return self.tick.load(self._own(key))

    def share(self, key: str, arrays: Arrays) -> None:
        """Keep arrays for other runs."""
        self.tick.share(key, arrays)

    def shared(self, key: str) -> Arrays | None:
        """Return what a run shared."""
        return self.tick.shared(key)

    def show(self, result: Result) -> None:
        """Let people look at a result."""
        self.tick.show(result)

    def _own(self, key: str) -> str:
        return f"part-{hashlib.sha256(f'{self.key} {key}'.encode()).hexdigest()[:40]}" if self.key else key
