"""What Open MPI 4.1 understands: the options of ``mpirun``, MCA parameters, names of hosts.

Options: which words belong together, and which say the same. One that is not known is passed on
with the words behind it.

MCA parameters: ``mpirun`` hands its options on to the processes of all hosts as variables, and
those count more than a file (Open MPI FAQ, "Setting MCA parameters"). So a host takes back what the
leader has sent as a default where its own variables or files set the same, and adds a default that
the leader has left out for the sake of files of its own.

Host names: ``mpirun`` sends the names of all nodes to its daemons as a regular expression
(``orte/mca/regx``). A name with anything but ASCII letters, digits, ``-`` and ``.`` in it ends the
launch, and one with more than 49 characters before its first digit overflows a buffer. The nodes
are those of ``--host`` and the machine that ``mpirun`` runs on, by the name that ``gethostname``
gives.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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


PREFIX = "OMPI_MCA_"
"""What the name of a parameter's variable begins with."""
ENGINES = ("SLURM_",)
"""What variables of engines begin with which Open MPI reads: it would take the engine's number of
processes for its own."""
_MANAGERS = (*ENGINES, "PMI_", "PMI2_", "PMIX_")
"""... and those by which a process knows the manager that has started it: that of the runtime is
no business of ranks, which have Open MPI's."""
_PATIENCE = f"{PREFIX}odls_base_sigkill_timeout"
"""How long Open MPI waits for a process to end after SIGTERM, in seconds."""
_SETTINGS = "PMIX_MCA_"
"""How PMIx is configured: that is the user's."""


def unmanaged(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Open MPI sees nothing of what has started the runtime."""
    found = {
        name: value
        for name, value in environ.items()
        if not name.startswith(_MANAGERS) or name.startswith(_SETTINGS)
    }
    return {_PATIENCE: "0", **found}  # the processes are stubs, which SIGKILL alone ends


def of_engines(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of engines, which a rank's script sees as any other script does."""
    return {name: value for name, value in environ.items() if name.startswith(ENGINES)}


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
    option lacks its value, and where a word belongs to no option.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HostParameters:
    """The parameters that one host decides for Open MPI's processes there."""

    values: Mapping[str, str | None] = field(default_factory=dict)
    """By its variable, what a parameter is here whatever the leader says; None: not set."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """By its variable, what a parameter is here where nothing else sets it."""

    @property
    def variables(self) -> dict[str, str]:
        """The values that are set."""
        return {name: value for name, value in self.values.items() if value is not None}

    def applied(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a process, given the one that Open MPI has made."""
        kept = {name: value for name, value in environ.items() if name not in self.values}
        kept |= self.variables
        about = {meant(name.removeprefix(PREFIX)) for name in kept if name.startswith(PREFIX)}
        added = {
            name: value
            for name, value in self.defaults.items()
            if meant(name.removeprefix(PREFIX)) not in about
        }
        return kept | added

    def without(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        """Return a daemon's arguments, less the parameters that are decided here."""
        kept: list[str] = []
        words = list(argv)
        while words:
            if (
                words[0].lstrip("-") == "mca"
                and len(words) > 2
                and PREFIX + words[1] in self.values
            ):
                del words[:3]
            else:
                kept.append(words.pop(0))
        return tuple(kept)


def file_variables(text: str) -> dict[str, str]:
    """Return the variables that say the same as a parameter file: ``name = value`` in its lines.

    Files of ``-am`` and ``-tune`` may hold options as well: ``-mca name value``.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        name, equals, value = (part.strip() for part in line.partition("="))
        if line.startswith("-"):
            found |= _options(line)
        elif equals and name.replace("_", "").isalnum():
            found[PREFIX + name] = value
    return found


def _options(line: str) -> dict[str, str]:
    try:
        flags = parse(split(line), "")
    except ValueError:
        return {}
    return {PREFIX + f.tokens[1]: f.tokens[2] for f in flags if f.key.startswith("mca ")}


_CHARACTERS = re.compile(r"[A-Za-z0-9.-]+")
_PREFIX = re.compile(r"[^0-9]*")
_PREFIX_CHARACTERS = 49
"""``ORTE_MAX_NODE_PREFIX`` less the terminating zero."""
LOCAL = "localhost"


def is_accepted_name(name: str) -> bool:
    """Whether Open MPI can use a host's name."""
    if not _CHARACTERS.fullmatch(name):
        return False
    prefix = _PREFIX.match(name)
    return prefix is not None and prefix.end() <= _PREFIX_CHARACTERS


def host_names(hosts: Iterable[str], addresses: Mapping[str, str]) -> dict[str, str]:
    """Return what Open MPI calls each host: its name, where all names are accepted.

    Else it is the IPv4 address that the host has in ``addresses``: one that nothing has to resolve,
    and that Open MPI finds among the interfaces of its own machine. Without an address of its own
    for each host the names stay, and ``mpirun`` says what it has against them.
    """
    same = {host: host for host in hosts}
    if all(map(is_accepted_name, same)):
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
    if is_accepted_name(name):
        return None
    prefixes = (name[:end] for end in range(1, len(name)))
    return next(
        (prefix for prefix in prefixes if is_accepted_name(stripped_name(name, prefix))), None
    )


def stripped_name(name: str, prefix: str) -> str:
    """Return what Open MPI makes of ``name``: it starts behind the prefix, at a digit but 0."""
    rest = name[len(prefix) :]
    digit = re.search(r"[1-9]", rest)
    return rest[digit.start() :] if digit else rest


def restored_names(text: str, named: Mapping[str, str]) -> str:
    """Return a message of Open MPI with the hosts' own names; ``named`` is of ``host_names``."""
    given = {other: host for host, other in named.items() if other != host}
    if not given:
        return text
    words = "|".join(map(re.escape, sorted(given, key=len, reverse=True)))
    return re.sub(rf"(?<![\w.-])(?:{words})(?![\w-]|\.\w)", lambda match: given[match[0]], text)


def _is_ipv4(address: str) -> bool:
    parts = address.split(".")
    return len(parts) == 4 and all(part.isdecimal() and int(part) < 256 for part in parts)
