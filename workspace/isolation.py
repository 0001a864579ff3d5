"""Confine this very process, for good, before it opens a file that nobody has vouched for.

Bounds on memory, time and files hold on every Unix. On Linux privileges are given up, the network is taken away, only
named files stay visible (Landlock), and the system calls that reading never needs fail (seccomp). Whatever a machine
lacks is left out and named: what took goes into the provenance of every checkpoint.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workspace import landlock, seccomp

ALL = ("rlimits", "privileges", "network namespace", "landlock", "seccomp")
CODE = (
    "probes",
    "workspace",
    "analyzers",
)  # the folders of this program that may still be read: imports inside functions
OPEN_FILES = 256
GRACE = 5  # seconds of processor time between the signal that asks and the one that kills
_OWN = Path(__file__).resolve().parents[1]
_NEW_USER, _NEW_NET, _NEW_IPC = 0x10000000, 0x40000000, 0x08000000
_NO_NEW_PRIVILEGES = 38  # prctl
_CAPSET = (126, 91)  # x86_64, aarch64
_CAPABILITIES = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_READ_ANY_FILE = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: root in a container lives by them


@dataclass(frozen=True)
class Bounds:
    """Bound a process. memory: bytes it may allocate. mapped: bytes of files it may map besides. seconds: of
    processor time. file: bytes of each file that it writes, 0 for none.
    """

    memory: int
    mapped: int
    seconds: int
    file: int = 0


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("process", ctypes.c_int32))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def confine(bounds: Bounds, read: Sequence[Path], write: Sequence[Path] = ()) -> list[str]:
    """Confine this process to reading `read` (and Python's own files) and writing `write`; return which of ALL took.

    Call it once, from the only thread, with everything imported that is needed.
    """
    took = {"network namespace": _leave_network(), "rlimits": _bound(bounds)}
    took["privileges"] = _drop_privileges()
    took["landlock"] = landlock.confine_files([*read, *python_folders()], write)
    took["seccomp"] = seccomp.deny_calls()
    return [name for name in ALL if took.get(name)]


def python_folders() -> list[Path]:
    """List what an import may need: the interpreter, its packages, this program's code, the system's libraries."""
    places = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values(), *sys.path}
    folders = {Path(each).resolve() for each in places if each}
    strange = {each for each in folders if _OWN.is_relative_to(each)}  # uploads may lie below these
    system = {Path(each) for each in ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/dev/null", "/dev/urandom")}
    return sorted({*(folders - strange), *system, *(_OWN / each for each in CODE)})


def _bound(bounds: Bounds) -> bool:
    limits = {
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_CPU": (bounds.seconds, bounds.seconds + GRACE),
        "RLIMIT_FSIZE": (bounds.file, bounds.file),
        "RLIMIT_NOFILE": (OPEN_FILES, OPEN_FILES),
        "RLIMIT_NPROC": (0, 0),
    }
    if sys.platform != "darwin":  # which has these bounds, and refuses or ignores them
        both = bounds.memory + bounds.mapped
        limits |= {"RLIMIT_DATA": (bounds.memory, bounds.memory), "RLIMIT_AS": (both, both)}
    took = [_set(name, soft, hard) for name, (soft, hard) in limits.items()]
    return all(took)


def _set(name: str, soft: int, hard: int) -> bool:
    """Lower a limit; one that is lower already stays."""
    which = getattr(resource, name, None)
    if which is None:
        return False
    _, ceiling = resource.getrlimit(which)
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    try:
        resource.setrlimit(which, (soft, hard))
    except (ValueError, OSError):
        return False
    return True


def _leave_network() -> bool:
    """Move into an empty network: directly where we may, else as the owner of a new user namespace."""
    if sys.platform != "linux":
        return False
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    empty = _NEW_NET | _NEW_IPC
    # Root keeps its own user namespace: in another one it could not read the files of other users.
    return unshare(empty) == 0 or (os.geteuid() != 0 and unshare(_NEW_USER | empty) == 0)


def _drop_privileges() -> bool:
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if library.prctl(_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), zero, zero, zero) != 0:
        return False
    return os.geteuid() != 0 or _keep_capabilities(library, _READ_ANY_FILE)


def _keep_capabilities(library: ctypes.CDLL, kept: int) -> bool:
    number = {"x86_64": _CAPSET[0], "aarch64": _CAPSET[1]}.get(os.uname().machine)
    if number is None:
        return False
    header, sets = _Header(_CAPABILITIES, 0), (_Sets * 2)()
    get = number - 1
    if library.syscall(ctypes.c_long(get), ctypes.byref(header), sets) != 0:
        return False
    held = sets[0].permitted & kept
    sets[0], sets[1] = _Sets(held, held, 0), _Sets(0, 0, 0)
    return int(library.syscall(ctypes.c_long(number), ctypes.byref(header), sets)) == 0
