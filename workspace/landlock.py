"""Shut this process into a few folders, for good (Linux 5.13 and later, Landlock).

What is not named cannot be opened, made, renamed or removed; from ABI 4 on no TCP port can be bound or connected to,
from ABI 6 on nobody outside can be signalled. A process that already has files open keeps them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on all architectures
_VERSION = 1  # flag: tell the ABI
_BENEATH = 1  # kind of rule

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_TRUNCATE = 1 << 14
_OF_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE  # what a rule for a file, not a folder, may name
_READ = _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _TRUNCATE
_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_BIND_AND_CONNECT = 3
_SOCKETS_AND_SIGNALS = 3


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def abi() -> int:
    """Return the version of Landlock that this kernel speaks, 0 when none."""
    if sys.platform != "linux":
        return 0
    return max(0, _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION)))


def confine_files(read: Iterable[Path], write: Iterable[Path]) -> bool:
    """Leave this thread only these files and folders; return whether the kernel took it.

    PR_SET_NO_NEW_PRIVS must be set before. Paths that do not exist are passed over.
    """
    version = abi()
    if version == 0:
        return False
    handled = _HANDLED[min(version, 5)]
    network = _BIND_AND_CONNECT if version >= 4 else 0
    scopes = _SOCKETS_AND_SIGNALS if version >= 6 else 0
    about = _Ruleset(handled, network, scopes)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _call(_CREATE, ctypes.byref(about), ctypes.c_size_t(size), ctypes.c_uint32(0))
    if rules < 0:
        return False
    try:
        named = [*((each, _READ) for each in read), *((each, _WRITE) for each in write)]
        taken = all(_allow(rules, path, rights & handled) for path, rights in named if path.exists())
        return taken and _call(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0)) == 0
    finally:
        os.close(rules)


def _allow(rules: int, path: Path, rights: int) -> bool:
    handle = os.open(path, getattr(os, "O_PATH", 0) | os.O_CLOEXEC)
    try:
        about = _Beneath(rights if path.is_dir() else rights & _OF_FILES, handle)
        return (
            _call(_ADD_RULE, ctypes.c_int(rules), ctypes.c_int(_BENEATH), ctypes.byref(about), ctypes.c_uint32(0)) == 0
        )
    finally:
        os.close(handle)


def _call(number: int, *arguments: object) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments))
