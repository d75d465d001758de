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
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
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
