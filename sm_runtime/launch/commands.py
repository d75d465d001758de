"""What a host starts for the ways of distributed training but MPI, and the variables of that.

A template is a launcher of the user's own: a list of words, some of which stand for what the
runtime knows. TF_CONFIG says which host is what in a cluster of TensorFlow's; its text is to the
byte that of SageMaker's TensorFlow training toolkit, where the toolkit has one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from sm_runtime.job.errors import ConfigError

if TYPE_CHECKING:
    from sm_runtime.job.model import Entry, Hardware
    from sm_runtime.launch.distribution import Plan, Ports, Role

_WORDS = ("args", "command")
"""The placeholders that stand for any number of words, each of them a whole word itself."""
PLACEHOLDERS = (
    "script",
    "module",
    *_WORDS,
    "python",
    "num_gpus",
    "num_cpus",
    "processes_per_host",
    "processes",
    "hosts",
    "num_hosts",
    "host_rank",
    "current_host",
    "leader",
    "port",
)
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def template_problems(words: tuple[str, ...]) -> list[str]:
    """Return a sentence for each thing that is wrong with the template ``words``."""
    found = []
    if not words[0]:
        found.append("options: launcher: its first word, the program, is empty")
    for word in words:
        for match in _BRACES.finditer(word):
            name = match[1]
            if match[0] in ("{{", "}}"):
                continue
            if name is None:
                found.append(
                    f"options: launcher: {word!r} has a single {match[0]!r}; a brace that is meant"
                    " as such is doubled"
                )
            elif name not in PLACEHOLDERS:
                found.append(
                    f"options: launcher: {{{name}}} in {word!r} is not one of"
                    f" {', '.join(f'{{{known}}}' for known in PLACEHOLDERS)}; a brace that is"
                    " meant as such is doubled"
                )
            elif name in _WORDS and word != match[0]:
                found.append(
                    f"options: launcher: {{{name}}} in {word!r} stands for several words and must"
                    " be a word of its own"
                )
    return found


def template_command(
    words: tuple[str, ...],
    plan: Plan,
    entry: Entry,
    devices: Hardware,
    python: str,
    *,
    port: int = 7777,
) -> tuple[str, ...]:
    """Return the argument vector that the template ``words`` stands for.

    Raises ConfigError where the template asks for a script and the program is a module, or the
    other way round.
    """
    values = {
        **_of_program(entry.program, python),
        "python": python,
        "num_gpus": str(devices.gpus),
        "num_cpus": str(devices.cpus),
        "processes_per_host": str(plan.processes_per_host),
        "processes": str(plan.processes),
        "hosts": ",".join(plan.hosts),
        "num_hosts": str(len(plan.hosts)),
        "host_rank": str(plan.rank),
        "current_host": plan.host,
        "leader": plan.leader,
        "port": str(port),
    }
    several = {"{args}": entry.arguments, "{command}": entry.argv}
    argv: list[str] = []
    for word in words:
        argv += several[word] if word in several else (_expanded(word, values, entry.program),)
    return tuple(argv)


def _of_program(own: tuple[str, ...], python: str) -> dict[str, str]:
    """Return the placeholder that the program is: a module, or a script of whatever kind."""
    if own[:2] == (python, "-m"):
        return {"module": own[2]}
    if own[:2] == (python, "-c"):
        return {}
    return {"script": own[-1]}


def _expanded(word: str, values: Mapping[str, str], own: tuple[str, ...]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name not in values:
            raise ConfigError(
                f"options: launcher: {{{name}}}: the program runs as {' '.join(own)!r}, which is no"
                f" {name}; {{command}} stands for any program"
            )
        return values[name]

    return _BRACES.sub(value, word)


EFA = frozenset({
    "ml.g4dn.8xlarge", "ml.g4dn.12xlarge", "ml.g5.48xlarge", "ml.p3dn.24xlarge",
    "ml.p4d.24xlarge", "ml.p4de.24xlarge", "ml.p5.48xlarge", "ml.trn1.32xlarge",
    "ml.p6e-gb200.36xlarge",
})  # fmt: skip
"""The types whose traffic between hosts goes through the adapter."""
EFA_RDMA = frozenset(
    {"ml.p4d.24xlarge", "ml.p4de.24xlarge", "ml.trn1.32xlarge", "ml.p6e-gb200.36xlarge"}
)
"""Those whose devices the adapter reads and writes by itself."""


MONITOR_SECONDS = "0.1"
"""How often torchrun looks whether its processes have ended; it would be every 5 s."""


def torchrun_command(
    plan: Plan,
    program: tuple[str, ...],
    python: str,
    *,
    port: int = 7777,
    installed: bool = True,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, ...]:
    """Return the argument vector that runs ``program`` in as many processes as the plan says.

    ``program`` is an argument vector of its own, ``installed`` whether ``torchrun`` is on PATH.
    ``environ``, the script's, may ask for AWS Neuron's compiler before it.
    """
    wanted = environ.get("RUN_NEURON_PARALLEL_COMPILE") == "1"
    argv: tuple[str, ...] = ("neuron_parallel_compile",) if wanted else ()
    argv += ("torchrun",) if installed else (python, "-m", "torch.distributed.run")
    argv += ("--nnodes", str(len(plan.hosts)), "--nproc_per_node", str(plan.processes_per_host))
    if plan.others:
        argv += ("--master_addr", plan.leader, "--master_port", str(port))
        argv += ("--node_rank", str(plan.rank))
    return (*argv, "--monitor_interval", MONITOR_SECONDS, "--no_python", *program)


def torchrun_variables(
    interface: str, instance_type: str, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return what the processes need on this host; what ``environ`` has is left alone.

    Gloo and TensorPipe would take the interface that the host's own name resolves to, or loopback.
    """
    found = {"NCCL_SOCKET_IFNAME": interface, "NCCL_PROTO": "simple"}
    found |= {"GLOO_SOCKET_IFNAME": interface, "TP_SOCKET_IFNAME": interface}
    if instance_type in EFA:
        found["FI_PROVIDER"] = "efa"
    if instance_type in EFA_RDMA:
        found |= {"FI_EFA_USE_DEVICE_RDMA": "1", "RDMAV_FORK_SAFE": "1"}
    return {name: value for name, value in found.items() if name not in environ}


TF_CONFIG = "TF_CONFIG"


def tf_config(plan: Plan, role: Role, ports: Ports | None = None) -> str:
    """Return the TF_CONFIG of a process of ``plan``.

    Without ``ports`` it is those that the plan wants.
    """
    return json.dumps(
        {
            "cluster": tf_cluster(plan, ports),
            "environment": "cloud",
            "task": {"index": role.index, "type": role.task},
        }
    )


def tf_cluster(plan: Plan, ports: Ports | None = None) -> dict[str, list[str]]:
    """Return the addresses of the cluster by task type, in the order of the toolkit."""
    agreed = {**plan.ports, **(ports or {})}

    def addresses(purpose: str, hosts: tuple[str, ...]) -> list[str]:
        port = agreed[purpose]
        return [f"{host}:{port if isinstance(port, int) else port[host]}" for host in hosts]

    if plan.kind == "multi_worker":
        return {"worker": addresses("script", plan.hosts)}
    # The evaluator sees the cluster and is no part of it, says TensorFlow.
    workers = plan.hosts[1 : -1 if plan.evaluator else None]
    found = {
        plan.layout: addresses("script", plan.hosts[:1]),
        "ps": addresses("server", plan.hosts),
    }
    if workers:
        found["worker"] = addresses("script", workers)
    return found
