"""Which weights are meant: a stored file, one of the sets in it, and for an adapter the base it belongs to.

A reference is a text, so that payloads, benches and addresses can hold it: "<sha256>", "<sha256>:<set>", or
"<reference of an adapter>+<reference of its base>".
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """sha256: of the file. weights: the set in it, "" for the usual one. base: what an adapter is merged with."""

    sha256: str
    weights: str = ""
    base: Reference | None = None

    def __str__(self) -> str:
        """Write it as a text."""
        own = f"{self.sha256}:{self.weights}" if self.weights else self.sha256
        return f"{own}+{self.base}" if self.base else own


def reference(text: str) -> Reference:
    """Read a text; every text is one, whether such a file exists or not."""
    own, plus, base = text.partition("+")
    sha256, _, weights = own.partition(":")
    return Reference(sha256, weights, reference(base) if plus else None)


def files_of(meant: Reference) -> list[str]:
    """List the hashes of the files that a reference needs."""
    return [meant.sha256, *(files_of(meant.base) if meant.base else [])]
