"""Looks at processes through /proc, and makes us the parent of orphans."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Have orphaned descendants become our children, as if we were PID 1 (prctl(2)).

    So nothing that the script leaves behind can get away, also where we are not PID 1. False where
    it cannot be done.
    """
    if os.getpid() == 1:
        return True
    prctl = _prctl()
    return prctl is not None and prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def ending_with_us() -> Callable[[], None] | None:
    """Return what a child of ours does before it starts a program, so that it ends when we do.

    SIGKILL to us is SIGKILL to the child then (prctl(2)), as the end of PID 1 is for all processes
    of a container. None where we are PID 1, or it cannot be done.
    """
    prctl = _prctl() if os.getpid() != 1 else None
    if prctl is None:
        return None
    ours = os.getpid()

    def end_with_us() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != ours:  # killed before the call
            os._exit(1)

    return end_with_us


def _prctl() -> Callable[..., int] | None:
    """Return the C library's prctl(2); None where there is none."""
    try:
        import ctypes

        found: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    except (ImportError, OSError, AttributeError):
        return None
    return found


def can_be_seen() -> bool:
    """Whether the processes of this machine, or container, can be looked at."""
    return os.path.exists(f"/proc/{os.getpid()}/stat")


def descendants(
    root: int, besides: frozenset[int] = frozenset(), sessions: frozenset[int] = frozenset()
) -> list[int]:
    """Return the living processes that descend from ``root``, parents before children.

    Those in ``besides`` are left out, and what descends from them. All that is in one of
    ``sessions`` counts as a child of ``root``.
    """
    found = grandchildless(besides) if root == os.getpid() and not sessions else None
    return _below([root], besides, sessions) if found is None else found


def grandchildless(besides: Container[int] = ()) -> list[int] | None:
    """Return our living children but for ``besides``, where none of them has a child; else None.

    The usual case, which is known at once: a machine may have thousands of processes to look at.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        found = [pid for pid in _children(os.getpid()) if pid not in besides]
        # One that has just ended may have left us its children.
        if any(_children(pid) or not _is_living(pid) for pid in found):
            return None
    except ChildProcessError:
        return []
    except OSError:
        return None
    return found


def of_session(leader: int) -> list[int]:
    """Return the living processes of the session that ``leader`` began, and their descendants.

    Those that descend from ``leader`` in sessions of their own count as long as it lives.
    """
    members = [pid for pid, _, _, session in _living() if session == leader]
    return list(dict.fromkeys([*members, *_below([leader, *members])]))


def of_group(leader: int, pids: Iterable[int]) -> list[int]:
    """Return those processes that are in the process group that ``leader`` began."""
    return [pid for pid in pids if _group(pid) == leader]


def has_group(leader: int) -> bool:
    """Return whether the process group has members; the kernel sees those that are just forked."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def pipe_readers(pids: Iterable[int], number: int) -> list[int]:
    """Return those processes that ``number`` would end and that read another's output from a pipe.

    ``tee`` in ``train.py | tee log`` is one: it ends by itself when its input ends.
    """
    written: dict[str, set[int]] = {}
    for pid in pids:
        for descriptor in (1, 2):
            written.setdefault(_descriptor(pid, descriptor), set()).add(pid)
    return [
        pid
        for pid in pids
        if (source := _descriptor(pid, 0)).startswith("pipe:")
        and written.get(source, set()) - {pid}
        and not catches(pid, number)
    ]


def _descriptor(pid: int, number: int) -> str:
    """Return what a descriptor refers to, such as ``pipe:[4711]``; empty if that is unknown."""
    try:
        return os.readlink(f"/proc/{pid}/fd/{number}")
    except OSError:
        return ""


def _living() -> Iterator[tuple[int, int, int, int]]:
    """Yield the pid, parent, process group and session of each living process (proc(5), stat)."""
    try:
        entries = os.listdir("/proc")
    except OSError:
        return
    for entry in entries:
        if not entry.isdigit():
            continue
        with suppress(OSError):  # it has ended since
            state, *numbers = _stat(entry)[:4]
            if state not in _ENDED:
                parent, group, session = map(int, numbers)
                yield int(entry), parent, group, session


_ENDED = (b"Z", b"X")


def _is_living(pid: int) -> bool:
    return _stat(pid)[0] not in _ENDED


def _stat(pid: int | str) -> list[bytes]:
    """Return the fields of a process from its state on; raises OSError where it is gone."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name may hold blanks and parentheses: the fields begin after the last one.
        return file.read().rpartition(b")")[2].split()


def _children(pid: int) -> list[int]:
    """Return the children of a process; raises OSError where the kernel does not tell.

    Those that are reaped meanwhile may hide others, but never all others (proc(5), children).
    """
    found = b""
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
            found += file.read()
    return [*map(int, found.split())]


def _group(pid: int) -> int:
    """Return a process's group; -1 where it is gone."""
    try:
        return os.getpgid(pid)
    except OSError:
        return -1


def _below(
    roots: list[int],
    besides: frozenset[int] = frozenset(),
    sessions: frozenset[int] = frozenset(),
) -> list[int]:
    """Return the living descendants of some processes, parents before children."""
    children: dict[int, list[int]] = {}
    for pid, parent, _, session in _living():
        children.setdefault(roots[0] if session in sessions else parent, []).append(pid)
    found: list[int] = []
    front = roots
    while front:
        nearest = (child for parent in front for child in children.get(parent, ()))
        front = [child for child in nearest if child not in besides]
        found += front
    return found


def command_line(pid: int) -> str:
    """Return the first two words of a process's command line; empty if it is gone.

    Not more: what is cut off a secret argument would not be masked.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).split(b"\0")
    except OSError:
        return ""
    shown = [word if len(word) <= 80 else b"..." for word in words[:2]]
    return b" ".join(shown).decode("utf-8", "backslashreplace").strip()


def catches(pid: int, signal: int) -> bool:
    """Return whether a process has a handler of its own for ``signal`` (proc(5), SigCgt)."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (signal - 1) & 1)
    except OSError:
        pass
    return False


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to each of these processes that still lives and is ours."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
