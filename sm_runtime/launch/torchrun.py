"""What a host starts for PyTorch's elastic launcher, and the variables of its processes."""

from __future__ import annotations

from collections.abc import Mapping

from sm_runtime.launch.fabric import EFA, EFA_RDMA

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from sm_runtime.launch.distribution import Plan


def command(
    plan: Plan, program: tuple[str, ...], python: str, *, port: int = 7777, installed: bool = True
) -> tuple[str, ...]:
    """Return the argument vector that runs ``program`` in as many processes as the plan says.

    ``program`` is the script's own argument vector, ``installed`` whether ``torchrun`` is on PATH.
    """
    argv: tuple[str, ...]
    argv = ("torchrun",) if installed else (python, "-m", "torch.distributed.run")
    argv += ("--nnodes", str(len(plan.hosts)), "--nproc_per_node", str(plan.processes_per_host))
    if plan.others:
        argv += ("--master_addr", plan.leader, "--master_port", str(port))
        argv += ("--node_rank", str(plan.rank))
    if program[:1] != (python,) or program[1:2] == ("-c",):
        return (*argv, "--no_python", *program)
    return (*argv, *program[1:])


def variables(interface: str, instance_type: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what the toolkit sets for the processes; what ``environ`` has is left alone."""
    found = {"NCCL_SOCKET_IFNAME": interface, "NCCL_PROTO": "simple"}
    if instance_type in EFA:
        found["FI_PROVIDER"] = "efa"
    if instance_type in EFA_RDMA:
        found |= {"FI_EFA_USE_DEVICE_RDMA": "1", "RDMAV_FORK_SAFE": "1"}
    return {name: value for name, value in found.items() if name not in environ}
