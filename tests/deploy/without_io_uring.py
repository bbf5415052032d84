"""Runs a command without io_uring, as under the default seccomp profiles of Docker and containerd.

`python without_io_uring.py COMMAND…`. Needs no_new_privs. The profiles refuse more, but nothing else that we call.
"""

import ctypes
import os
import struct
import sys

# struct seccomp_data begins with the number of the call; classic BPF as in linux/filter.h.
LOAD, JUMP_IF_GREATER_OR_EQUAL, RETURN = 0x20, 0x35, 0x06
ALLOW, REFUSE = 0x7FFF_0000, 0x0005_0000 | 1  # SECCOMP_RET_ERRNO with EPERM
# The same on all architectures: setup, enter, register.
FIRST, AFTER_LAST = 425, 428
PROGRAM = (
    (LOAD, 0, 0, 0),
    (JUMP_IF_GREATER_OR_EQUAL, 0, 2, FIRST),
    (JUMP_IF_GREATER_OR_EQUAL, 1, 0, AFTER_LAST),
    (RETURN, 0, 0, REFUSE),
    (RETURN, 0, 0, ALLOW),
)
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2

code = b"".join(struct.pack("HBBI", *instruction) for instruction in PROGRAM)
filters = ctypes.create_string_buffer(code, len(code))
program = struct.pack("HxxxxxxQ", len(PROGRAM), ctypes.addressof(filters))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(program), 0, 0) != 0:
    sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[1], sys.argv[1:])
