"""What an executor gives up once it serves: the network, new programs, other processes, and changing any file.

A model's files come from strangers, and decoders of tensors and grammars have had their faults. An executor whose model
is loaded and whose address is bound needs files to read and Unix sockets, through which descriptors are handed to it.
All else is refused by a seccomp filter (seccomp(2), in the kernel's documentation seccomp_filter), which the process
can never take off. Calls that are refused fail with EACCES, so that a mistake here is an error, not a crash.

Why no Landlock: until recently it bound the calling thread alone, and gRPC's and torch's threads run by then. A filter
is given to all of them at once (TSYNC). It cannot see paths; so no file at all may be opened for writing.

Not for CUDA, whose driver opens devices for writing, starts helpers and maps memory in ways that differ by version.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import socket
import struct
import termios
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

from quire.config import Sandbox
from quire.errors import StartupError

logger = logging.getLogger(__name__)


class _Call(NamedTuple):
    """A system call's numbers; None where it does not exist."""

    x86_64: int | None
    aarch64: int | None


# What a loaded executor never does. Calls with paths of their own first: what changes files.
_REFUSED: Final = {
    "creat": _Call(85, None),
    "truncate": _Call(76, 45),
    "rename": _Call(82, None),
    "renameat": _Call(264, 38),
    "renameat2": _Call(316, 276),
    "mkdir": _Call(83, None),
    "mkdirat": _Call(258, 34),
    "rmdir": _Call(84, None),
    "link": _Call(86, None),
    "linkat": _Call(265, 37),
    "unlink": _Call(87, None),
    "unlinkat": _Call(263, 35),
    "symlink": _Call(88, None),
    "symlinkat": _Call(266, 36),
    "mknod": _Call(133, None),
    "mknodat": _Call(259, 33),
    "chmod": _Call(90, None),
    "fchmod": _Call(91, 52),
    "fchmodat": _Call(268, 53),
    "fchmodat2": _Call(452, 452),
    "chown": _Call(92, None),
    "fchown": _Call(93, 55),
    "lchown": _Call(94, None),
    "fchownat": _Call(260, 54),
    "setxattr": _Call(188, 5),
    "lsetxattr": _Call(189, 6),
    "fsetxattr": _Call(190, 7),
    "setxattrat": _Call(463, 463),
    "removexattr": _Call(197, 14),
    "lremovexattr": _Call(198, 15),
    "fremovexattr": _Call(199, 16),
    "removexattrat": _Call(466, 466),
    # Its flags lie in memory, where a filter cannot look; the C library does without.
    "openat2": _Call(437, 437),
    "open_by_handle_at": _Call(304, 265),
    # A Unix socket of its own would be a file.
    "bind": _Call(49, 200),
    # Everything that a filter on socket() and openat() would miss.
    "io_uring_setup": _Call(425, 425),
    "io_uring_enter": _Call(426, 426),
    "io_uring_register": _Call(427, 427),
    # Other programs and processes.
    "execve": _Call(59, 221),
    "execveat": _Call(322, 281),
    "ptrace": _Call(101, 117),
    "process_vm_readv": _Call(310, 270),
    "process_vm_writev": _Call(311, 271),
    "pidfd_getfd": _Call(438, 438),
    "pidfd_send_signal": _Call(424, 424),
    "tkill": _Call(200, 130),
    "rt_sigqueueinfo": _Call(129, 138),
    "rt_tgsigqueueinfo": _Call(297, 240),
    # What only an administrator may do, which an executor in a container may be.
    "mount": _Call(165, 40),
    "umount2": _Call(166, 39),
    "move_mount": _Call(429, 429),
    "open_tree": _Call(428, 428),
    "fsopen": _Call(430, 430),
    "mount_setattr": _Call(442, 442),
    "pivot_root": _Call(155, 41),
    "chroot": _Call(161, 51),
    "unshare": _Call(272, 97),
    "setns": _Call(308, 268),
    "bpf": _Call(321, 280),
    "perf_event_open": _Call(298, 241),
    "userfaultfd": _Call(323, 282),
    "keyctl": _Call(250, 219),
    "add_key": _Call(248, 217),
    "request_key": _Call(249, 218),
    "init_module": _Call(175, 105),
    "finit_module": _Call(313, 273),
    "kexec_load": _Call(246, 104),
    "kexec_file_load": _Call(320, 294),
    "reboot": _Call(169, 142),
}
# Refused or not by an argument.
_SOCKET: Final = _Call(41, 198)
_OPEN: Final = _Call(2, None)
_OPENAT: Final = _Call(257, 56)
_KILL: Final = _Call(62, 129)
_TGKILL: Final = _Call(234, 131)
_IOCTL: Final = _Call(16, 29)

# By machine: the index into _Call, AUDIT_ARCH_* (linux/audit.h) and the number of seccomp(2).
_MACHINES: Final = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
# From it on, numbers of x86-64 are those of its 32-bit variant, for which the table is wrong.
_X32_NUMBERS: Final = 0x4000_0000

_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER: Final = 1
# All threads; and no brake on speculation, which older kernels put on with a filter and which costs a fifth.
_FLAGS: Final = 1 << 0 | 1 << 2
_O_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# Classic BPF (linux/bpf_common.h), over struct seccomp_data: number, architecture, instruction pointer, arguments.
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_GREATER_OR_EQUAL, _JUMP_IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW: Final = 0x7FFF_0000
_REFUSE: Final = 0x0005_0000 | 13  # SECCOMP_RET_ERRNO with EACCES

_Instruction: TypeAlias = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def enter_sandbox(mode: Sandbox, *, device: str) -> None:
    """Gives it all up, for every thread of this process and for good.

    Raises StartupError if that is required and cannot be had; `auto` logs it.
    """
    if mode == "off":
        return
    if device != "cpu" and mode == "auto":
        logger.info("no sandbox: the driver of %s needs what it takes away (--sandbox require applies it)", device)
        return
    reason = _confine()
    if reason is None:
        logger.info("sandboxed: no network, no new programs, no file can be changed")
    elif mode == "require":
        raise StartupError(f"--sandbox require: {reason}", field="sandbox")
    else:
        logger.warning("no sandbox: %s", reason)


def _confine() -> str | None:
    """Applies the filter; says why that failed."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return f"there is no filter for {platform.machine()}"
    column, architecture, seccomp = machine
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _program(column, architecture))
    filters = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog; the compiler would put the same padding before the pointer.
    program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(filters))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))) != 0:
        return f"no_new_privs: {os.strerror(ctypes.get_errno())}"
    libc.syscall.restype = ctypes.c_long
    failed = libc.syscall(ctypes.c_long(seccomp), _SET_MODE_FILTER, _FLAGS, ctypes.c_char_p(program))
    if failed > 0:
        return f"thread {failed} has another seccomp filter"
    return f"seccomp: {os.strerror(ctypes.get_errno())}" if failed else None


def _program(column: int, architecture: int) -> Iterator[_Instruction]:
    """The filter. Every test jumps over what follows it if it does not apply, so no distance exceeds 4."""
    yield _LOAD, 0, 0, _ARCHITECTURE
    yield _JUMP_IF_EQUAL, 1, 0, architecture
    yield _RETURN, 0, 0, _REFUSE
    yield _LOAD, 0, 0, _NUMBER
    if column == 0:
        yield _JUMP_IF_GREATER_OR_EQUAL, 0, 1, _X32_NUMBERS
        yield _RETURN, 0, 0, _REFUSE
    for call in _REFUSED.values():
        if (number := call[column]) is not None:
            yield _JUMP_IF_EQUAL, 0, 1, number
            yield _RETURN, 0, 0, _REFUSE
    # Which calls, which argument, a test of it, and whether the call is allowed where that holds.
    for call, argument, test, constant, is_allowed in (
        (_SOCKET, 0, _JUMP_IF_EQUAL, socket.AF_UNIX, True),
        (_OPEN, 1, _JUMP_IF_ANY_BIT, _O_WRITES, False),
        (_OPENAT, 2, _JUMP_IF_ANY_BIT, _O_WRITES, False),
        (_KILL, 0, _JUMP_IF_EQUAL, os.getpid(), True),
        (_TGKILL, 0, _JUMP_IF_EQUAL, os.getpid(), True),
        # It would type into the terminal that the log goes to.
        (_IOCTL, 1, _JUMP_IF_EQUAL, termios.TIOCSTI, False),
    ):
        if (number := call[column]) is not None:
            yield _JUMP_IF_EQUAL, 0, 4, number
            # The lower half of the argument: of these, the kernel reads no more.
            yield _LOAD, 0, 0, _ARGUMENTS + 8 * argument
            yield test, 0, 1, constant
            yield _RETURN, 0, 0, _ALLOW if is_allowed else _REFUSE
            yield _RETURN, 0, 0, _REFUSE if is_allowed else _ALLOW
    yield _RETURN, 0, 0, _ALLOW
