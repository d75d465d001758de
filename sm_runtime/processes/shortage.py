"""Tells errors that mean a limit of the container from faults of the runtime."""

from __future__ import annotations

import errno


def reason(error: BaseException) -> str | None:
    """Return the sentence for an error that means that this process may not have more, if it does.

    Nothing here needs much memory itself.
    """
    thread = isinstance(error, RuntimeError) and "start new thread" in str(error)
    mapped = isinstance(error, ImportError) and "failed to map segment" in str(error)
    short = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if not (thread or mapped or short or isinstance(error, MemoryError)):
        return None
    limit = _address_space()
    if limit is not None:
        return (
            f"there is not enough memory to run a job: this process may have {limit >> 20} MiB of"
            " address space (RLIMIT_AS, `ulimit -v`); raise that limit or set none"
        )
    if thread:
        return (
            "no thread can be started: this container may have no more processes (`--pids-limit`,"
            " `ulimit -u`) or no more memory"
        )
    return "there is not enough memory to run a job"


def _address_space() -> int | None:
    """Return how many bytes of address space this process may have; None: as many as it likes.

    The module ``resource`` knows, too, but is a shared object, for which there may be no room.
    """
    try:
        with open("/proc/self/limits") as file:
            for line in file:
                if line.startswith("Max address space"):
                    number = line.split()[3]
                    return int(number) if number.isdecimal() else None
    except (OSError, ValueError, IndexError):
        pass
    return None
