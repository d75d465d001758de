"""Reads options of Open MPI's ``mpirun``: which words belong together, and which say the same.

The options are those of Open MPI 4.1; one that is not known is passed on with the words behind it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

_ONE = frozenset({
    "N", "am", "app", "bind-to", "c", "cartofile", "cf", "cpu-list", "cpu-set", "cpus-per-proc",
    "cpus-per-rank", "debugger", "default-hostfile", "H", "hnp", "host", "hostfile",
    "launch-agent", "machinefile", "map-by", "max-restarts", "max-vm-size", "n", "np", "npernode",
    "npersocket", "ompi-server", "output-filename", "path", "personality", "ppr", "prefix",
    "preload-files", "rank-by", "rankfile", "report-events", "report-pid", "report-uri", "rf",
    "stdin", "timeout", "tune", "wd", "wdir", "x", "xml-file", "xterm",
})  # fmt: skip
_TWO = frozenset({"mca", "gmca", "omca", "pmca"})
_SAME = {
    "n": "np",
    "c": "np",
    "H": "host",
    "machinefile": "hostfile",
    "v": "verbose",
    "q": "quiet",
    "wd": "wdir",
    **dict.fromkeys(("gmca", "omca", "pmca"), "mca"),
    "bind-to-core": "bind-to",
    "bind-to-socket": "bind-to",
    "nooversubscribe": "oversubscribe",
    # Each of these says where processes go, and mpirun takes no second word on that.
    **dict.fromkeys(("bycore", "byslot", "bynode", "ppr", "N", "npernode"), "map-by"),
    **dict.fromkeys(("pernode", "npersocket", "rankfile", "rf"), "map-by"),
}
_SAME_MCA = {
    "pls": "plm",
    "pls_rsh_args": "plm_rsh_args",
    "pls_rsh_agent": "plm_rsh_agent",
    "orte_rsh_agent": "plm_rsh_agent",
    "oob_tcp_include": "oob_tcp_if_include",
    # Open MPI wants one of the two at most.
    "oob_tcp_exclude": "oob_tcp_if_include",
    "oob_tcp_if_exclude": "oob_tcp_if_include",
    "btl_tcp_if_exclude": "btl_tcp_if_include",
}
_NCCL_DEBUG = "--NCCL_DEBUG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """An option of mpirun with its values."""

    tokens: tuple[str, ...]
    origin: str
    """Who asked for it: the default, a hyperparameter, an instance type, ..."""

    @property
    def name(self) -> str:
        """The option without its dashes."""
        return self.tokens[0].lstrip("-")

    @property
    def key(self) -> str:
        """What the option is about: of two with the same key, the latter counts."""
        name = _SAME.get(self.name, self.name)
        if name == "mca" and len(self.tokens) > 1:
            return f"mca {meant(self.tokens[1])}"
        if name == "x" and len(self.tokens) > 1:
            return f"x {self.tokens[1].partition('=')[0]}"
        return name


def meant(parameter: str) -> str:
    """Return the name of what an MCA parameter is about, which may have other names, too."""
    return _SAME_MCA.get(parameter, parameter)


def split(text: str) -> list[str]:
    """Return the words of ``text``: parted by blanks, but for those in quotes.

    Raises ValueError where a quote is not closed. Without quotes it is what the SageMaker training
    toolkit does, backslashes and all.
    """
    return shlex.split(text) if "'" in text or '"' in text else text.split()


def parse(words: Iterable[str], origin: str) -> list[Flag]:
    """Return the options that ``words`` are; ``--NCCL_DEBUG X`` becomes ``-x NCCL_DEBUG=X``.

    The prefixes of that name count too (SageMaker training toolkit). Raises ValueError where an
    option lacks its value, and where a word is none's.
    """
    left = list(words)
    found = []
    while left:
        word = left.pop(0)
        if not word.startswith("-") or not word.strip("-"):
            raise ValueError(f"{word!r} belongs to no option")
        if _is_nccl_debug(word):
            value = word.partition("=")[2] if "=" in word else _value(word, left, 1)[0]
            found.append(Flag(tokens=("-x", f"NCCL_DEBUG={value}"), origin=origin))
            continue
        name = word.lstrip("-")
        if name in _TWO or name in _ONE:
            values = _value(word, left, 2 if name in _TWO else 1)
        else:
            values = _following(left)
        found.append(Flag(tokens=(word, *values), origin=origin))
    return found


def merged(ours: Iterable[Flag], users: Iterable[Flag], more: Iterable[Flag]) -> tuple[Flag, ...]:
    """Return all options in this order, each key once.

    A user's option takes the place of ours with the same key, and of the user's the last counts.
    """
    chosen = {flag.key: flag for flag in users}
    before = [chosen.pop(flag.key, flag) for flag in ours]
    after = [chosen.pop(flag.key, flag) for flag in more]
    return (*before, *chosen.values(), *after)


def _is_nccl_debug(word: str) -> bool:
    name = word.partition("=")[0]
    return len(name) > 2 and _NCCL_DEBUG.startswith(name)


def _value(word: str, left: list[str], count: int) -> tuple[str, ...]:
    if len(left) < count:
        raise ValueError(f"{word} lacks its value")
    values = tuple(left[:count])
    del left[:count]
    return values


def _following(left: list[str]) -> tuple[str, ...]:
    """Take what may be the values of an option that has none here: mpirun will judge them."""
    count = next((i for i, word in enumerate(left) if word.startswith("-")), len(left))
    return _value("", left, count)
