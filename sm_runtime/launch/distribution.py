"""Decides which way of distributed training a job runs, what each of its hosts does for it, and
what a host starts for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from sm_runtime.job.dataclass import dataclass, field
from sm_runtime.job.errors import ConfigError
from sm_runtime.job.model import Entry, Hardware, Job

Ports: TypeAlias = Mapping[str, int | Mapping[str, int]]
"""By what they are for, the ports that the hosts have agreed on: one, or one for each host."""

MOST_PROCESSES = 1024
"""The most processes that a host may be asked to run, five times the CPUs of the largest training
instance: a launcher that is asked for 100,000 is at work for minutes before it fails."""
PLAIN = "plain"
PARAMETER_SERVER = "parameter_server"
MULTI_WORKER = "multi_worker"
MPI = "mpi"
TORCHRUN = "torchrun"
TEMPLATE = "template"

SCRIPT = "script"
SERVER = "server"
RENDEZVOUS = "rendezvous"
"""What ports are for: a script's own server, a parameter server, and where processes meet."""

_REFUSED = {
    "sagemaker_distributed_dataparallel_enabled": (
        "asks for SageMaker's data parallel library, which is proprietary: use"
        " sagemaker_mpi_enabled with Horovod, or sagemaker_torch_distributed_enabled"
    ),
    "sagemaker_pytorch_xla_multi_worker_enabled": (
        "asks for PyTorch/XLA workers, which this runtime does not start: use"
        " sagemaker_torch_distributed_enabled"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A way of distributed training, as one row of ``KINDS``."""

    keys: tuple[str, ...]
    """The hyperparameters that ask for it, any of them."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """Those of SageMaker's toolkits, by what they are for; hosts agree on others where needed."""
    many_per_host: bool = False
    """Whether a host runs a process for each of its devices."""
    launches_ranks: bool = False
    """Whether a launcher brings the ranks together, each a child of its host's runtime."""
    waits_for_leader: bool = False
    """Whether a host stays until the leader has ended, though its own script has."""
    needs_others: bool = False
    """Whether a single host runs a plain process instead."""


KINDS = {
    PARAMETER_SERVER: Kind(
        keys=("sagemaker_parameter_server_enabled",),
        ports={SCRIPT: 2222, SERVER: 2223},
        waits_for_leader=True,
        needs_others=True,  # as in SageMaker's TensorFlow toolkit
    ),
    MULTI_WORKER: Kind(
        keys=("sagemaker_multi_worker_mirrored_strategy_enabled",), ports={SCRIPT: 8890}
    ),
    MPI: Kind(
        keys=("sagemaker_mpi_enabled",),
        many_per_host=True,
        launches_ranks=True,
        waits_for_leader=True,
    ),
    TORCHRUN: Kind(
        # A script for DDP reads RANK, WORLD_SIZE and MASTER_ADDR: that is what torchrun gives.
        keys=("sagemaker_torch_distributed_enabled", "sagemaker_pytorch_ddp_enabled"),
        ports={RENDEZVOUS: 7777},
        many_per_host=True,
        launches_ranks=True,
    ),
    TEMPLATE: Kind(keys=(), ports={RENDEZVOUS: 7777}, many_per_host=True),
    PLAIN: Kind(keys=()),
}
"""All that differs between the ways, but for their command lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A process that a host runs for a way of training: the script, or a parameter server."""

    name: str
    """``script`` or ``server``: also the key of its port."""
    task: str = ""
    """Its task type in TF_CONFIG; empty where there is none."""
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a job is run, as seen from one of its hosts."""

    kind: str
    """``plain``, ``parameter_server``, ``multi_worker``, ``mpi``, ``torchrun``, ``template``."""
    host: str
    """The host that this plan is for."""
    hosts: tuple[str, ...]
    """Those that take part, the leader first; the host alone where it takes no part."""
    origin: str = ""
    """The key that asked for it."""
    processes_per_host: int = 1
    processes: int = 1
    """How many processes of the script all hosts run together."""
    layout: str = "master"
    """Of parameter servers: ``master`` (tf.estimator) or ``chief`` (tf.distribute)."""
    evaluator: bool = False
    """Whether the last host evaluates and does not train."""
    roles: tuple[Role, ...] = (Role(name=SCRIPT),)
    """What this host starts, in this order; none where the leader starts it from afar."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """The ports that all hosts want, by what they are for."""

    @property
    def leader(self) -> str:
        """The host that leads."""
        return self.hosts[0]

    @property
    def is_leader(self) -> bool:
        """Whether this host leads."""
        return self.host == self.leader

    @property
    def rank(self) -> int:
        """The position of this host among those that take part."""
        return self.hosts.index(self.host)

    @property
    def others(self) -> tuple[str, ...]:
        """The hosts that this host runs the job with."""
        return tuple(host for host in self.hosts if host != self.host)

    @property
    def waits_for_leader(self) -> bool:
        """Whether a host stays until the leader has ended, though its own script has."""
        return KINDS[self.kind].waits_for_leader

    @property
    def launches_ranks(self) -> bool:
        """Whether a launcher brings the ranks together."""
        return KINDS[self.kind].launches_ranks

    @property
    def stops_with_leader(self) -> bool:
        """Whether this host's script is over when the leader's is: a worker that only serves.

        The evaluator is none: it has the last checkpoint to look at.
        """
        return self.layout == "chief" and any(role.task == "worker" for role in self.roles)


def problems(job: Job) -> list[str]:
    """Return a sentence for each thing that the job asks for and cannot have.

    A framework hook or an entry point of the request decides by itself, and a host whose group
    takes no part runs a plain process.
    """
    if job.decides_itself or not _takes_part(job):
        return []
    found = [f"hyperparameters: {key}: {why}" for key, why in _REFUSED.items() if _is_on(job, key)]
    asked = _asked(job)
    if asked and job.hyperparameters.get("mp_parameters") not in (None, "", "{}", {}):
        found.append(
            "hyperparameters: mp_parameters: asks for SageMaker's model parallel library, which is"
            " proprietary"
        )
    if len({kind for _, kind in asked}) > 1:
        keys = " and ".join(key for key, _ in asked)
        found.append(f"hyperparameters: {keys}: contradict each other, only one can be")
    return found + _problems_of(job, {kind for _, kind in asked})


def plan(job: Job, devices: Hardware, host: str | None = None) -> Plan:
    """Return how the job is run on ``host``, by default the current one.

    ``devices`` decide how many processes a host runs where the job does not say it. Raises
    ConfigError with the job's problems.
    """
    found = problems(job)
    if found:
        raise ConfigError(found)
    host = host or job.cluster.current_host
    hosts = _hosts(job)
    asked = [] if job.decides_itself or host not in hosts else _asked(job)
    if not asked:
        return Plan(kind=PLAIN, host=host, hosts=(host,))
    origin, kind = asked[0]
    options, each = job.options, 1
    if KINDS[kind].many_per_host:
        given = job.framework_parameters.get("sagemaker_mpi_num_of_processes_per_host")
        each = given or devices.gpus or devices.neurons or 1
    total = job.framework_parameters.get("sagemaker_mpi_num_processes") if kind == MPI else None
    evaluator = kind == PARAMETER_SERVER and options.parameter_server_evaluator
    layout = options.parameter_server_layout if kind == PARAMETER_SERVER else "master"
    return Plan(
        kind=kind,
        host=host,
        hosts=hosts,
        origin=origin,
        processes_per_host=each,
        processes=total or each * len(hosts),
        layout=layout,
        evaluator=evaluator,
        roles=_roles(kind, hosts, host, layout, evaluator),
        ports=KINDS[kind].ports,
    )


def _roles(
    kind: str, hosts: tuple[str, ...], host: str, layout: str, evaluator: bool
) -> tuple[Role, ...]:
    rank = hosts.index(host)
    if kind == MULTI_WORKER:
        return (Role(name=SCRIPT, task="worker", index=rank),)
    if kind == MPI:
        return (Role(name=SCRIPT),) if rank == 0 else ()
    if kind != PARAMETER_SERVER:
        return (Role(name=SCRIPT),)
    if rank == 0:
        script = Role(name=SCRIPT, task=layout)
    elif evaluator and host == hosts[-1]:
        script = Role(name=SCRIPT, task="evaluator")
    else:
        script = Role(name=SCRIPT, task="worker", index=rank - 1)
    return Role(name=SERVER, task="ps", index=rank), script


def _asked(job: Job) -> list[tuple[str, str]]:
    """Return the keys that ask for a way of training, each with the way."""
    alone = len(_hosts(job)) < 2
    found = [
        (key, name)
        for name, kind in KINDS.items()
        for key in kind.keys
        if _is_on(job, key) and not (alone and kind.needs_others)
    ]
    if job.options.launcher:
        found.append(("sagemaker_runtime_launcher", TEMPLATE))
    return found


def _is_on(job: Job, key: str) -> bool:
    return job.framework_parameters.get(key) is True


def _hosts(job: Job) -> tuple[str, ...]:
    """Return the hosts that take part, the leader first."""
    cluster = job.cluster
    if job.options.launcher and not cluster.distribution_groups:
        # A template is no hyperparameter that the toolkit knows: the rule is that of the others.
        return cluster.current_group_hosts or cluster.hosts
    return cluster.distribution_hosts


def _takes_part(job: Job) -> bool:
    return job.cluster.current_host in _hosts(job)


def _problems_of(job: Job, kinds: set[str]) -> list[str]:
    """Return what is wrong with the settings of the ways that are asked for."""
    found = []
    options = job.options
    if options.parameter_server_evaluator and options.parameter_server_layout != "chief":
        found.append(
            "options: parameter_server_evaluator: needs parameter_server_layout chief, as"
            " TensorFlow has no evaluator beside a master"
        )
    if MPI in kinds:
        from sm_runtime.launch import mpirun

        found += _too_many(job)
        found += mpirun.problems(job, _hosts(job))
    if TEMPLATE in kinds:
        from sm_runtime.launch import commands

        found += commands.template_problems(options.launcher)
    return found


def _too_many(job: Job) -> list[str]:
    """Return the sentence for more processes than the hosts may be asked to run."""
    key = "sagemaker_mpi_num_processes"
    asked, hosts = job.framework_parameters.get(key) or 0, len(_hosts(job))
    if asked <= MOST_PROCESSES * hosts:
        return []
    return [
        f"hyperparameters: {key}: must be a whole number of at most {MOST_PROCESSES * hosts} on"
        f" {hosts} host{'s' * (hosts > 1)}, not {asked}"
    ]


def script_argv(
    job: Job,
    plan: Plan,
    entry: Entry,
    devices: Hardware,
    python: str,
    *,
    ports: Ports | None = None,
) -> tuple[str, ...]:
    """Return the argument vector of the script's process, as this host's supervisor starts it.

    ``ports`` are agreed on by the hosts. Raises ConfigError where a template does not fit the
    program.
    """
    if plan.kind == TEMPLATE:
        from sm_runtime.launch import commands

        port = rendezvous_port(plan, ports)
        return commands.template_command(
            job.options.launcher, plan, entry, devices, python, port=port
        )
    return entry.argv


def role_variables(
    job: Job,
    plan: Plan,
    role: Role,
    environ: Mapping[str, str],
    *,
    ports: Ports | None = None,
    interface: str | None = None,
) -> dict[str, str]:
    """Return the variables that a process has for its role, on top of ``environ``.

    ``interface`` is the device in use, by default the configured one; what ``environ`` says about
    it is left alone.
    """
    if plan.kind == PLAIN:
        return {}
    if role.task:
        from sm_runtime.launch import commands

        found = {commands.TF_CONFIG: commands.tf_config(plan, role, ports)}
        # A parameter server that sees the GPUs takes their memory.
        return found | ({"CUDA_VISIBLE_DEVICES": "-1"} if role.name == SERVER else {})
    device = interface or job.cluster.network_interface
    if plan.kind == TORCHRUN:
        from sm_runtime.launch import commands

        return commands.torchrun_variables(device, job.cluster.current_instance_type, environ)
    found = {"NCCL_SOCKET_IFNAME": device, "HOROVOD_GLOO_IFACE": device}
    return {name: value for name, value in found.items() if name not in environ}


def rendezvous_port(plan: Plan, ports: Ports | None = None) -> int:
    """Return the port at which the processes of all hosts meet: the leader's."""
    port = {**plan.ports, **(ports or {})}[RENDEZVOUS]
    return port if isinstance(port, int) else port[plan.leader]
