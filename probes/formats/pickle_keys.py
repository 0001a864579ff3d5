"""Keys of dicts and items of sets, as a pickle gives them: none may make a dict slow, or take for ever to hash.

Python hashes numbers and tuples of numbers without a secret, so a file can hold thousands whose hashes are the same;
and it hashes a nested tuple by walking all of it, at any depth.
"""

from __future__ import annotations

import secrets
from typing import Any

from probes.formats.pickle_values import NumpyType

_LARGEST = 2**61 - 1  # beyond it different numbers share a hash
_LONGEST = 2**16  # characters of a text, items of a tuple
_SALT = secrets.token_hex(8)


class Salted(tuple[Any, ...]):
    """A tuple whose hash nobody outside of this process can foretell."""

    __slots__ = ()

    def __hash__(self) -> int:
        """Hash the items behind a secret."""
        return hash((_SALT, *self))


def fault_of(value: Any, depth: int = 0) -> str:
    """Say why a value is no key, as the end of "has ... as the key of a dict"; "" where it is one."""
    if isinstance(value, list | dict | set | bytearray | NumpyType | complex):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return "a number beyond 2^61"
    if isinstance(value, str | bytes | tuple | frozenset) and len(value) > _LONGEST:
        return f"a {type(value).__name__} of length {len(value):,}"
    if isinstance(value, tuple | frozenset):
        if depth > 1:
            return "a tuple of tuples of tuples"
        return next((fault for each in value if (fault := fault_of(each, depth + 1))), "")
    return ""


def key_of(value: Any) -> Any:
    """Return what stands for a key that has no fault."""
    return Salted(map(key_of, value)) if isinstance(value, tuple) else value
