"""What a host starts for PyTorch's elastic launcher, and the variables of its processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sm_runtime.launch.distribution import Plan


EFA = frozenset(
    {
        "ml.g4dn.8xlarge",
        "ml.g4dn.12xlarge",
        "ml.g5.48xlarge",
        "ml.p3dn.24xlarge",
        "ml.p4d.24xlarge",
        "ml.p4de.24xlarge",
        "ml.p5.48xlarge",
        "ml.trn1.32xlarge",
        "ml.p6e-gb200.36xlarge",
    }
)
"""The types whose traffic between hosts goes through the adapter."""
EFA_RDMA = frozenset(
    {"ml.p4d.24xlarge", "ml.p4de.24xlarge", "ml.trn1.32xlarge", "ml.p6e-gb200.36xlarge"}
)
"""Those whose devices the adapter reads and writes by itself."""


MONITOR_SECONDS = "0.1"
"""How often torchrun looks whether its processes have ended; it would be every 5 s."""


def prefix(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return what stands before torchrun: AWS Neuron's compiler, where that is asked for."""
    wanted = environ.get("RUN_NEURON_PARALLEL_COMPILE") == "1"
    return ("neuron_parallel_compile",) if wanted else ()


def command(
    plan: Plan,
    program: tuple[str, ...],
    python: str,
    *,
    port: int = 7777,
    installed: bool = True,
    prefix: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Return the argument vector that runs ``program`` in as many processes as the plan says.

    ``program`` is an argument vector of its own, ``installed`` whether ``torchrun`` is on PATH,
    ``prefix`` what stands before it.
    """
    argv: tuple[str, ...]
    argv = ("torchrun",) if installed else (python, "-m", "torch.distributed.run")
    argv += ("--nnodes", str(len(plan.hosts)), "--nproc_per_node", str(plan.processes_per_host))
    if plan.others:
        argv += ("--master_addr", plan.leader, "--master_port", str(port))
        argv += ("--node_rank", str(plan.rank))
    return (*prefix, *argv, "--monitor_interval", MONITOR_SECONDS, "--no_python", *program)


def variables(interface: str, instance_type: str, environ: Mapping[str, str]) -> dict[str, str]:
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
