"""Which hosts a job has where an engine runs it that says so itself, in variables of its own.

``ENGINES`` has a row for each engine. What is configured explicitly wins, and
``SM_RUNTIME_ENGINE=none`` has no engine looked for. An engine whose variables are incomplete or
contradict each other is a problem: a host that believed to be alone would train a model of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from sm_runtime.contract.reader import Field, Findings, one_of
from sm_runtime.job.dataclass import dataclass

VARIABLE = "SM_RUNTIME_ENGINE"
NONE = "none"
MOST_HOSTS = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where an engine has placed this process among the hosts of its job."""

    hosts: tuple[str, ...]
    """By names that resolve on each of them, in an order that is the same on all."""
    current: str
    """This host, one of them."""
    said: str
    """The variables that say so, with their values, for the log."""
    job: str = ""
    """What the engine calls the job: two jobs may have the same hosts at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine that starts the runtime once on each host of a job."""

    name: str
    marks: tuple[str, ...]
    """The variables any of which tells that it runs the job."""
    read: Callable[[Variables], Placement | None]
    """Returns the placement; None where something is wrong, which is noted then."""
    stop_seconds: float | None = None
    """From its request to stop to its SIGKILL where nothing says so; None: as anywhere else."""
    signals_all: bool = False
    """Whether that request reaches all processes of the job, and not the runtime alone."""


class Variables:
    """The variables of an engine, which notes what is wrong with them."""

    def __init__(
        self, engine: str, environ: Mapping[str, str], findings: Findings, whole_name: str = ""
    ) -> None:
        self._engine, self._environ, self._findings = engine, environ, findings
        self.whole_name = whole_name
        """The name of this machine, with its domain where that is known."""

    def get(self, name: str) -> str:
        """Return a variable, empty where it is absent."""
        return self._environ.get(name, "").strip()

    def number(self, name: str) -> int | None:
        """Return a variable that is a whole number; None where it is absent or, a problem, none."""
        text = self.get(name)
        if not text:
            return None
        if not re.fullmatch("[0-9]{1,9}", text):
            self.wrong(name, f"must be a whole number, not {text!r}")
            return None
        return int(text)

    def count(self, name: str) -> int | None:
        """Return a variable that is a number of hosts; None as ``number``."""
        found = self.number(name)
        if found is not None and not 1 <= found <= MOST_HOSTS:
            self.wrong(name, f"must be from 1 to {MOST_HOSTS}, not {found}")
            return None
        return found

    def note(self, text: str) -> None:
        """Note what is worth a line in the log."""
        self._findings.notes.append(text)

    def wrong(self, name: str, what: str) -> None:
        """Note what is wrong with a variable, and how to do without."""
        at = Field("environment", name, self.get(name), self._findings)
        at.wrong(
            f"{what} ({self._engine} says which hosts there are; SM_RUNTIME_HOSTS and"
            f" SM_RUNTIME_CURRENT_HOST may, or {VARIABLE}={NONE} for this host alone)"
        )

    @property
    def faults(self) -> int:
        """How many problems have been noted."""
        return len(self._findings.problems)


def _slurm(at: Variables) -> Placement | None:
    """Return the nodes of a step of ``srun``, or the one node of a job that is none."""
    from sm_runtime.contract.slurm import nodes

    faults = at.faults
    name = "SLURM_STEP_NODELIST" if at.get("SLURM_STEP_NODELIST") else "SLURM_JOB_NODELIST"
    try:
        hosts = nodes(at.get(name))
    except ValueError as error:
        at.wrong(name, f"must be a list of nodes like n[1-3,7],m02: {error}")
        return None
    if len(set(hosts)) != len(hosts) or not hosts:
        at.wrong(name, "names a node more than once" if hosts else "names no node")
        return None
    if name == "SLURM_STEP_NODELIST":
        _check_step(at, name, hosts)
    elif len(hosts) > 1:
        at.wrong(
            "SLURM_STEP_NODELIST",
            f"is missing, but the job has {len(hosts)} nodes: `srun --ntasks-per-node=1` starts"
            " the runtime on each of them",
        )
    current = _slurm_node(at, name, hosts)
    if count := at.number("SLURM_RESTART_COUNT"):
        at.note(f"Slurm: job {at.get('SLURM_JOB_ID')} was requeued, this is restart {count}")
    if at.faults > faults or current is None:
        return None
    job = f"slurm {at.get('SLURM_JOB_ID')}.{at.get('SLURM_STEP_ID')}"
    return Placement(hosts=hosts, current=current, said=f"{name}={at.get(name)}", job=job)


def _check_step(at: Variables, name: str, hosts: tuple[str, ...]) -> None:
    """Note that a step has other nodes or more tasks than it has names."""
    count, tasks = at.number("SLURM_STEP_NUM_NODES"), at.number("SLURM_STEP_NUM_TASKS")
    if count not in (None, len(hosts)):
        at.wrong("SLURM_STEP_NUM_NODES", f"is {count}, but {name} names {len(hosts)}")
    if tasks not in (None, len(hosts)):
        at.wrong(
            "SLURM_STEP_NUM_TASKS",
            f"is {tasks} for {len(hosts)} node{'s' * (len(hosts) > 1)}: the runtime is one task on"
            " each and starts what else runs there: `srun --ntasks-per-node=1`",
        )


def _slurm_node(at: Variables, name: str, hosts: tuple[str, ...]) -> str | None:
    """Return this node's name, or None, which is noted."""
    if node := at.get("SLURMD_NODENAME"):
        if node not in hosts:
            at.wrong("SLURMD_NODENAME", f"{node!r} is not one of {name}={at.get(name)}")
        return node
    number = at.number("SLURM_NODEID")
    if number is None or number >= len(hosts):
        what = "is missing" if number is None else f"is {number}"
        at.wrong("SLURM_NODEID", f"{what}, and {name} names {len(hosts)}")
        return None
    return hosts[number]


NUM_HOSTS = "SM_RUNTIME_NUM_HOSTS"


def _kubernetes(at: Variables) -> Placement | None:
    """Return the pods of an Indexed Job; None without a problem: each is a job of its own.

    Nothing in a pod says how many there are, so the manifest has to.
    """
    from sm_runtime.contract import kubernetes

    faults = at.faults
    index, count = at.number("JOB_COMPLETION_INDEX"), at.count(NUM_HOSTS)
    if at.faults > faults:
        return None
    pods = kubernetes.of_own(at.whole_name, index or 0)
    if count is None:
        if pods and pods.domain:
            at.wrong(NUM_HOSTS, "is missing: a headless service gives names to the Job's pods")
        return None
    if index is None:
        at.wrong("JOB_COMPLETION_INDEX", f"is missing, but {NUM_HOSTS} is {count}")
    elif index >= count:
        at.wrong("JOB_COMPLETION_INDEX", f"is {index}, but {NUM_HOSTS} is {count}")
    elif pods is None:
        at.wrong(
            "JOB_COMPLETION_INDEX",
            f"is {index}, but this pod is called {at.whole_name!r}, not <job>-{index}",
        )
    elif count > 1 and not pods.domain:
        at.wrong(
            NUM_HOSTS,
            f"is {count}, but pods have no names for each other: the pod template's `subdomain` has"
            " to name a headless service",
        )
    else:
        hosts = pods.hosts(count)
        said = f"JOB_COMPLETION_INDEX={index}, {NUM_HOSTS}={count}"
        job = f"kubernetes {pods.stem}{pods.domain}"
        return Placement(hosts=hosts, current=hosts[index], said=said, job=job)
    return None


def _kubeflow(at: Variables) -> Placement | None:
    """Return the pods of a TrainJob or a PyTorchJob, by what is meant for torchrun."""
    from sm_runtime.contract import kubernetes

    faults = at.faults
    if ":" in at.get("PET_NNODES"):
        at.wrong("PET_NNODES", f"is {at.get('PET_NNODES')}: an elastic job has no list of hosts")
        return None
    count, rank = at.count("PET_NNODES"), at.number("PET_NODE_RANK")
    first = "PET_MASTER_ADDR" if at.get("PET_MASTER_ADDR") else "MASTER_ADDR"
    pods = kubernetes.of_first(at.get(first))
    if at.faults > faults:
        return None
    if count is None or rank is None:
        at.wrong("PET_NNODES" if count is None else "PET_NODE_RANK", "is missing")
    elif rank >= count:
        at.wrong("PET_NODE_RANK", f"is {rank}, but PET_NNODES is {count}")
    elif pods is None:
        at.wrong(first, f"must be the first pod's name, which ends in -0, not {at.get(first)!r}")
    else:
        hosts = pods.hosts(count)
        said = f"PET_NNODES={count}, PET_NODE_RANK={rank}, {first}={at.get(first)}"
        job = f"kubeflow {pods.stem}{pods.domain}"
        return Placement(hosts=hosts, current=hosts[rank], said=said, job=job)
    return None


SLURM = Engine(
    name="Slurm",
    marks=("SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST"),
    read=_slurm,
    stop_seconds=30.0,  # KillWait, as it is where slurm.conf does not say
    signals_all=True,
)
# Pods of Kubeflow are those of an Indexed Job, too, and it knows how many there are.
KUBEFLOW = Engine(
    name="Kubeflow",
    marks=("PET_NNODES",),
    read=_kubeflow,
    stop_seconds=30.0,  # terminationGracePeriodSeconds, as it is where a pod does not say
)
KUBERNETES = Engine(
    name="Kubernetes",
    marks=("JOB_COMPLETION_INDEX", NUM_HOSTS),
    read=_kubernetes,
    stop_seconds=KUBEFLOW.stop_seconds,
)
ENGINES = (SLURM, KUBEFLOW, KUBERNETES)
"""The engines that are looked for, the first that is found counts."""


def engine_of(environ: Mapping[str, str], findings: Findings) -> Engine | None:
    """Return the engine that runs this job, or the one that ``SM_RUNTIME_ENGINE`` names."""
    named = environ.get(VARIABLE, "").strip().lower()
    known = {engine.name.lower(): engine for engine in ENGINES}
    if named and named != NONE and named not in known:
        Field("environment", VARIABLE, named, findings).must(one_of((NONE, *known)))
    if named:
        return known.get(named)
    return next((engine for engine in ENGINES if any(map(environ.get, engine.marks))), None)


def placement(
    engine: Engine | None, environ: Mapping[str, str], findings: Findings, whole_name: str = ""
) -> Placement | None:
    """Return where ``engine`` has placed this process; None where nothing says so.

    ``whole_name`` is this machine's name, with its domain where that is known.
    """
    if engine is None:
        return None
    found = engine.read(Variables(engine.name, environ, findings, whole_name))
    if found is not None:
        count = f"{len(found.hosts)} hosts, {found.current} is this one"
        findings.notes.append(
            f"{engine.name}: {count if len(found.hosts) > 1 else found.current} ({found.said})"
        )
    return found


def whole_name(table: str, hostname: str) -> str:
    """Return ``hostname`` with its domain, by the text of ``/etc/hosts``; else as it is.

    The kubelet writes a line with the pod's address, its whole name and its host name.
    """
    for line in table.splitlines():
        names = line.partition("#")[0].split()[1:]
        if hostname in names:
            for name in names:
                if name.startswith(f"{hostname}."):
                    return name
    return hostname
