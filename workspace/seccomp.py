"""Take away from this process, for good, the system calls that reading a file never needs (Linux, seccomp-BPF).

Denied calls fail with EPERM, as if the user might not make them, so that code which meets one can say so and end in
good order. Numbers: the kernel's tables for x86_64 and, for aarch64, the generic one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

# name: (x86_64, aarch64); None where an architecture has no such call
DENIED: Mapping[str, tuple[int | None, int | None]] = MappingProxyType({
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "recvfrom": (45, 207), "recvmsg": (47, 212), "recvmmsg": (299, 243),
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "setsid": (112, 157), "setpgid": (109, 154), "unshare": (272, 97), "setns": (308, 268),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "process_madvise": (440, 440), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "tkill": (200, 130),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "mknod": (133, None), "mknodat": (259, 33),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "acct": (163, 89), "swapon": (167, 224), "swapoff": (168, 225),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "personality": (135, 92), "vhangup": (153, 58),
    "lookup_dcookie": (212, 18), "sethostname": (170, 161), "setdomainname": (171, 162),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "mbind": (237, 235),
})  # fmt: skip
_OWN_ONLY = {"kill": (62, 129), "tgkill": (234, 131)}  # their first argument must be this very process: abort()
_NONE_OR_OWN = {"prlimit64": (302, 261)}  # 0 means this process
_CLONE, _CLONE3 = (56, 220), 435
_SECCOMP = (317, 277)
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # the bit of x86_64's second table of calls

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_DENY, _UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_CLONE_THREAD = 0x00010000
_MODE_FILTER, _ALL_THREADS = 1, 1


class _Step(NamedTuple):
    code: int
    value: int
    if_true: int = 0
    if_false: int = 0


class _Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16), ("if_true", ctypes.c_uint8), ("if_false", ctypes.c_uint8), ("value", ctypes.c_uint32)
    )  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.POINTER(_Filter)))


def deny_calls() -> bool:
    """Install the filter in all threads of this process, for good; return whether the kernel took it.

    PR_SET_NO_NEW_PRIVS must be set before.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _AUDIT:
        return False
    steps = _program(machine, os.getpid())
    filters = (_Filter * len(steps))(*(_Filter(each.code, each.if_true, each.if_false, each.value) for each in steps))
    program = _Program(len(steps), filters)
    number = _SECCOMP[_column(machine)]
    call = ctypes.CDLL(None, use_errno=True).syscall
    return int(call(ctypes.c_long(number), _MODE_FILTER, _ALL_THREADS, ctypes.byref(program))) == 0


def _column(machine: str) -> int:
    return 0 if machine == "x86_64" else 1


def _program(machine: str, own: int) -> list[_Step]:
    """Return the filter: another architecture's calls kill, the denied fail, all others pass."""
    column = _column(machine)
    steps = [_Step(_LOAD, _ARCHITECTURE), _Step(_EQUAL, _AUDIT[machine], 1, 0), _Step(_RETURN, _KILL)]
    steps.append(_Step(_LOAD, _NUMBER))
    if machine == "x86_64":
        steps += [_Step(_AT_LEAST, _X32, 0, 1), _Step(_RETURN, _DENY)]
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            steps += [_Step(_EQUAL, number, 0, 1), _Step(_RETURN, _DENY)]
    # No clone3: its flags lie in memory, where a filter cannot see them; the C library falls back to clone.
    steps += [_Step(_EQUAL, _CLONE3, 0, 1), _Step(_RETURN, _UNKNOWN)]
    threads = _Step(_ANY_BIT, _CLONE_THREAD, 0, 1)
    steps += _judged(_CLONE[column], [threads])
    for both in _OWN_ONLY.values():
        steps += _judged(both[column], [_Step(_EQUAL, own, 0, 1)])
    for both in _NONE_OR_OWN.values():
        steps += _judged(both[column], [_Step(_EQUAL, own, 1, 0), _Step(_EQUAL, 0, 0, 1)])
    return [*steps, _Step(_RETURN, _ALLOW)]


def _judged(number: int, tests: list[_Step]) -> list[_Step]:
    """Pass a call when its first argument passes the tests, whose last jumps over the permission when it fails."""
    body = [_Step(_LOAD, _FIRST_ARGUMENT), *tests, _Step(_RETURN, _ALLOW), _Step(_RETURN, _DENY)]
    return [_Step(_EQUAL, number, 0, len(body)), *body]
