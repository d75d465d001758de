"""Which host names Open MPI 4 accepts, and what it gets in place of others.

``mpirun`` sends the names of all nodes to its daemons as a regular expression (``orte/mca/regx``).
A name with anything but ASCII letters, digits, ``-`` and ``.`` in it ends the launch, and one with
more than 49 characters before its first digit overflows a buffer. The nodes are those of ``--host``
and the machine that ``mpirun`` runs on, by the name that ``gethostname`` gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_CHARACTERS = re.compile(r"[A-Za-z0-9.-]+")
_PREFIX = re.compile(r"[^0-9]*")
_PREFIX_CHARACTERS = 49
"""``ORTE_MAX_NODE_PREFIX`` less the terminating zero."""
LOCAL = "localhost"


def is_accepted(name: str) -> bool:
    """Whether Open MPI can use a host's name."""
    if not _CHARACTERS.fullmatch(name):
        return False
    prefix = _PREFIX.match(name)
    return prefix is not None and prefix.end() <= _PREFIX_CHARACTERS


def names(hosts: Iterable[str], addresses: Mapping[str, str]) -> dict[str, str]:
    """Return what Open MPI calls each host: its name, where all names are accepted.

    Else it is the IPv4 address that the host has in ``addresses``: one that nothing has to resolve,
    and that Open MPI finds among the interfaces of its own machine. Without an address of its own
    for each host the names stay, and ``mpirun`` says what it has against them.
    """
    same = {host: host for host in hosts}
    if all(map(is_accepted, same)):
        return same
    if len(same) == 1:
        return dict.fromkeys(same, LOCAL)
    found = {host: addresses.get(host, "") for host in same}
    usable = all(map(_is_ipv4, found.values())) and len(set(found.values())) == len(found)
    return found if usable else same


def strip_prefix(hostname: str, *, whole: bool) -> str | None:
    """Return the ``orte_strip_prefix`` with which Open MPI accepts this machine's own name.

    None where none is needed, or none helps. ``whole`` says that Open MPI keeps what follows the
    first dot (``orte_keep_fqdn_hostnames``).
    """
    name = hostname if whole else hostname.partition(".")[0]
    if is_accepted(name):
        return None
    prefixes = (name[:end] for end in range(1, len(name)))
    return next((prefix for prefix in prefixes if is_accepted(stripped(name, prefix))), None)


def stripped(name: str, prefix: str) -> str:
    """Return what Open MPI makes of ``name``: it starts behind the prefix, at a digit but 0."""
    rest = name[len(prefix) :]
    digit = re.search(r"[1-9]", rest)
    return rest[digit.start() :] if digit else rest


def restored(text: str, named: Mapping[str, str]) -> str:
    """Return a message of Open MPI with the hosts' own names; ``named`` is of ``names``."""
    given = {other: host for host, other in named.items() if other != host}
    if not given:
        return text
    words = "|".join(map(re.escape, sorted(given, key=len, reverse=True)))
    return re.sub(rf"(?<![\w.-])(?:{words})(?![\w-]|\.\w)", lambda match: given[match[0]], text)


def _is_ipv4(address: str) -> bool:
    parts = address.split(".")
    return len(parts) == 4 and all(part.isdecimal() and int(part) < 256 for part in parts)
