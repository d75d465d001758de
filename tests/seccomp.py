"""Runs a command under a seccomp filter: ``seccomp.py ERRNO SYSCALL... -- COMMAND...``.

Those system calls fail with ERRNO, as in a container whose profile does not allow them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

NUMBERS = {
    "x86_64": {"fallocate": 285, "prctl": 157},
    "aarch64": {"fallocate": 47, "prctl": 167},
}
LOAD_NUMBER, IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
RET_ERRNO, RET_ALLOW = 0x00050000, 0x7FFF0000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2


def instructions(numbers: list[int], error: int) -> bytes:
    """Return the program: seccomp_data begins with the number of the system call."""
    refused = [
        line
        for number in numbers
        for line in ((IF_EQUAL, 0, 1, number), (RETURN, 0, 0, RET_ERRNO | error))
    ]
    lines = [(LOAD_NUMBER, 0, 0, 0), *refused, (RETURN, 0, 0, RET_ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def refuse(names: list[str], error: int) -> None:
    """Have these system calls fail in this process and all that descend from it."""
    table = NUMBERS[platform.machine()]
    code = instructions([table[name] for name in names], error)
    program = ctypes.create_string_buffer(code, len(code))
    filters = struct.pack("@HP", len(code) // 8, ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, MODE_FILTER, ctypes.create_string_buffer(filters, len(filters)), 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    end = sys.argv.index("--")
    refuse(sys.argv[2:end], int(sys.argv[1]))
    os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])
