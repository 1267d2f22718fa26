"""Limits that a process sets itself before it reads what a stranger made; they can't be undone."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stream.scan.policy import ScanLimits

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2
# By machine: what the kernel calls it (AUDIT_ARCH), and its number of the call `socket`.
_SOCKET_CALLS: Final = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM


def confine(limits: ScanLimits) -> None:
    """Limit this process: processor time, memory; no core, no growing file, no socket.

    It ends with its parent. Where the kernel knows no filter of calls, sockets are left to the
    list of protocols that `stream.decode.connect` gives FFmpeg.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:  # whoever started this had died before
        os._exit(1)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    memory = used * resource.getpagesize() + limits.memory_mb * 2**20
    cpu_s = max(1, round(limits.cpu_s))
    for name, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(name, (value, value + (name == resource.RLIMIT_CPU)))
    _refuse_sockets(libc)


class _Instruction(ctypes.Structure):
    """One instruction of the kernel's filter language (BPF)."""

    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("value", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("first", ctypes.POINTER(_Instruction)))


def _refuse_sockets(libc: ctypes.CDLL) -> None:
    if platform.machine() not in _SOCKET_CALLS:
        return
    machine, call = _SOCKET_CALLS[platform.machine()]
    load, jump_if_equal, give = 0x20, 0x15, 0x06
    instructions = (
        (load, 0, 0, 4),  # the machine
        (jump_if_equal, 0, 3, machine),
        (load, 0, 0, 0),  # the call
        (jump_if_equal, 0, 1, call),
        (give, 0, 0, _REFUSE),
        (give, 0, 0, _ALLOW),
    )
    array = (_Instruction * len(instructions))(*(_Instruction(*each) for each in instructions))
    program = _Program(len(instructions), array)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
