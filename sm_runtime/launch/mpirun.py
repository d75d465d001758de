"""The command line of Open MPI's ``mpirun``: a table of defaults in which a user's options win.

Order and values are those of the SageMaker training toolkit. What differs, and why: each host
starts its part with an environment of its own, so that nothing of it is exported from the leader;
hosts are reached over a launch agent and not over SSH; no ``gethostname`` is preloaded, for Open
MPI knows its own host by the address that a name stands for; and each rank tags its own output, for
``--tag-output`` breaks lines every 4,096 bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sm_runtime.job.errors import LaunchError
from sm_runtime.job.model import Job
from sm_runtime.job.secrets import secrets_in
from sm_runtime.launch.open_mpi import (
    ENGINES,
    PREFIX,
    Flag,
    HostParameters,
    meant,
    merged,
    parse,
    split,
    strip_prefix,
)
from sm_runtime.launch.torchrun import EFA, EFA_RDMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sm_runtime.launch.distribution import Plan

log = logging.getLogger(__name__)

OPTIONS = "sagemaker_mpi_custom_mpi_options"
_OURS = {
    "hostfile": "the hosts are those of resourceconfig.json; --host may change their slots",
    "default-hostfile": "the hosts are those of resourceconfig.json",
    "app": "the program is the job's own",
    "do-not-launch": "nothing would be trained; `sm-runtime env --launch` shows the command",
    "version": "it would take the place of the training",
    "help": "it would take the place of the training",
    "h": "it would take the place of the training",
    "V": "it would take the place of the training",
}
"""The options that a user cannot have, and why: with them, it would be another job."""
_REACHED = "hosts are reached over the runtime's own launch agent"
_FOUND = "each host finds Open MPI on its own PATH"
_LEFT_OUT = {
    **dict.fromkeys(("launch-agent", "mca plm", "mca orte_launch_agent"), _REACHED),
    **dict.fromkeys(("mca plm_rsh_agent", "mca plm_rsh_args"), _REACHED),
    **dict.fromkeys(("mca plm_rsh_no_tree_spawn", "mca orte_leave_session_attached"), _REACHED),
    "mca plm_rsh_pass_libpath": _FOUND,
    "prefix": _FOUND,
    "enable-orterun-prefix-by-default": _FOUND,
    "enable-mpirun-prefix-by-default": _FOUND,
}
"""The options that would break the launch and change nothing else, and why they are left out."""
_VARIABLES = {"map-by": "rmaps_base_mapping_policy", "bind-to": "hwloc_base_binding_policy"}
"""The MCA parameters that options of their own are short for."""
_EMPTIED = ("mca plm_rsh_args", "mca plm_rsh_pass_libpath")
"""Those that no option of ours overrules where a variable says them."""
_OURS_TOO = ("mca plm_rsh_no_tree_spawn", "mca orte_leave_session_attached")
"""What a user may say as we do."""
_OF_HOST = frozenset({
    "pml", "btl", "btl_tcp_if_include", "btl_vader_single_copy_mechanism", "oob_tcp_if_include",
})  # fmt: skip
"""The parameters of defaults that matter to processes of all hosts, so that each host has a say."""
_KEEP_DOTS = "orte_keep_fqdn_hostnames"
_STRIP = "orte_strip_prefix"
_FILES = {"am": "mca_base_param_file_prefix", "tune": "mca_base_envar_file_prefix"}
"""The parameters that options are short for, by which more files with parameters are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A run of mpirun."""

    flags: tuple[Flag, ...]
    program: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    """What mpirun's own environment must have on top: what must not be seen in ``ps``, and nothing
    where the script's would break the launch."""

    @property
    def argv(self) -> tuple[str, ...]:
        """The argument vector."""
        return ("mpirun", *(token for flag in self.flags for token in flag.tokens), *self.program)


def command(
    job: Job,
    plan: Plan,
    *,
    agent: tuple[str, ...],
    interface: str,
    program: tuple[str, ...],
    environ: Mapping[str, str],
    files: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> Launch:
    """Return how the leader starts ``program`` in every process of the job.

    ``agent`` is called as ``<agent> <host> <words of a command line>`` for each other host,
    ``interface`` is a device or a network like 10.0.0.0/24. A default is left out where
    ``environ``, the script's, has its variable already, or ``files``: the variables that say the
    same as the leader's parameter files.
    ``names`` is what Open MPI calls each host. Raises LaunchError where the agent's words have
    blanks, which Open MPI would split.
    """
    blank = next((word for word in agent if not word or word.split() != [word]), None)
    if blank is not None:
        raise LaunchError(f"the launch agent's word {blank!r} is empty or has blanks")
    instance_type = job.cluster.current_instance_type
    names, given = names or {}, {**(files or {}), **environ}
    users = [_renamed(flag, names) for flag in _kept(_users(job))]
    ours = [*_counted(job, plan, users, names), *_network(interface)]
    ours += [*_agent(plan, agent, names), *_defaults(interface)]
    ours = [flag for flag in ours if not _is_given(flag, given)]
    efa = [flag for flag in _efa(instance_type) if not _is_given(flag, given)]
    shown, secret = _without_secrets(users)
    emptied = dict.fromkeys(_breaking(environ, files or {}), "")
    return Launch(flags=merged(ours, shown, efa), program=program, environ=secret | emptied)


def of_host(
    job: Job,
    plan: Plan,
    *,
    environ: Mapping[str, str],
    files: Mapping[str, str],
    names: Mapping[str, str],
    hostname: str,
) -> HostParameters:
    """Return what a host decides for Open MPI's processes there; ``hostname`` is the machine's.

    ``environ`` and ``files`` are this host's own. What the user's options set counts everywhere.
    """
    users, given = {flag.key for flag in _users(job)}, {**files, **environ}
    values: dict[str, str | None] = {}
    defaults = {}
    device = job.cluster.network_interface
    for flag in (*_network(device), *_defaults(device)):
        kind, _, about = flag.key.partition(" ")
        if kind != "mca" or about not in _OF_HOST or flag.key in users:
            continue
        name = PREFIX + flag.tokens[1]
        if _is_given(flag, given):
            values[name] = environ.get(name)
        else:
            defaults[name] = flag.tokens[2]
    if f"mca {_STRIP}" not in users:
        keeps = _keeps_dots(plan, names) or _is_true(_value_of(job, _KEEP_DOTS, given))
        prefix = strip_prefix(hostname, whole=keeps)
        name = PREFIX + _STRIP
        values[name] = environ.get(name) if name in given else prefix
    return HostParameters(values=values, defaults=defaults)


def file_parameters(job: Job) -> dict[str, str]:
    """Return the variables by which Open MPI reads the parameter files of the user's options."""
    found = {}
    for flag in _users(job):
        if flag.name in _FILES:
            found[PREFIX + _FILES[flag.name]] = flag.tokens[1]
        elif flag.key.startswith("mca mca_"):
            found[PREFIX + flag.tokens[1]] = flag.tokens[2]
    return found


def interface(
    job: Job,
    environ: Mapping[str, str],
    *,
    interfaces: Mapping[str, str],
    addresses: Mapping[str, str],
    own: str | None,
) -> str:
    """Return what names the job's network on all hosts: an interface, or a network's addresses.

    ``interfaces`` and ``addresses`` are those in use, by host, ``own`` is this host's network.
    Raises LaunchError where nothing does and the user has not said what to take.
    """
    name = job.cluster.network_interface
    if all(other == name for other in interfaces.values()):
        return name
    if found := shared_network(addresses.values(), own):
        return found
    given = {flag.key for flag in _users(job)}
    if all(flag.key in given or _is_given(flag, environ) for flag in _network(name)):
        return own or name
    used = ", ".join(f"{addresses.get(host)} ({interfaces[host]}) on {host}" for host in interfaces)
    raise LaunchError(
        f"no network names the interfaces of all hosts, {used}: name them by -mca"
        f" btl_tcp_if_include and -mca oob_tcp_if_include in {OPTIONS}"
    )


def shared_network(addresses: Iterable[str], own: str | None = None) -> str | None:
    """Return the smallest IPv4 network that has all ``addresses``: ``own`` where that has them.

    Open MPI asks for each of a host's addresses whether it is in the network, so that it names
    interfaces whatever they are called. None where it would name loopback, too, or is IPv6.
    """
    import ipaddress

    try:
        found = [ipaddress.IPv4Address(address) for address in addresses]
        network = ipaddress.IPv4Network(own or f"{found[0]}/32")
    except (IndexError, ValueError):
        return None
    while not all(address in network for address in found):
        network = network.supernet()
    return None if network.overlaps(ipaddress.IPv4Network("127.0.0.0/8")) else str(network)


def problems(job: Job, hosts: tuple[str, ...]) -> list[str]:
    """Return a sentence for each of the user's options that cannot be followed."""
    place = f"hyperparameters: {OPTIONS}"
    try:
        flags = _users(job)
    except ValueError as error:
        return [f"{place}: {error}"]
    found = [f"{place}: {' '.join(f.tokens)}: {_OURS[f.key]}" for f in flags if f.key in _OURS]
    named = [part for f in flags if f.key == "host" for part in f.tokens[1].split(",")]
    strange = [part for part in named if _host(part) not in hosts]
    if strange:
        found.append(f"{place}: --host: {', '.join(strange)}: not among {', '.join(hosts)}")
    return found


def _host(part: str) -> str:
    name, colon, slots = part.rpartition(":")
    return name if colon and (slots.isdigit() or slots == "*") else part


def _renamed(flag: Flag, names: Mapping[str, str]) -> Flag:
    """Return a --host with the names that Open MPI has for its hosts; any other flag as it is."""
    if flag.key != "host":
        return flag
    parts = [(_host(part), part) for part in flag.tokens[1].split(",")]
    hosts = ",".join(names.get(host, host) + part.removeprefix(host) for host, part in parts)
    return Flag(tokens=(flag.tokens[0], hosts), origin=flag.origin)


def _counted(job: Job, plan: Plan, users: list[Flag], names: Mapping[str, str]) -> Iterator[Flag]:
    each = plan.processes_per_host
    slots = f":{each}" if each > 1 else ""
    hosts = ",".join(f"{names.get(host, host)}{slots}" for host in plan.hosts)
    given = job.framework_parameters
    key = "sagemaker_mpi_num_of_processes_per_host"
    origin = key if given.get(key) else "the devices of a host"
    yield Flag(tokens=("--host", hosts), origin=f"the job's hosts, {origin}")
    key = "sagemaker_mpi_num_processes"
    count, origin = plan.processes, "hosts x processes per host"
    if given.get(key):
        origin = key
    elif named := [flag.tokens[1] for flag in users if flag.key == "host"]:
        count, origin = _slots(named[-1]), "the slots of --host"
    if count:
        yield Flag(tokens=("-np", str(count)), origin=origin)
    yield Flag(tokens=("--allow-run-as-root",), origin="default")


def _slots(hosts: str) -> int:
    """Return how many processes a --host allows; 0 where Open MPI is to count them."""
    found = 0
    for part in hosts.split(","):
        slots = part.removeprefix(_host(part)).removeprefix(":")
        if slots == "*":
            return 0
        found += int(slots or 1)
    return found


def _agent(plan: Plan, agent: tuple[str, ...], names: Mapping[str, str]) -> Iterator[Flag]:
    """Yield how other hosts are reached, and what keeps Open MPI to that."""
    yield Flag(tokens=("-mca", "plm_rsh_no_tree_spawn", "1"), origin="default")
    origin = "runtime"
    yield Flag(tokens=("-mca", "plm", "rsh"), origin=origin)
    yield Flag(tokens=("-mca", "plm_rsh_agent", " ".join(agent)), origin=origin)
    # Else the agent ends at once, and it is unknown whether the daemon lives.
    yield Flag(tokens=("-mca", "orte_leave_session_attached", "1"), origin=origin)
    # Else a mpirun that is found by its path sends a shell script in place of a command.
    yield Flag(tokens=("--noprefix",), origin=origin)
    if _keeps_dots(plan, names):
        # Else the agent would be given what stands before the first dot.
        yield Flag(tokens=("-mca", _KEEP_DOTS, "1"), origin=origin)


def _keeps_dots(plan: Plan, names: Mapping[str, str]) -> bool:
    """Whether Open MPI has to keep names whole; of addresses it does so anyway."""
    return any("." in host and names.get(host, host) == host for host in plan.hosts)


def _value_of(job: Job, parameter: str, given: Mapping[str, str]) -> str:
    """Return what the user's options, else variables and files, set a parameter to."""
    said = [flag.tokens[2] for flag in _users(job) if flag.key == f"mca {parameter}"]
    return said[-1] if said else given.get(PREFIX + parameter, "")


def _is_true(value: str) -> bool:
    return value.strip().lower() in ("1", "true", "yes", "enabled", "t", "y")


def _network(interface: str) -> Iterator[Flag]:
    for key in ("btl_tcp_if_include", "oob_tcp_if_include"):
        yield Flag(tokens=("-mca", key, interface), origin="network_interface_name")


def _defaults(interface: str) -> Iterator[Flag]:
    for tokens in (
        ("-bind-to", "none"),
        ("-map-by", "slot"),
        ("-mca", "pml", "ob1"),
        ("-mca", "btl", "^openib"),
        ("-mca", "orte_abort_on_non_zero_status", "1"),
        ("-mca", "btl_vader_single_copy_mechanism", "none"),
        ("-x", "NCCL_MIN_NRINGS=4"),
    ):
        yield Flag(tokens=tokens, origin="default")
    if "/" not in interface:
        name = f"NCCL_SOCKET_IFNAME={interface}"
        yield Flag(tokens=("-x", name), origin="network_interface_name")
    yield Flag(tokens=("-x", "NCCL_DEBUG=INFO"), origin="default")


def _efa(instance_type: str) -> Iterator[Flag]:
    origin = f"instance type {instance_type}"
    if instance_type in EFA:
        yield Flag(tokens=("-x", "FI_PROVIDER=efa"), origin=origin)
        yield Flag(tokens=("-x", "NCCL_PROTO=simple"), origin=origin)
    if instance_type in EFA_RDMA:
        yield Flag(tokens=("-x", "FI_EFA_USE_DEVICE_RDMA=1"), origin=origin)


def _users(job: Job) -> list[Flag]:
    """Return the user's options; raises ValueError where they are none."""
    flags = parse(split(str(job.framework_parameters.get(OPTIONS) or "")), OPTIONS)
    # Each host sets these for itself: the leader's would be wrong everywhere else.
    own = tuple(f"x {start}" for start in ("SM_", *ENGINES))
    return [f for f in flags if not (f.key.startswith(own) and "=" not in f.tokens[1])]


def _kept(flags: list[Flag]) -> list[Flag]:
    """Return the flags less those that would break the launch, and say which they are."""
    kept = [flag for flag in flags if flag.key not in _LEFT_OUT]
    for flag in flags:
        as_ours = flag.key in _OURS_TOO and flag.tokens[2] in ("1", "true")
        if flag.key in _LEFT_OUT and not as_ours:
            # The name alone: the value may be a secret.
            name = " ".join(flag.tokens[: 2 if flag.key.startswith("mca ") else 1])
            log.warning("%s: %s is left out: %s", OPTIONS, name, _LEFT_OUT[flag.key])
    return kept


def _breaking(environ: Mapping[str, str], files: Mapping[str, str]) -> Iterator[str]:
    """Yield the variables that mpirun must have empty, and say what is left out by that."""
    for name, value in {**files, **environ}.items():
        parameter = name.removeprefix(PREFIX)
        key = f"mca {meant(parameter)}" if name.startswith(PREFIX) else ""
        if value and key in _EMPTIED:
            what = f"environment: {name}" if name in environ else f"Open MPI's files: {parameter}"
            log.warning("%s is left out: %s", what, _LEFT_OUT[key])
            yield name


def _without_secrets(flags: list[Flag]) -> tuple[list[Flag], dict[str, str]]:
    """Return the flags, and the variables whose values must not be seen in them."""
    shown, hidden = [], {}
    for flag in flags:
        name, equals, value = flag.tokens[1].partition("=") if flag.name == "x" else ("", "", "")
        if equals and any(secrets_in(name, value)):
            hidden[name] = value
            flag = Flag(tokens=(flag.tokens[0], name), origin=flag.origin)
        shown.append(flag)
    return shown, hidden


def _is_given(flag: Flag, environ: Mapping[str, str]) -> bool:
    """Whether variables say already what a default is about."""
    kind, _, name = flag.key.partition(" ")
    if flag.origin == "runtime" or flag.key in _LEFT_OUT:
        return False
    if kind == "x":
        return name in environ
    about = name if kind == "mca" else _VARIABLES.get(kind, "")
    given = (each.removeprefix(PREFIX) for each in environ if each.startswith(PREFIX))
    return about in map(meant, given)
