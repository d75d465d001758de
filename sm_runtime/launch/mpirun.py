"""The command line of Open MPI's ``mpirun``: a table of defaults in which a user's options win.

Order and values are those of the SageMaker training toolkit. What differs, and why: each host
starts its part with an environment of its own, so that nothing of it is exported from the leader;
hosts are reached over a launch agent and not over SSH; no ``gethostname`` is preloaded, for Open
MPI knows its own host by the address that a name stands for; and each rank tags its own output, for
``--tag-output`` breaks lines every 4,096 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from sm_runtime.errors import LaunchError
from sm_runtime.frozen import dataclass, field
from sm_runtime.launch.fabric import EFA, EFA_RDMA
from sm_runtime.launch.mpi_options import Flag, merged, parse, split
from sm_runtime.model import Job
from sm_runtime.secrecy import is_secret

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sm_runtime.launch.distribution import Plan

OPTIONS = "sagemaker_mpi_custom_mpi_options"
_OURS = {
    "hostfile": "the hosts are those of resourceconfig.json; --host may change their slots",
    "default-hostfile": "the hosts are those of resourceconfig.json",
    "app": "the program is the job's own",
    "launch-agent": "hosts are reached over the runtime's own launch agent",
    "mca plm": "hosts are reached over the runtime's own launch agent",
    "mca plm_rsh_agent": "hosts are reached over the runtime's own launch agent",
    "mca orte_launch_agent": "hosts are reached over the runtime's own launch agent",
    "do-not-launch": "nothing would be trained; `sm-runtime env --launch` shows the command",
    "version": "it would take the place of the training",
    "help": "it would take the place of the training",
    "h": "it would take the place of the training",
    "V": "it would take the place of the training",
}
"""The options that a user cannot have, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A run of mpirun."""

    flags: tuple[Flag, ...]
    program: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    """What mpirun's own environment must have on top: values that nobody may see in ``ps``."""

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
    folder: str | None = None,
) -> Launch:
    """Return how the leader starts ``program`` in every process of the job.

    ``agent`` is called as ``<agent> <host> <words of a command line>`` for each other host,
    ``interface`` is a device or a network like 10.0.0.0/24, ``folder`` an existing one on every
    host for Open MPI's own files. A default whose variable ``environ``, the script's, has already
    is left out. Raises LaunchError where the agent's words have blanks, which Open MPI would split.
    """
    blank = next((word for word in agent if not word or word.split() != [word]), None)
    if blank is not None:
        raise LaunchError(f"the launch agent's word {blank!r} is empty or has blanks")
    instance_type = job.cluster.current_instance_type
    ours = [*_counted(job, plan), *_network(interface), *_agent(plan, agent, folder)]
    ours += _defaults(interface)
    ours = [flag for flag in ours if not _is_given(flag, environ)]
    efa = [flag for flag in _efa(instance_type) if not _is_given(flag, environ)]
    users, secret = _without_secrets(_users(job))
    return Launch(flags=merged(ours, users, efa), program=program, environ=secret)


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
        found.append(f"{place}: --host: {', '.join(strange)}: none of {', '.join(hosts)}")
    return found


def _host(part: str) -> str:
    name, colon, slots = part.rpartition(":")
    return name if colon and (slots.isdigit() or slots == "*") else part


def _counted(job: Job, plan: Plan) -> Iterator[Flag]:
    each = plan.processes_per_host
    slots = f":{each}" if each > 1 else ""
    hosts = ",".join(f"{host}{slots}" for host in plan.hosts)
    given = job.framework_parameters
    key = "sagemaker_mpi_num_of_processes_per_host"
    origin = key if given.get(key) else "the devices of a host"
    yield Flag(tokens=("--host", hosts), origin=f"the job's hosts, {origin}")
    key = "sagemaker_mpi_num_processes"
    origin = key if given.get(key) else "hosts x processes per host"
    yield Flag(tokens=("-np", str(plan.processes)), origin=origin)
    yield Flag(tokens=("--allow-run-as-root",), origin="default")


def _agent(plan: Plan, agent: tuple[str, ...], folder: str | None) -> Iterator[Flag]:
    """Yield how other hosts are reached, and what keeps Open MPI to that."""
    yield Flag(tokens=("-mca", "plm_rsh_no_tree_spawn", "1"), origin="default")
    origin = "runtime"
    yield Flag(tokens=("-mca", "plm", "rsh"), origin=origin)
    yield Flag(tokens=("-mca", "plm_rsh_agent", " ".join(agent)), origin=origin)
    # Else the agent ends at once, and nobody knows whether the daemon lives.
    yield Flag(tokens=("-mca", "orte_leave_session_attached", "1"), origin=origin)
    # Else a mpirun that is found by its path sends a shell script in place of a command.
    yield Flag(tokens=("--noprefix",), origin=origin)
    if any("." in host for host in plan.hosts):
        # Else the agent would be given what stands before the first dot.
        yield Flag(tokens=("-mca", "orte_keep_fqdn_hostnames", "1"), origin=origin)
    if folder is not None:
        yield Flag(tokens=("-mca", "orte_tmpdir_base", folder), origin=origin)


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
    return [f for f in flags if not (f.key.startswith("x SM_") and "=" not in f.tokens[1])]


def _without_secrets(flags: list[Flag]) -> tuple[list[Flag], dict[str, str]]:
    """Return the flags, and the variables whose values must not be seen in them."""
    shown, hidden = [], {}
    for flag in flags:
        name, equals, value = flag.tokens[1].partition("=") if flag.name == "x" else ("", "", "")
        if equals and is_secret(name, value):
            hidden[name] = value
            flag = Flag(tokens=(flag.tokens[0], name), origin=flag.origin)
        shown.append(flag)
    return shown, hidden


def _is_given(flag: Flag, environ: Mapping[str, str]) -> bool:
    """Whether the job's environment says already what a default is about."""
    kind, _, name = flag.key.partition(" ")
    if flag.origin == "runtime":
        return False
    return (kind == "x" and name in environ) or (kind == "mca" and f"OMPI_MCA_{name}" in environ)
